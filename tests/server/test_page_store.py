"""A person's conversation is theirs: none is lost, by whatever happens to the page. Driven in a browser."""

import json
import threading
from pathlib import Path

import pytest

from tests.server.browser import NEEDS_BROWSER, Page, until
from tests.server.scripted_page import Script

pytestmark = NEEDS_BROWSER


def ask(page: Page, script: Script, question: str, answer: str) -> None:
    script.say(answer)
    page.hide_list()
    page.send(question)
    page.wait_answer(answer)


def test_new_chat_keeps_the_conversation(page: Page, script: Script) -> None:
    ask(page, script, "What is a fjord?", "An inlet of the sea.")
    page.click("#new")
    assert page.answers() == []
    ask(page, script, "And a skerry?", "A small rock.")
    page.show_list()
    until(lambda: page.titles() == ["And a skerry?", "What is a fjord?"])
    until(lambda: all(":" in when for when in page.texts("#conversations .when")))  # today's say at what time
    page.picture(f"conversations-{page.view}")
    page.check_width()
    page.open(1)
    page.wait_answer("An inlet of the sea.", 1)
    page.reload()
    page.wait_answer("An inlet of the sea.", 1)
    page.check_quiet()


def test_an_answer_goes_on_while_another_conversation_is_shown(page: Page, script: Script) -> None:
    gate = threading.Event()
    script.say("Slowly ", gate, "done.")
    page.send("Take your time")
    until(lambda: page.answers() == ["Slowly"])
    page.click("#new")
    ask(page, script, "Something else", "Here.")
    gate.set()
    page.show_list()
    until(lambda: page.run("return !document.querySelector('#conversations').textContent.includes('writing')"))
    page.open(1)
    page.wait_answer("Slowly done.", 1)


def test_reload_in_mid_answer(page: Page, script: Script) -> None:
    gate = threading.Event()
    script.say("One two three ", gate, "four.")
    page.send("Count")
    until(lambda: page.answers() == ["One two three"])
    until(lambda: any(m["content"].startswith("One two") for m in page.stored()))
    page.reload()
    gate.set()
    until(lambda: page.answers() == ["One two three"])
    until(lambda: "cut off" in page.one(".ending").text)
    script.say("four.")
    page.click(".go")
    page.wait_answer("One two three four.", 1)
    body = script.asked[-1]
    assert body["messages"][-1] == {"role": "assistant", "content": "One two three "}
    assert body["continue_final_message"] is True


def test_two_tabs(page: Page, script: Script) -> None:
    """Each sees what the other writes, and neither writes over it."""
    driver = page.driver
    ask(page, script, "First", "One.")
    first = driver.current_window_handle
    address = driver.current_url
    driver.switch_to.new_window("tab")
    page.show(address.removeprefix(page.url))
    page.wait_answer("One.", 1)
    gate = threading.Event()
    script.say("Two", gate, " and a half.")
    page.send("Second")
    until(lambda: page.answers() == ["One.", "Two"])
    second = driver.current_window_handle
    driver.switch_to.window(first)
    until(lambda: page.answers() == ["One.", "Two"])  # while it is written
    assert "cut off" not in " ".join(page.texts(".ending"))
    gate.set()
    page.wait_answer("Two and a half.", 2)
    ask(page, script, "Third", "Three.")
    driver.switch_to.window(second)
    page.wait_answer("Three.", 3)
    page.reload()
    page.wait_answer("Three.", 3)
    assert len(page.stored()) == 6


