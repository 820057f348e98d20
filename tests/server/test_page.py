"""The chat page and the statistics, driven in a browser. .ci/run installs Chromium; without one these are skipped."""

import base64
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.adapter_folders import write_adapter
from tests.media.test_hostile import saved, wav
from tests.server.running import Running, server

PICTURES = Path(__file__).parents[2] / ".artifacts" / "screenshots"
"""Kept by CI, ignored by git."""
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(
        (CHROMIUM is None or DRIVER is None) and "CI" not in os.environ,
        reason="there is no Chromium with its driver here",
    ),
]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}"):
        options.add_argument(argument)
    options.add_argument("--window-size=1000,800")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


def picture(browser: Any, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(PICTURES / f"{name}.png"))


def until(test: Any, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := test()):
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.02)
    return found


def answers(browser: Any) -> list[str]:
    """The texts of the answers, in one look: the page replaces their elements as they grow."""
    return browser.execute_script("return [...document.querySelectorAll('.assistant')].map((e) => e.innerText)")


def button(browser: Any, name: str) -> Any:
    return browser.find_element("id", name)


def check_quiet(browser: Any, url: str) -> None:
    """Nothing on the console, and nothing asked of another host."""
    import json

    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert errors == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
    assert urls
    assert [u for u in urls if not u.startswith((url, "data:", "chrome:"))] == []


def test_a_conversation(browser: Any, smollm_server: Running) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(smollm_server.url + "/")
    question = browser.find_element("id", "question")
    assert browser.switch_to.active_element == question  # one may type at once
    question.send_keys("Tell me a long story about a lighthouse." + Keys.ENTER)
    until(lambda: answers(browser) and len(answers(browser)[0]) > 20)
    picture(browser, "streaming")
    lengths = [len(answers(browser)[0])]
    until(lambda: len(answers(browser)[0]) > lengths[0])  # it streams

    button(browser, "stop").click()
    until(lambda: "stopped" in answers(browser)[0])
    smollm_server.until(lambda: smollm_server.metric("num_requests_running") == 0)

    question.send_keys("What is the capital of France?" + Keys.ENTER)
    until(lambda: len(answers(browser)) == 2 and "tokens/s" in answers(browser)[1], 60)
    button(browser, "again").click()
    until(lambda: len(answers(browser)) == 2 and "tokens/s" in answers(browser)[1], 60)
    picture(browser, "answered")

    browser.refresh()
    until(lambda: len(answers(browser)) == 2)
    assert browser.find_elements("css selector", ".message.user")[0].text.startswith("Tell me a long story")
    check_quiet(browser, smollm_server.url)

    button(browser, "new").click()
    assert answers(browser) == []


def test_markdown_is_shown_and_markup_is_not_run(browser: Any, smollm_server: Running) -> None:
    browser.get(smollm_server.url + "/")
    source = "# Title\n\nSome **bold** `code` and <img src=x onerror=alert(1)>\n\n- one\n- two\n\n```py\nx = '<b>'\n```"
    html = browser.execute_script("return markdown(arguments[0])", source)
    assert "<h2>Title</h2>" in html
    assert "<strong>bold</strong>" in html
    assert "<li>one</li><li>two</li></ul>" in html
    assert "<img" not in html
    assert "<b>" not in html
    assert "javascript:" not in browser.execute_script("return markdown('[x](javascript:alert(1))')").split("(")[0]
    assert "<a" not in browser.execute_script("return markdown('[x](javascript:alert(1))')")


def test_settings_theme_and_phone(browser: Any, smollm_server: Running) -> None:
    browser.get(smollm_server.url + "/")
    button(browser, "settings-button").click()
    field = button(browser, "max_tokens")
    field.clear()
    field.send_keys("7")
    browser.find_element("css selector", "dialog button").click()
    before = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    button(browser, "theme").click()
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") != before
    button(browser, "question").send_keys("Hello\n")
    until(lambda: answers(browser) and "7 tokens" in answers(browser)[0], 60)
    browser.set_window_size(390, 780)
    picture(browser, "phone")
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_statistics(browser: Any, smollm_server: Running) -> None:
    browser.get(smollm_server.url + "/stats")
    until(lambda: browser.find_element("id", "state").text == "the engine runs")
    smollm_server.post(
        "/v1/completions", {"prompt": "One, two,", "max_tokens": 60, "ignore_eos": True, "temperature": 0}
    )
    outputs = browser.find_elements("css selector", ".tile output")
    until(lambda: all(o.text for o in outputs))
    picture(browser, "stats")
    check_quiet(browser, smollm_server.url)


@pytest.fixture(scope="module")
def toy_server(toy_model: tuple[Path, dict[str, str]]) -> Iterator[Running]:
    limits = ("--kv-cache-memory", "64MiB", "--max-model-len", "1024")
    with server(str(toy_model[0]), *limits, "--served-model-name", "toy", **toy_model[1]) as made:
        yield made


def attached(browser: Any) -> list[str]:
    """What is attached to the next message, by its name."""
    return browser.execute_script(
        "return [...document.querySelectorAll('#attached figcaption')].map((e) => e.textContent)"
    )


