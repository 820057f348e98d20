"""Settings, themes, what the model is, and what is attached. Driven in a browser."""

import base64
import threading

import pytest

from tests.server.browser import NEEDS_BROWSER, Page, until
from tests.server.scripted_page import Script
from tests.server.test_page import GIVE

pytestmark = NEEDS_BROWSER

VALUES = {
    "temperature": ("0.5", 0.5),
    "top_p": ("0.9", 0.9),
    "top_k": ("40", 40),
    "min_p": ("0,05", 0.05),
    "repetition_penalty": ("1.1", 1.1),
    "presence_penalty": ("-0.5", -0.5),
    "frequency_penalty": ("0.25", 0.25),
    "max_tokens": ("77", 77),
    "min_tokens": ("3", 3),
    "seed": ("7", 7),
    "stop": ("END\nSTOP", ["END", "STOP"]),
}


def test_all_sampling_values(page: Page, script: Script) -> None:
    """Each shows the model's own, which holds until another is set; only what is set is sent."""
    script.say("Plain.")
    page.send("First")
    page.wait_answer("Plain.")
    assert not {*VALUES, "ignore_eos"} & set(script.asked[-1])
    page.click("#settings-button")
    until(lambda: page.all("#set-temperature"))
    assert page.one("#set-temperature").get_attribute("placeholder") == "0.6"  # its generation_config.json
    assert page.one("#set-top_p").get_attribute("placeholder") == "0.95"
    assert page.one("#set-max_tokens").get_attribute("placeholder") == "as many as fit"
    page.picture(f"settings-{page.view}")
    for name, (text, _) in VALUES.items():
        page.type(text, f"#set-{name}")
    page.run(
        "const s = document.getElementById('set-ignore_eos'); s.value = 'true'; s.dispatchEvent(new Event('input'))"
    )
    page.type("Be brief.", "#system")
    page.click("#settings-done")
    script.say("Set.")
    page.send("Second")
    page.wait_answer("Set.")
    body = script.asked[-1]
    assert {name: body[name] for name in VALUES} == {name: value for name, (_, value) in VALUES.items()}
    assert body["ignore_eos"] is True
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    page.reload()
    page.click("#settings-button")
    until(lambda: page.one("#set-top_k").get_attribute("value") == "40")
    page.click("#settings-reset")
    page.click("#settings-done")
    script.say("Plain again.")
    page.send("Third")
    page.wait_answer("Plain again.")
    assert not {*VALUES, "ignore_eos"} & set(script.asked[-1])


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("temperature", "hot", "Write a number."),
        ("temperature", "-1", "Write 0 or more."),
        ("top_p", "0", "Write more than 0."),
        ("top_p", "1.5", "Write 1 or less."),
        ("top_k", "2.5", "Write a whole number."),
        ("max_tokens", "0", "Write 1 or more."),
        ("presence_penalty", "3", "Write 2 or less."),
    ],
)
def test_settings_are_checked(page: Page, script: Script, name: str, text: str, told: str) -> None:
    page.click("#settings-button")
    until(lambda: page.all(f"#set-{name}"))
    page.type(text, f"#set-{name}")
    until(lambda: told in page.one(f"#set-{name}-wrong").text)
    assert page.one(f"#set-{name}").get_attribute("aria-invalid") == "true"
    page.click("#settings-done")
    script.say("Fine.")
    page.send("Hello")
    page.wait_answer("Fine.")
    assert text not in (str(script.asked[-1].get(name)),)  # what is wrong is never sent


def test_escape_closes_the_settings_alone(page: Page, script: Script) -> None:
    gate = threading.Event()
    script.say("Still ", gate, "writing.")
    page.send("Write")
    until(lambda: page.answers() == ["Still"])
    page.click("#settings-button")
    page.type("Kept.", "#system")
    page.escape()
    until(lambda: not page.run("return document.getElementById('settings').open"))
    gate.set()
    page.wait_answer("Still writing.")
    page.click("#settings-button")
    assert page.one("#system").get_attribute("value") == "Kept."


