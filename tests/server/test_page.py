"""The chat page and the statistics before real models, driven in a browser; its neighbours script answers."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.adapter_folders import write_adapter
from tests.media.test_hostile import saved, wav
from tests.server.browser import NEEDS_BROWSER, Page, until
from tests.server.running import Running, server

pytestmark = NEEDS_BROWSER


def opened(browser: Any, running: Running, path: str = "/", **sampling: Any) -> Page:
    """A page of a server, with nothing kept but sampling values."""
    page = Page(browser, running.url)
    page.clear()
    page.show(path)
    if sampling:
        set_sampling(page, **sampling)
    return page


def set_sampling(page: Page, **values: Any) -> None:
    page.run("localStorage['octavo.settings'] = JSON.stringify({ sampling: arguments[0] })", values)
    page.reload()


def test_a_conversation(chrome: Any, smollm_server: Running) -> None:
    page = opened(chrome, smollm_server, ignore_eos=True)  # the story is not over before it is stopped
    assert page.driver.switch_to.active_element == page.one("#question")  # one may type at once
    page.send("Tell me a long story about a lighthouse.")
    until(lambda: page.answers() and len(page.answers()[0]) > 20)
    page.picture("streaming")
    length = len(page.answers()[0])
    until(lambda: len(page.answers()[0]) > length)  # it streams
    page.click("#stop")
    until(lambda: "stopped" in " ".join(page.texts(".ending")))
    smollm_server.until(lambda: smollm_server.metric("num_requests_running") == 0)

    before = page.answers()[0]
    page.click(".go")  # goes on where it was
    until(lambda: len(page.answers()[0]) > len(before) + 5)
    assert page.answers()[0].startswith(before[:20])
    page.click("#stop")
    until(lambda: page.one("#send").is_displayed())

    set_sampling(page)
    page.send("What is the capital of France?")
    until(lambda: len(page.texts(".assistant .note")) == 2 and "tokens/s" in page.texts(".assistant .note")[1])
    assert "tokens" in page.one("#context").text
    page.picture("answered")
    page.reload()
    assert len(page.answers()) == 2
    assert page.texts(".user .content")[0].startswith("Tell me a long story")
    page.check_quiet()


def test_statistics(chrome: Any, smollm_server: Running) -> None:
    page = opened(chrome, smollm_server, "/stats")
    until(lambda: page.one("#state").text == "Up: the engine runs.")
    smollm_server.post(
        "/v1/completions", {"prompt": "One, two,", "max_tokens": 60, "ignore_eos": True, "temperature": 0}
    )
    until(lambda: page.texts("[aria-label='Tokens written a second'] output")[0] not in ("–", "0"))
    assert "within" in page.one("[aria-label='Time between two tokens'] .more").text
    page.picture("stats")
    page.check_quiet()


@pytest.fixture(scope="module")
def toy_server(toy_model: tuple[Path, dict[str, str]]) -> Iterator[Running]:
    limits = ("--kv-cache-memory", "64MiB", "--max-model-len", "1024")
    with server(str(toy_model[0]), *limits, "--served-model-name", "toy", **toy_model[1]) as made:
        yield made


def attached(page: Page) -> list[str]:
    """What is attached to the next message, by its name."""
    return page.run("return [...document.querySelectorAll('#attached figure')].map((e) => e.dataset.name)")


GIVE = """
const bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0));
const files = new DataTransfer();
files.items.add(new File([bytes], arguments[2], { type: arguments[3] }));
const event = arguments[0] === "paste" ? new ClipboardEvent("paste", { clipboardData: files, bubbles: true })
  : new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true });