@pytest.mark.parametrize("page", ["screen-light"], indirect=True)
def test_two_tabs_that_ask_at_once(page: Page, script: Script) -> None:
    """Neither question, and neither answer, is lost."""
    driver = page.driver
    ask(page, script, "First", "One.")
    first, address = driver.current_window_handle, driver.current_url
    driver.switch_to.new_window("tab")
    page.show(address.removeprefix(page.url))
    page.wait_answer("One.", 1)
    second = driver.current_window_handle
    gate = threading.Event()
    driver.switch_to.window(first)
    script.say("Left, ", gate, "yes.")
    page.send("Left?")
    until(lambda: page.answers()[-1] == "Left,")
    driver.switch_to.window(second)
    until(lambda: page.answers()[-1] == "Left,")
    page.send("Right?")  # would follow half an answer
    until(lambda: "Another tab is writing" in " ".join(page.texts(".toast")))
    assert page.one("#question").get_attribute("value") == "Right?"
    gate.set()
    page.wait_answer("Left, yes.", 2)
    script.say("Right, yes.")
    page.click("#send")
    page.wait_answer("Right, yes.", 3)
    contents = [m["content"] for m in script.asked[-1]["messages"]]
    assert contents == ["First", "One.", "Left?", "Left, yes.", "Right?"]
    assert len(page.stored()) == 6


@pytest.mark.parametrize("page", ["screen-light"], indirect=True)
def test_a_tab_that_is_closed_in_mid_answer(page: Page, script: Script) -> None:
    """The other one says that it was cut, and goes on with it."""
    driver = page.driver
    ask(page, script, "First", "One.")
    first, address = driver.current_window_handle, driver.current_url
    driver.switch_to.new_window("tab")
    page.show(address.removeprefix(page.url))
    page.wait_answer("One.", 1)
    gate = threading.Event()
    script.say("Half ", gate)
    page.send("Second")
    until(lambda: any(m["content"] == "Half " for m in page.stored()))
    driver.close()
    gate.set()
    driver.switch_to.window(first)
    until(lambda: page.answers()[-1] == "Half")
    page.send("Are you there?")
    until(lambda: script.asked[-1]["messages"][-1]["content"] == "Are you there?")  # it waits for nobody
    assert len(page.texts(".user .content")) == 3


FULL = """
window.realPut = IDBObjectStore.prototype.put;
IDBObjectStore.prototype.put = function () { throw new DOMException("no room", "QuotaExceededError"); };
"""


def test_a_full_store(page: Page, script: Script) -> None:
    page.run(FULL)
    ask(page, script, "Keep this", "Gladly.")
    until(lambda: "storage is full" in page.one("#unkept").text)
    page.show_list()
    until(lambda: page.titles() == ["Keep this"])
    page.hide_list()
    page.picture(f"full-store-{page.view}")
    page.click("#new")
    page.show_list()
    page.open(0)
    page.wait_answer("Gladly.", 1)  # it is still here
    page.run("IDBObjectStore.prototype.put = window.realPut")
    page.click("#unkept-again")
    until(lambda: not page.one("#unkept").is_displayed())
    assert [m["content"] for m in sorted(page.stored(), key=lambda m: m["created"])] == ["Keep this", "Gladly."]
    page.reload()
    page.wait_answer("Gladly.", 1)


@pytest.mark.parametrize("page", ["screen-light"], indirect=True)
def test_a_browser_that_keeps_nothing(page: Page, script: Script) -> None:
    source = "indexedDB.open = () => { throw new DOMException('not allowed here', 'SecurityError'); }"
    added = page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    try:
        page.show()
        until(lambda: "keeps nothing here (not allowed here)" in page.one("#unkept").text)
        ask(page, script, "Do you work?", "I do.")
        page.click("#new")
        ask(page, script, "And now?", "Still.")
        page.open(1)
        page.wait_answer("I do.", 1)
    finally:
        page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_rename_search_delete_and_undo(page: Page, script: Script) -> None:
    ask(page, script, "About ferns", "They have spores.")
    page.click("#new")
    ask(page, script, "About stones", "They roll.")
    page.menu("About ferns", "Rename")
    page.type("Plants\n", ".renaming input")  # the old name is selected
    until(lambda: sorted(page.titles()) == ["About stones", "Plants"])
    page.type("SPORES", "#search")
    until(lambda: page.titles() == ["Plants"])
    page.one("#search").clear()
    page.type("x\b", "#search")
    until(lambda: len(page.titles()) == 2)
    page.menu("Plants", "Delete")
    until(lambda: page.titles() == ["About stones"])
    page.click(".toast button")
    until(lambda: len(page.titles()) == 2)
    page.menu("Plants", "Delete")
    until(lambda: page.titles() == ["About stones"])
    page.click(".toast [aria-label='Close this message']")
    until(lambda: len(page.stored("conversations")) == 1)
    assert len(page.stored()) == 2  # its messages went with it