GIVE = """
const bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0));
const files = new DataTransfer();
files.items.add(new File([bytes], arguments[2], { type: arguments[3] }));
const event = arguments[0] === "paste" ? new ClipboardEvent("paste", { clipboardData: files, bubbles: true })
  : new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true });
document.getElementById("question").dispatchEvent(event);
"""


def test_pictures_films_and_sounds(browser: Any, toy_server: Running, tmp_path: Path) -> None:
    """By button, drop and paste, with a preview, and in what is sent."""
    photo = tmp_path / "photo.png"
    photo.write_bytes(saved("PNG"))
    browser.get(toy_server.url + "/")
    until(lambda: button(browser, "attach").is_displayed())
    assert button(browser, "files").get_attribute("accept") == "image/*,video/*,audio/*"
    button(browser, "files").send_keys(str(photo))
    until(lambda: attached(browser) == ["photo.png"])
    for way, data, name, kind in (
        ("paste", saved("PNG", (30, 20)), "pasted.png", "image/png"),
        ("drop", wav(), "voice.wav", "audio/wav"),
        ("drop", b"text", "notes.txt", "text/plain"),
    ):
        browser.execute_script(GIVE, way, base64.b64encode(data).decode(), name, kind)
        until(lambda name=name: name in attached(browser) or name in browser.find_element("id", "attached").text)
    assert attached(browser) == ["photo.png", "pasted.png", "voice.wav"]
    assert "notes.txt: this model takes text, image, video, audio." in browser.find_element("id", "attached").text
    width = "return document.querySelector('#attached img').naturalWidth"
    until(lambda: browser.execute_script(width) == 40)
    picture(browser, "attached")
    browser.find_element("css selector", "[aria-label='Remove pasted.png']").click()
    assert attached(browser) == ["photo.png", "voice.wav"]
    before = toy_server.metric("media_items_total")
    button(browser, "question").send_keys("What?\n")
    until(lambda: "tokens" in "".join(answers(browser)))
    assert attached(browser) == []
    assert toy_server.metric("media_items_total") == before + 2
    shown = browser.find_elements("css selector", ".user figcaption")
    assert [caption.text for caption in shown] == ["photo.png", "voice.wav"]
    browser.refresh()  # and the next message sends them again
    until(lambda: browser.find_elements("css selector", ".user img"))
    button(browser, "question").send_keys("And now?\n")
    until(lambda: len(answers(browser)) == 2 and "tokens" in answers(browser)[1])
    assert toy_server.metric("prefix_cache_hits_total") > 0
    picture(browser, "media")
    check_quiet(browser, toy_server.url)


def test_a_picture_alone_may_be_sent(browser: Any, toy_server: Running, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(saved("PNG"))
    browser.get(toy_server.url + "/")
    until(lambda: button(browser, "attach").is_displayed())
    button(browser, "files").send_keys(str(photo))
    until(lambda: attached(browser) == ["photo.png"])
    button(browser, "send").click()
    until(lambda: "tokens" in "".join(answers(browser)))


def test_a_model_of_text_offers_nothing(browser: Any, tiny_server: Running) -> None:
    browser.get(tiny_server.url + "/")
    until(lambda: browser.find_element("id", "model").text == "tiny")
    assert not button(browser, "attach").is_displayed()
    browser.execute_script(GIVE, "drop", "", "photo.png", "image/png")
    assert attached(browser) == []


def test_adapters_are_chosen(browser: Any, tiny_model: Path, tmp_path: Path) -> None:
    """Where there are several models one is chosen, which the page keeps, as long as it is served."""
    from selenium.webdriver.support.ui import Select

    adapter = write_adapter(tmp_path / "adapter", tiny_model)
    flags = ("--served-model-name", "owner/tiny", "--kv-cache-memory", "16MiB", "--allow-runtime-lora-updating")
    with server(str(tiny_model), *flags) as running:
        browser.get(running.url + "/")
        until(lambda: button(browser, "model").text == "tiny")
        assert not button(browser, "models").is_displayed()
        assert (
            running.post("/v1/load_lora_adapter", {"lora_name": "mine", "lora_path": str(adapter)}).status_code == 200
        )
        browser.refresh()
        until(lambda: button(browser, "models").is_displayed())
        assert not button(browser, "model").is_displayed()
        select = Select(button(browser, "models"))
        assert [option.text for option in select.options] == ["tiny", "mine"]
        assert select.first_selected_option.text == "tiny"
        select.select_by_visible_text("mine")
        button(browser, "question").send_keys("Hello\n")
        until(lambda: answers(browser) and answers(browser)[0].endswith(", mine"), 60)
        picture(browser, "adapters")
        assert any('"adapter": "mine"' in line for line in running.log)
        browser.set_window_size(390, 780)
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        browser.refresh()
        until(lambda: Select(button(browser, "models")).first_selected_option.text == "mine")
        check_quiet(browser, running.url)
        assert running.post("/v1/unload_lora_adapter", {"lora_name": "mine"}).status_code == 200
        button(browser, "again").click()
        until(lambda: "not served here" in answers(browser)[0])
        until(lambda: button(browser, "model").is_displayed())  # there is one model again, which answers
        button(browser, "again").click()
        until(lambda: " tokens" in answers(browser)[0] and "mine" not in answers(browser)[0], 60)
