"""What answers look like: Markdown, code, formulas, thoughts and tool calls. Driven in a browser."""

import threading
from typing import Any

import pytest

from tests.server.browser import NEEDS_BROWSER, Page, until
from tests.server.scripted_page import Script

pytestmark = NEEDS_BROWSER

RENDER = """
const { renderMarkdown } = await import("./static/markdown.js");
const box = document.createElement("div");
renderMarkdown(box, arguments[0]);
return box.innerHTML.replaceAll(' dir="auto"', "");
"""

GROW = """
const { GrowingMarkdown, renderMarkdown, work } = await import("./static/markdown.js");
const { finish } = await import("./static/decorate.js");
const [source, size] = arguments;
const [grown, whole] = [document.createElement("div"), document.createElement("div")];
document.getElementById("talk").append(grown);
const view = new GrowingMarkdown(grown);
const before = work.parsed;
for (let end = size; end < source.length; end += size) view.show(source.slice(0, end));
view.show(source);
view.end();
const parsed = work.parsed - before;
renderMarkdown(whole, source);
await new Promise((r) => setTimeout(r, 100));
const plain = (box) => box.innerHTML.replace(/>\\s+</g, "><").replace(/<li[^>]*>\\s*<p[^>]*>(.*?)<\\/p>/g, "<li>$1")
  .replace(/<li[^>]*>/g, "<li>").trim(); // a list is loose or tight as a whole
grown.remove();
return { grown: plain(grown), whole: plain(whole), parsed };
"""

EVERYTHING = """# Title

Some **bold**, *soft*, ~~gone~~ and `code` in one
paragraph with https://example.com and [a link](https://example.com/a_b "t").

> A quote
> - with a list

3. three
4. four
   1. nested
   2. more

   a second paragraph
5. five

- [ ] to do
- [x] done
* another list

| Name | Size |
|:-----|-----:|
| a<br>b | **1** |

```python
def f(x: int) -> str:
    return f"{x}"
```

Between $a_1 + b$ and \\(c\\), not $5 or $10.

$$
\\frac{1}{2}
$$

\\[ x^2 \\]

~~~
plain
~~~

## End

H<sub>2</sub>O
"""


ONCE = pytest.mark.parametrize("page", ["screen-light"], indirect=True)
"""For what does not depend on the window."""


@ONCE
def test_markdown_is_shown(page: Page, script: Script) -> None:
    html = page.wait_for(RENDER, EVERYTHING)
    for part in (
        "<h3>Title</h3>",
        "<strong>bold</strong>, <em>soft</em>, <s>gone</s> and <code>code</code>",
        '<a href="https://example.com" target="_blank" rel="noopener noreferrer">https://example.com</a>',
        '<a href="https://example.com/a_b" title="t" target="_blank" rel="noopener noreferrer">a link</a>',
        "<blockquote>",
        '<ol start="3">',
        '<input type="checkbox" disabled="" aria-label="to do">',
        '<td class="align-right"><strong>1</strong></td>',
        "a<br>b",
        "not $5 or $10",
        "H<sub>2</sub>O",
        '<span>python</span><button type="button" class="copy" aria-label="Copy this code">Copy</button>',
    ):
        assert part in html, part


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt&#58;alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "![x](https://example.com/track.png)",
    "![x](javascript:alert(1))",
    "<svg onload=alert(1)>",
    "<iframe src='https://example.com'></iframe>",
    "<a href='https://example.com' onclick='alert(1)'>x</a>",
    "<div style='position:fixed;inset:0'>x</div>",
    "```<img src=x onerror=alert(1)>\nx\n```",
    '```"onmouseover=alert(1)\nx\n```',
    "<sub onclick=alert(1)>x</sub>",
    "<math><mtext><style><img src=x onerror=alert(1)></style></mtext></math>",
    "$\\href{javascript:alert(1)}{x}$",
    "$\\includegraphics{https://example.com/x.png}$",
    "$\\htmlStyle{position:fixed}{x}$",
    "| <img src=x onerror=alert(1)> |\n|---|\n| x |",
    "<form action='https://example.com'><input name=x></form>",
    "[x]: javascript:alert(1)\n\n[x]",
]


