"""The pages on a screen and a phone, light and dark: axe-core finds nothing, nothing is cut off, and pictures are kept.

axe-core comes in a package of PyPI, which .ci/run fetches: `pip install --no-deps --target FOLDER
axe-playwright-python`, and OCTAVO_AXE names its axe.min.js. Without it these are skipped.
"""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.server.browser import NEEDS_BROWSER, Page, until
from tests.server.scripted_page import Script

AXE = os.environ.get("OCTAVO_AXE", "")
pytestmark = [
    *NEEDS_BROWSER,
    pytest.mark.skipif(not AXE and "CI" not in os.environ, reason="OCTAVO_AXE does not say where axe-core is"),
]
VIEWS = pytest.mark.parametrize("page", ["screen-light", "screen-dark", "phone-light", "phone-dark"], indirect=True)


def violations(page: Page) -> list[str]:
    """What axe-core says against what is shown now, by all of its rules."""
    page.run(Path(AXE).read_text() + "\nwindow.axe = axe;")
    script = (
        "await new Promise((r) => setTimeout(r, 250));"
        "const rules = { 'target-size': { enabled: true } };"
        "const found = await axe.run(document, { rules, resultTypes: ['violations'] });"
        "return found.violations.map((v) => [v.id, v.nodes.map((n) => n.html.slice(0, 200) + ' ' + n.failureSummary)]);"
    )
    return [json.dumps(found) for found in page.wait_for(script)]


def check(page: Page, name: str) -> None:
    page.picture(f"{name}-{page.view}")
    found = violations(page)
    assert found == [], f"{name}: {found}"
    page.check_width()


ANSWER = """# Heading

Text with `code`, [a link](https://example.com) and $x^2$.

| Name | Value of a rather wide column | Another wide column |
|---|---:|---|
| one | 1 | some words |

- [x] done
- item
  1. nested

```python
def f(x):  # a comment that is long enough to be wider than the window of a phone
    return "text" + str(1.5) + None
```

> quoted

$$
\\sum_{i=1}^{n} i = \\frac{n(n+1)}{2}
$$
"""


def converse(page: Page, script: Script) -> None:
    """A conversation with everything in it."""
    call = {"index": 0, "id": "c1", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    script.say({"reasoning": "Hm."}, {"content": ANSWER}, usage=(500, 120))
    page.send("Show me everything")
    until(lambda: len(page.texts(".assistant .note")) == 1)
    script.say("Something else.")
    page.click(".again")
    until(lambda: page.texts(".which") == ["2 of 2"])
    script.say({"content": "Let me look."}, {"tool_calls": [call]}, finish="tool_calls")
    page.send("Call a tool, please")
    until(lambda: page.all(".result"))


@VIEWS
def test_a_conversation_with_everything(page: Page, script: Script) -> None:
    check(page, "empty")
    converse(page, script)
    page.click(".before")
    until(lambda: page.all(".assistant .hljs-keyword") and page.all(".formula .katex"))
    page.run("document.querySelector('.thought').open = true")
    check(page, "everything")
    page.run("document.getElementById('talk').scrollTop = 0")
    check(page, "everything-top")
    page.click(".after")
    page.run("document.getElementById('talk').scrollTop = 1e6")
    check(page, "call")
    page.show_list()
    check(page, "list")
    page.run("document.querySelector('.menu').open = true")
    check(page, "list-menu")
    page.menu("Show me everything", "Delete")
    until(lambda: page.all(".toast"))
    check(page, "deleted")


@VIEWS
def test_states(page: Page, script: Script) -> None:
    gate = threading.Event()
    script.say(gate, "Half", finish=None)
    page.send("Wait")
    until(lambda: page.one(".waiting").is_displayed())
    check(page, "waiting")
    gate.set()
    until(lambda: page.all(".go"))
    check(page, "cut")
    script.refuse(502, "<html></html>", "text/html")
    page.click("#new")
    page.send("Fail")
    until(lambda: page.all(".ending.error"))
    check(page, "error")
    page.click(".user .edit")
    check(page, "editing")


@VIEWS
def test_dialogs(page: Page, script: Script) -> None:
    page.click("#settings-button")
    until(lambda: page.all("#set-temperature"))
    page.type("hot", "#set-temperature")
    check(page, "settings")
    page.escape()
    page.click("#details-button")
    until(lambda: page.one("#details").is_displayed())
    check(page, "details")


@VIEWS
def test_statistics_pass_too(page: Page, script: Script) -> None:
    script.metrics = 'octavo:engine_up{model_name="m",engine="0"} 1.0\noctavo:replicas{state="running"} 1.0\n'
    page.show("/stats")
    until(lambda: page.one("#state").text.startswith("Up"))
    check(page, "stats")
    script.metrics_status = 502
    until(lambda: page.one("#state").text.startswith("Down"))
    check(page, "stats-down")


@pytest.mark.parametrize("page", ["phone-light"], indirect=True)
def test_a_phone_is_used_with_fingers(page: Page, script: Script) -> None:
    """At 320 px everything is in sight and large enough, the list lies before the conversation and closes again."""
    script.say("Hi.")
    page.send("Hello")
    page.wait_answer("Hi.")
    sizes: list[Any] = page.run(
        "return [...document.querySelectorAll('header button, #form button, .actions button')]"
        ".filter((e) => e.checkVisibility())"
        ".map((e) => [e.textContent, ...['left', 'right', 'width', 'height'].map((k) => e.getBoundingClientRect()[k])])"
    )
    assert len(sizes) > 6
    for name, left, right, width, height in sizes:
        assert left >= 0, name
        assert right <= 320, name
        assert min(width, height) >= 24, name
    assert (
        page.run("return parseFloat(getComputedStyle(document.getElementById('question')).fontSize)") >= 16
    )  # no zoom
    page.type("a\n", "#question")  # Return is a new line where there are no keys but those on the glass
    assert page.one("#question").get_attribute("value") == "a\n"
    assert not page.one("#side").is_displayed()
    page.click("#lists")
    until(lambda: page.one("#side").is_displayed())
    assert page.run("return document.getElementById('chat').inert")
    page.escape()
    until(lambda: not page.one("#side").is_displayed())
    assert page.driver.switch_to.active_element == page.one("#lists")
    page.click("#lists")
    page.click("#conversations .open")
    until(lambda: not page.one("#side").is_displayed())