document.getElementById("question").dispatchEvent(event);
"""


def give(page: Page, way: str, data: bytes, name: str, kind: str) -> None:
    """Drop or paste a file."""
    page.run(GIVE, way, base64.b64encode(data).decode(), name, kind)


def test_pictures_films_and_sounds(chrome: Any, toy_server: Running, tmp_path: Path) -> None:
    """By button, drop and paste, with a preview, and in what is sent."""
    photo = tmp_path / "photo.png"
    photo.write_bytes(saved("PNG"))
    page = opened(chrome, toy_server, max_tokens=20)
    until(lambda: "image, video, audio" in page.one("#attach").get_attribute("title"))
    page.one("#files").send_keys(str(photo))
    until(lambda: attached(page) == ["photo.png"])
    for way, data, name, kind in (
        ("paste", saved("PNG", (30, 20)), "pasted.png", "image/png"),
        ("drop", wav(), "voice.wav", "audio/wav"),
        ("drop", b"\xff\xfe\x00", "letter.doc", "application/msword"),
    ):
        give(page, way, data, name, kind)
        until(lambda name=name: name in attached(page) or name in page.one("#attached").text)
    assert attached(page) == ["photo.png", "pasted.png", "voice.wav"]
    assert (
        "letter.doc: it is no text in UTF-8; this model takes text, image, video, audio." in page.one("#attached").text
    )
    until(lambda: page.run("return document.querySelector('#attached img').naturalWidth") == 40)
    page.picture("attached")
    page.click("[aria-label='Remove pasted.png']")
    assert attached(page) == ["photo.png", "voice.wav"]
    before = toy_server.metric("media_items_total")
    page.send("What?")
    until(lambda: "tokens" in "".join(page.texts(".assistant .note")))
    assert attached(page) == []
    assert toy_server.metric("media_items_total") == before + 2
    assert page.texts(".user figcaption") == ["photo.png", "voice.wav"]
    page.reload()  # and the next message sends them again
    until(lambda: page.all(".user img"))
    page.send("And now?")
    until(lambda: len(page.texts(".assistant .note")) == 2)
    assert toy_server.metric("prefix_cache_hits_total") > 0
    page.picture("media")
    page.check_quiet()


def test_a_picture_alone_may_be_sent(chrome: Any, toy_server: Running, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(saved("PNG"))
    page = opened(chrome, toy_server, max_tokens=20)
    until(lambda: "image" in page.one("#attach").get_attribute("title"))
    page.one("#files").send_keys(str(photo))
    until(lambda: attached(page) == ["photo.png"])
    page.click("#send")
    until(lambda: "tokens" in "".join(page.texts(".assistant .note")))


def test_a_model_of_text_takes_text_files_alone(chrome: Any, tiny_server: Running) -> None:
    page = opened(chrome, tiny_server, max_tokens=20)
    until(lambda: page.one("#model").text == "tiny")
    give(page, "drop", saved("PNG"), "photo.png", "image/png")
    until(lambda: "photo.png: this model takes text." in page.one("#attached").text)
    give(page, "paste", "grüße\n".encode(), "notes.txt", "text/plain")
    until(lambda: attached(page) == ["notes.txt"])
    page.send("Read this")
    until(lambda: "tokens" in "".join(page.texts(".assistant .note")))
    assert page.texts(".user summary") == ["notes.txt (2 lines)"]


def test_adapters_are_chosen(chrome: Any, tiny_model: Path, tmp_path: Path) -> None:
    """Where there are several models one is chosen, which the page keeps, as long as it is served."""
    from selenium.webdriver.support.ui import Select

    adapter = write_adapter(tmp_path / "adapter", tiny_model)
    flags = ("--served-model-name", "owner/tiny", "--kv-cache-memory", "16MiB", "--allow-runtime-lora-updating")
    with server(str(tiny_model), *flags) as running:
        page = opened(chrome, running, max_tokens=20)
        until(lambda: page.one("#model").text == "tiny")
        assert not page.one("#models").is_displayed()
        loaded = running.post("/v1/load_lora_adapter", {"lora_name": "mine", "lora_path": str(adapter)})
        assert loaded.status_code == 200
        page.reload()
        until(lambda: page.one("#models").is_displayed())
        assert not page.one("#model").is_displayed()
        select = Select(page.one("#models"))
        assert [option.text for option in select.options] == ["tiny", "mine"]
        assert select.first_selected_option.text == "tiny"
        select.select_by_visible_text("mine")
        page.send("Hello")
        until(lambda: page.texts(".assistant .note") and page.texts(".assistant .note")[0].endswith(", mine"))
        page.picture("adapters")
        assert any('"adapter": "mine"' in line for line in running.log)
        page.reload()
        until(lambda: Select(page.one("#models")).first_selected_option.text == "mine")
        page.check_quiet()
        assert running.post("/v1/unload_lora_adapter", {"lora_name": "mine"}).status_code == 200
        page.click(".again")
        until(lambda: "not served here" in " ".join(page.texts(".ending")))
        until(lambda: page.one("#model").is_displayed())  # there is one model again, which answers
        page.click(".retry")
        until(lambda: page.texts(".assistant .note") and "tiny" in page.texts(".assistant .note")[0])
        assert "mine" not in page.texts(".assistant .note")[0]