def test_escape_stops_an_answer_where_nothing_is_open(page: Page, script: Script) -> None:
    """Not in the search, a menu, or the list before the conversation."""
    gate = threading.Event()
    script.say("Still ", gate, "writing.")
    page.send("Write")
    until(lambda: page.answers() == ["Still"])
    page.show_list()
    page.type("writ", "#search")
    page.escape()
    page.show_list()
    page.wait_for("await new Promise((r) => setTimeout(r, 300))")  # the list is drawn without the search
    page.run("const menu = document.querySelector('.menu'); menu.open = true; menu.querySelector('summary').focus()")
    page.escape()
    until(lambda: not page.run("return document.querySelector('.menu').open"))
    page.hide_list()
    assert not page.all(".ending")
    page.one("#question").click()
    page.escape()
    until(lambda: "You stopped" in " ".join(page.texts(".ending")))
    gate.set()


def background(page: Page) -> str:
    return page.run("return getComputedStyle(document.body).backgroundColor")


def test_the_theme_follows_the_system_until_one_is_chosen(page: Page, script: Script) -> None:
    """On both pages."""
    for path in ("/", "/stats"):
        page.show(path)
        page.system_theme("light")
        until(lambda: background(page) == "rgb(251, 250, 248)")
        page.system_theme("dark")
        until(lambda: background(page) == "rgb(27, 26, 25)")
    page.system_theme("light")
    from selenium.webdriver.support.ui import Select

    Select(page.one("#theme")).select_by_value("dark")  # on /stats
    until(lambda: background(page) == "rgb(27, 26, 25)")
    page.show("/", page.view.split("-")[0] + "-light")
    assert background(page) == "rgb(27, 26, 25)"
    page.show_list()
    Select(page.one("#theme")).select_by_value("system")
    until(lambda: background(page) == "rgb(251, 250, 248)")


def test_what_the_model_is(page: Page, script: Script) -> None:
    page.click("#details-button")
    until(lambda: page.run("return document.getElementById('details').open"))
    text = page.one("#details").text
    for part in ("Context", "1,000 tokens", "Takes", "text", "Octavo"):
        assert part in text
    page.picture(f"details-{page.view}")
    page.check_width()
    page.escape()
    assert not page.one("#details").is_displayed()


def test_text_files_by_drop_and_paste(page: Page, script: Script) -> None:
    def give(way: str, data: bytes, name: str, kind: str) -> None:
        page.run(GIVE, way, base64.b64encode(data).decode(), name, kind)

    give("drop", b"x = 1\r\n", "code.py", "")
    until(lambda: page.texts("#attached summary") == ["code.py (2 lines)"])
    give("paste", "```\ngrüße\n```".encode(), "notes.md", "text/markdown")
    until(lambda: len(page.all("#attached figure")) == 2)
    for data, name, kind, told in (
        (b"\x89PNG\r\n\x1a\n", "photo.png", "image/png", "photo.png: this model takes text."),
        (b"%PDF-1.7\x00\xff", "paper.pdf", "application/pdf", "paper.pdf: it is no text in UTF-8"),
        (b"x" * (1 << 20) + b"x", "large.log", "text/plain", "large.log: it is too large"),
    ):
        give("drop", data, name, kind)
        until(lambda told=told: told in page.one("#attached").text)
    page.picture(f"files-{page.view}")
    page.check_width()
    script.say("Read.")
    page.send("What is in them?")
    page.wait_answer("Read.")
    text = "code.py:\n```\nx = 1\n\n```\n\nnotes.md:\n````\n```\ngrüße\n```\n````\n\nWhat is in them?"
    assert script.asked[-1]["messages"] == [{"role": "user", "content": text}]
    page.reload()
    assert page.texts(".user summary") == ["code.py (2 lines)", "notes.md (3 lines)"]