def test_export_and_import(page: Page, script: Script, tmp_path: Path) -> None:
    ask(page, script, "Write me down", "Written.")
    script.say("Written again.")
    page.click(".again")
    page.wait_answer("Written again.", 1)
    text = page.wait_for(
        "const { exported } = await import('./static/transfer.js');"
        "const { Store } = await import('./static/store.js');"
        "return exported(await new Store().open());"
    )
    saved = tmp_path / "saved.json"
    saved.write_text(text)
    page.menu("Write me down", "Delete")
    page.click(".toast [aria-label='Close this message']")
    until(lambda: page.titles() == [])
    page.one("#import-file").send_keys(str(saved))
    until(lambda: page.titles() == ["Write me down"])
    page.open(0)
    page.wait_answer("Written again.", 1)
    page.hide_list()
    page.click(".before")
    page.wait_answer("Written.", 1)


def test_a_conversation_is_a_file(page: Page, script: Script, tmp_path: Path) -> None:
    ask(page, script, "Keep: this?", "Kept.")
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    page.menu("Keep: this?", "Export")
    file = tmp_path / "octavo-Keep-this.json"
    until(file.exists)
    (saved,) = json.loads(file.read_text())["conversations"]
    assert [m["content"] for m in saved["messages"]] == ["Keep: this?", "Kept."]
    page.click("#export")
    until((tmp_path / "octavo-conversations.json").exists)


def test_imports_are_checked(page: Page, script: Script, tmp_path: Path) -> None:
    """A file may come from anywhere: nothing of a wrong one is taken, and it is said what is wrong."""
    message = {"id": "a", "parent": None, "role": "user", "content": "Hi"}
    chat = {"title": "T", "messages": [message]}
    picture = {"kind": "image", "name": "x", "url": "https://example.com/track.png"}
    wrong = {
        "{": "not JSON",
        "{}": "no conversations",
        json.dumps({"conversations": [chat, {"title": "U"}]}): "conversation 2 has no messages",
        json.dumps({"messages": [{"role": "root", "content": "x"}]}): "message 1 has no role",
        json.dumps({"messages": [{**message, "content": 5}]}): "content is no text",
        json.dumps({"messages": [{**message, "parent": "b"}]}): "not before it",
        json.dumps({"messages": [message, message]}): "that of another",
        json.dumps({"messages": [{**message, "media": [picture]}]}): "no data: URL",
    }
    for text, reason in wrong.items():
        file = tmp_path / "wrong.json"
        file.write_text(text)
        page.one("#import-file").send_keys(str(file))
        until(lambda reason=reason: reason in " ".join(page.texts(".toast")))
        page.run("document.querySelector('.toast').remove()")
    assert page.stored() == []
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<b>Hello</b>"}]))
    page.one("#import-file").send_keys(str(plain))
    page.show_list()
    until(lambda: page.titles() == ["Hi"])
    page.open(0)
    page.wait_answer("<b>Hello</b>", 1)


def test_the_older_page_is_taken_over(page: Page, script: Script) -> None:
    old = [
        {"role": "user", "content": "Old question"},
        {"role": "assistant", "content": "Old answer", "note": "3 tokens"},
    ]
    page.run("localStorage.setItem('octavo.messages', arguments[0])", json.dumps(old))
    page.show()
    page.wait_answer("Old answer", 1)
    assert page.run("return localStorage.getItem('octavo.messages')") is None
    assert len(page.stored()) == 2


def test_what_is_being_written_survives_a_reload(page: Page, script: Script) -> None:
    page.type("Half a quest")
    page.reload()
    assert page.one("#question").get_attribute("value") == "Half a quest"
