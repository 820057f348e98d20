"""What is done with answers: waiting, stopping, going on, other answers, edits, errors. Driven in a browser."""

import threading

import pytest

from tests.server.browser import NEEDS_BROWSER, Page, until
from tests.server.scripted_page import BREAK, Script

pytestmark = NEEDS_BROWSER


def ending(page: Page) -> str:
    """How the last answer ended, as it is said below it."""
    return " ".join(page.texts(".ending"))


def test_what_waits_shows_it(page: Page, script: Script) -> None:
    gate = threading.Event()
    script.say(gate, "Here.")
    page.send("Wait for it")
    until(lambda: page.one(".waiting").is_displayed())
    until(lambda: "2 s" in page.one(".waiting").text or "3 s" in page.one(".waiting").text)
    assert page.one("#stop").is_displayed()
    assert not page.one(".user .edit").is_displayed()  # one answer at a time
    page.picture(f"waiting-{page.view}")
    gate.set()
    page.wait_answer("Here.")
    assert not page.one("#stop").is_displayed()


def test_regenerate_keeps_the_old_answer(page: Page, script: Script) -> None:
    script.say("First.")
    page.send("Tell me")
    page.wait_answer("First.")
    script.say("Second.")
    page.click(".again")
    page.wait_answer("Second.", 1)
    assert page.one(".which").text == "2 of 2"
    page.click(".before")
    page.wait_answer("First.", 1)
    assert page.driver.switch_to.active_element.get_attribute("aria-label") == "The next one"
    script.say("Third.")
    page.send("Go on")  # behind the first one
    page.wait_answer("Third.", 2)
    assert [m["content"] for m in script.asked[-1]["messages"]] == ["Tell me", "First.", "Go on"]
    page.reload()
    assert page.answers() == ["First.", "Third."]


def test_edit_of_a_message(page: Page, script: Script) -> None:
    """The old one and what followed it stay, beside the new one."""
    script.say("Grey.")
    page.send("Which colour?")
    page.wait_answer("Grey.")
    page.click(".user .edit")
    page.type(", please", ".editing textarea")
    script.say("Blue.")
    page.click(".editing .main")
    page.wait_answer("Blue.", 1)
    assert script.asked[-1]["messages"] == [{"role": "user", "content": "Which colour?, please"}]
    page.click(".user .before")
    page.wait_answer("Grey.", 1)
    page.click(".assistant .edit")
    page.type(" Or not.", ".editing textarea")
    page.click(".editing .main")
    page.wait_answer("Grey. Or not.", 1)
    assert len(script.asked) == 2  # an answer that is edited asks nothing
    script.say("Good.")
    page.send("Thanks")
    page.wait_answer("Good.")
    assert script.asked[-1]["messages"][1]["content"] == "Grey. Or not."
    page.click(".user .edit")
    page.escape()  # leaves the edit, and nothing else
    assert not page.all(".editing")


@pytest.mark.parametrize("how", ["length", "stream", "connection", "stopped"])
def test_cut_answers_say_so_and_go_on(page: Page, script: Script, how: str) -> None:
    gate = threading.Event()
    if how == "length":
        script.say("The half ", finish="length", usage=(10, 2))
    elif how == "stream":
        script.say("The half ", finish=None)
    elif how == "connection":
        script.say("The half ", BREAK)
    else:
        script.say("The half ", gate)
    page.send("Say it all")
    if how == "stopped":
        until(lambda: page.answers() == ["The half"])
        page.click("#stop")
        gate.set()
    words = {"length": "longest length (2 tokens)", "stopped": "You stopped"}.get(how, "cut off")
    until(lambda: words in ending(page))
    script.say("and the rest.")
    page.click(".go")
    page.wait_answer("The half and the rest.", 1)
    body = script.asked[-1]
    assert body["messages"] == [
        {"role": "user", "content": "Say it all"},
        {"role": "assistant", "content": "The half "},
    ]
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert ending(page) == ""
    page.reload()
    page.wait_answer("The half and the rest.", 1)


def test_a_thought_that_was_cut_goes_on(page: Page, script: Script) -> None:
    script.say({"reasoning": "First, "}, finish=None)
    page.send("Think")
    until(lambda: "cut off" in ending(page))
    script.say("second.</think>\n\nDone.")
    page.click(".go")
    page.wait_answer("Done.")
    assert script.asked[-1]["messages"][-1] == {"role": "assistant", "content": "<think>\nFirst, "}
    page.click(".thought summary")
    assert page.one(".thought .content").text == "First, second."