def test_markup_is_not_run(page: Page, script: Script) -> None:
    """No element that loads or acts comes of an answer, and nothing is asked of another host."""
    script.say(*[{"content": text + "\n\n"} for text in HOSTILE])
    page.send("Attack")
    until(lambda: page.texts(".assistant .note"))
    page.wait_for("await new Promise((r) => setTimeout(r, 300))")
    bad = page.run(
        "const box = document.querySelector('.assistant > .content');"
        "const on = [...box.querySelectorAll('*')].filter((e) => [...e.attributes].some((a) => /^on/i.test(a.name)));"
        "const links = [...box.querySelectorAll('[href], [src]')].map((e) => e.href || e.src);"
        "return [box.querySelectorAll('img, script, iframe, svg:not(.formula svg), form, style, object, embed').length,"
        " on.length, links.filter((url) => !/^https?:/.test(url)), box.querySelectorAll('[style*=fixed]').length]"
    )
    assert bad == [0, 0, [], 0]
    page.check_quiet()


@ONCE
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 64, 1000])
def test_a_growing_answer_becomes_the_whole_one(page: Page, script: Script, size: int) -> None:
    made = page.wait_for(GROW, EVERYTHING, size)
    assert "error" not in made, made
    assert made["grown"] == made["whole"]


PARAGRAPHS = "\n\n".join(f"Paragraph {i} has **some** words in it, and `code`, as answers do." for i in range(700))
ITEMS = "\n".join(f"{i}. Item {i} has **some** words in it" for i in range(1, 900))
CODE = "```python\n" + "\n".join(f"x{i} = call({i})  # and a comment" for i in range(1000)) + "\n```\n"