HTML = "<html><head><title>502 Bad Gateway</title></head><body><center>nginx</center></body></html>"


@pytest.mark.parametrize(
    ("status", "body", "kind", "told"),
    [
        (502, HTML, "text/html", "502 Bad Gateway|A proxy in front of Octavo"),
        (504, "", "text/plain", "504 Gateway Timeout|A proxy in front of Octavo"),
        (200, "<html>Sign in</html>", "text/html", "no answer of Octavo, but text/html|sign in"),
        (401, '{"error": {"message": "a valid key is needed"}}', "application/json", "a valid key|API key"),
        (413, '{"error": {"message": "the request is larger"}}', "application/json", "larger|--max-body-size"),
        (429, '{"error": {"message": "4096 requests wait"}}', "application/json", "4096 requests wait|Wait a little"),
        (
            400,
            '{"error": {"message": "This model\'s maximum context length is 1000 tokens"}}',
            "application/json",
            "1000 tokens|Start a new chat",
        ),
        (503, '{"error": {"message": "the engine is restarting."}}', "application/json", "restarting|statistics"),
        (500, "[]", "application/json", "500 Internal Server Error|log"),
    ],
)
def test_errors_name_a_remedy(page: Page, script: Script, status: int, body: str, kind: str, told: str) -> None:
    script.refuse(status, body, kind)
    page.send("Hello")
    for part in told.split("|"):
        until(lambda part=part: part in ending(page))
    for word in ("Unexpected token", "undefined", "SyntaxError", "TypeError"):
        assert word not in ending(page)
    if status == 502:
        page.picture(f"error-{page.view}")
    if status == 401:
        page.click(".ending.error button:nth-of-type(2)")
        assert page.driver.switch_to.active_element == page.one("#key")
        page.escape()
    script.say("Now it works.")
    page.click(".retry")
    page.wait_answer("Now it works.", 1)
    assert not page.all(".which")  # an answer that never began is no answer beside it
    page.check_width()


def test_an_error_in_the_middle_keeps_what_had_come(page: Page, script: Script) -> None:
    script.say("So far ", {"error": {"message": "the engine has ended.", "code": 503}})
    page.send("Hello")
    until(lambda: "the engine has ended." in ending(page))
    assert page.answers() == ["So far"]
    script.say("so good.")
    page.click(".go")
    page.wait_answer("So far so good.", 1)


def test_a_server_that_is_gone(page: Page, script: Script) -> None:
    page.run("window.realFetch = fetch; window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    page.send("Is anyone there?")
    until(lambda: "The server does not answer." in ending(page))
    assert "octavo serve" in ending(page)
    until(lambda: page.one("#trouble").is_displayed())
    page.check_width()
    page.run("window.fetch = window.realFetch")
    page.click("#trouble-again")
    until(lambda: not page.one("#trouble").is_displayed())
    script.say("I am.")
    page.click(".retry")
    page.wait_answer("I am.", 1)


def test_screen_readers_hear_the_answer_once(page: Page, script: Script) -> None:
    """What is announced is the whole answer, when it is there; nothing else on the page is live."""
    page.run(
        "window.heard = []; new MutationObserver(() => { const text = document.getElementById('said').textContent;"
        " if (text) window.heard.push(text); }).observe(document.getElementById('said'), { childList: true })"
    )
    script.say("One sentence. Another **sentence**.")
    page.send("Speak")
    until(lambda: page.run("return window.heard.length"))
    page.wait_for("await new Promise((r) => setTimeout(r, 200))")
    assert page.run("return window.heard") == ["Answer: One sentence. Another sentence."]
    live = "[aria-live]:not([aria-live=off]), [role=log], [role=status], [role=alert], output"
    assert (
        page.run(
            "return document.querySelector('#talk').matches(arguments[0]) || "
            "document.querySelectorAll('#talk ' + arguments[0].replaceAll(', ', ', #talk ')).length",
            live,
        )
        == 0
    )


def test_how_much_and_how_fast(page: Page, script: Script) -> None:
    script.say("Some words here.", usage=(900, 45))
    page.send("Count")
    until(lambda: "45 tokens" in " ".join(page.texts(".assistant .note")))
    assert "Context: 945 of 1,000 tokens (95 %) – nearly full" in page.one("#context").text
    page.picture(f"context-{page.view}")
    page.check_width()
    page.click("#new")
    assert not page.one("#context").is_displayed()