@ONCE
@pytest.mark.parametrize("name", ["paragraphs", "items", "code"])
def test_the_cost_of_an_answer_is_linear(page: Page, script: Script, name: str) -> None:
    """What is parsed while it grows token by token, for each character of it, is the same for twice the length."""
    source = {"paragraphs": PARAGRAPHS, "items": ITEMS, "code": CODE}[name]
    half = source[: len(source) // 2]
    costs = [page.wait_for(GROW, text, 6)["parsed"] / len(text) for text in (half, source)]
    assert costs[1] < 1.2 * max(costs[0], 2)  # a block of code is parsed again where it ends
    assert costs[1] < 20


@ONCE
@pytest.mark.parametrize("piece", ["\\(", "\\[\n", "$a ", "$$\n\n", "`", "[", "*a_ ", "> ", "<sub>", "- ", "| a\n|-\n"])
def test_an_answer_cannot_hold_the_page_up(page: Page, script: Script, piece: str) -> None:
    """What begins again and again and never ends is drawn all the same (the driver waits for half a minute)."""
    drawn = RENDER.replace("arguments[0]", "arguments[0].repeat(20000)").replace(
        "box.innerHTML", "String(box.children.length)"
    )
    assert int(page.wait_for(drawn, piece)) > 0


def test_code_is_coloured_and_copied(page: Page, script: Script) -> None:
    script.say({"content": "```python\nprint('hi')\n```\n"})
    page.send("Code")
    until(lambda: page.all(".assistant .hljs-string"))
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.click(".assistant .code .copy")
    until(lambda: page.one(".assistant .code .copy").text == "Copied")
    assert page.run("return window.copied") == "print('hi')\n"
    page.click(".assistant .actions .copy")
    until(lambda: page.run("return window.copied") == "```python\nprint('hi')\n```\n")


def test_copying_without_a_secure_page(page: Page, script: Script) -> None:
    """http:// in a local network has no clipboard of its own."""
    script.say("Copy me")
    page.send("Go")
    page.wait_answer("Copy me")
    page.run("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.run(
        "document.addEventListener('copy', () => {"
        " window.copied = document.getSelection().toString() || document.activeElement.value; })"
    )
    page.click(".assistant .actions .copy")
    until(lambda: page.run("return window.copied") == "Copy me")


def test_formulas(page: Page, script: Script) -> None:
    script.say({"content": "Euler: $e^{i\\pi} = -1$ and\n\n$$\n\\frac{a}{b}\n$$\n\nand $\\nonsense{$."})
    page.send("Formula")
    until(lambda: len(page.all(".assistant .formula .katex-html")) == 2)
    assert page.all(".assistant math")  # for screen readers
    until(lambda: page.run("return document.fonts.check('16px KaTeX_Main')"))
    assert "\\nonsense" in page.answers()[0]  # stays as it was written
    page.picture(f"formulas-{page.view}")
    page.check_width()
    page.check_quiet()


def test_thoughts_are_folded(page: Page, script: Script) -> None:
    """Those that the server tells apart, and those that stand in the text."""
    gate = threading.Event()
    script.say({"reasoning": "Let me see. "}, {"reasoning": "Yes."}, gate, "It is so.")
    page.send("Why?")
    until(lambda: page.texts(".thought summary") == ["Thinking…"])
    gate.set()
    page.wait_answer("It is so.")
    assert page.texts(".thought summary")[0].startswith("Thought")
    assert not page.one(".thought .content").is_displayed()
    page.click(".thought summary")
    assert page.one(".thought .content").text == "Let me see. Yes."
    script.say("<think>In the text.</think>\n\nAnd so.")
    page.send("Again?")
    page.wait_answer("And so.")
    assert page.run("return document.querySelectorAll('.thought')[1].innerText").startswith("Thought")
    script.say("Fine.")
    page.send("More?")
    page.wait_answer("Fine.")
    assert [m["content"] for m in script.asked[-1]["messages"]] == ["Why?", "It is so.", "Again?", "And so.", "More?"]


def test_tool_calls(page: Page, script: Script) -> None:
    """They are shown, and what they gave is sent back."""
    tools = '[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]'
    page.click("#settings-button")
    page.type(tools, "#tools")
    page.escape()
    pieces: list[Any] = [
        {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": ""}}]}
    ]
    pieces += [{"tool_calls": [{"index": 0, "function": {"arguments": part}}]} for part in ('{"city":', ' "Oslo"}')]
    script.say(*pieces, finish="tool_calls")
    page.send("Weather?")
    until(lambda: page.all(".result textarea"))
    assert script.asked[-1]["tools"][0]["function"]["name"] == "weather"
    call = page.one(".call").text
    assert "Tool call: weather" in call
    assert '"city": "Oslo"' in call
    page.picture(f"tools-{page.view}")
    page.check_width()
    script.say("It snows.")
    page.type("-3 °C", ".result textarea")
    page.click(".result button")
    page.wait_answer("It snows.")
    _, answer, result = script.asked[-1]["messages"]
    assert answer["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    ]
    assert result == {"role": "tool", "tool_call_id": "c1", "content": "-3 °C"}


def test_right_to_left(page: Page, script: Script) -> None:
    """Each paragraph by its own first letter; code stays as it is."""
    script.say({"content": "שלום עולם\n\nEnglish\n\n- مرحبا\n\n```\nx = 1\n```\n"})
    page.send("היי")
    until(lambda: page.texts(".assistant .note"))
    direction = "return [...document.querySelectorAll(arguments[0])].map((e) => getComputedStyle(e).direction)"
    assert page.run(direction, ".assistant > .content p") == ["rtl", "ltr"]
    assert page.run(direction, ".assistant > .content li, .user > .content") == ["rtl", "rtl"]
    assert page.run(direction, ".assistant > .content pre") == ["ltr"]
    page.picture(f"rtl-{page.view}")
