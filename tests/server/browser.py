"""Chromium without a screen, for the tests of the pages. .ci/run installs it; without one they are skipped."""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PICTURES = Path(__file__).parents[2] / ".artifacts" / "screenshots"
"""Kept by CI, ignored by git."""
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NEEDS_BROWSER = [
    pytest.mark.alone,
    pytest.mark.skipif(
        (CHROMIUM is None or DRIVER is None) and "CI" not in os.environ,
        reason="there is no Chromium with its driver here",
    ),
]
SIZES = {"screen": (1000, 800), "phone": (320, 640)}


def until(test: Any, seconds: float = 60.0) -> Any:
    """What `test()` gives, once it gives something."""
    deadline = time.monotonic() + seconds
    while not (found := test()):
        assert time.monotonic() < deadline, "it did not come to hold"
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Any]:
    """A driver, with a profile of its own in `folder`."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={folder}"):
        options.add_argument(argument)
    options.add_argument("--window-size=1000,800")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


@dataclass
class Page:
    """A tab with one of the pages, as a person uses it."""

    driver: Any
    url: str
    view: str = "screen-light"

    @property
    def is_phone(self) -> bool:
        return self.view.startswith("phone")

    def show(self, path: str = "/", view: str | None = None) -> "Page":
        """Load a page; its storage stays as it is."""
        self.view = view or self.view
        size, theme = self.view.split("-")
        width, height = SIZES[size]
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": size == "phone"})
        self.system_theme(theme)
        self.driver.get("about:blank")
        self.driver.get(self.url + path)
        if path.partition("#")[0] == "/":
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        until(lambda: self.run("return document.documentElement.dataset.ready"))

    def system_theme(self, theme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def clear(self) -> None:
        """Forget all that was kept, and all that was logged."""
        self.driver.get("about:blank")
        self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": self.url, "storageTypes": "all"})
        self.driver.get_log("browser")
        self.driver.get_log("performance")

    def reload(self) -> None:
        self.driver.refresh()
        self.wait_ready()

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, script: str, *arguments: Any) -> Any:
        """The result of an async function's body."""
        tell = "then(done, (error) => done({ error: String(error) }))"
        text = f"const done = arguments[arguments.length - 1]; (async () => {{ {script} }})().{tell}"
        return self.driver.execute_async_script(text, *arguments)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        """The element, once it is there."""
        return until(lambda: next(iter(self.all(selector)), None))

    def click(self, selector: str) -> None:
        until(lambda: self.one(selector).is_displayed())
        self.one(selector).click()

    def texts(self, selector: str) -> list[str]:
        """In one look: the page replaces elements as they grow."""
        return self.run("return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)", selector)

    def type(self, text: str, selector: str = "#question") -> None:
        self.one(selector).send_keys(text)

    def send(self, text: str) -> None:
        """Write a message and send it, on a phone by the button."""
        from selenium.webdriver.common.keys import Keys

        self.type(text)
        if self.is_phone:
            self.click("#send")
        else:
            self.type(Keys.ENTER)

    def escape(self) -> None:
        from selenium.webdriver.common.keys import Keys

        self.driver.switch_to.active_element.send_keys(Keys.ESCAPE)

    def answers(self) -> list[str]:
        return self.texts(".assistant > .content")

    def wait_answer(self, text: str, count: int | None = None) -> None:
        """Until the last answer is this, and is complete."""
        until(lambda: self.answers()[-1:] == [text] and self.run("return !document.querySelector('.waiting')"))
        if count is not None:
            assert len(self.answers()) == count

    def show_list(self) -> None:
        """Have the conversations' list in sight."""
        if not self.run("return document.body.classList.contains('listed')"):
            self.click("#lists")

    def hide_list(self) -> None:
        if self.is_phone and self.run("return document.body.classList.contains('listed')"):
            self.click("#close-lists")

    def titles(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('#conversations .title')].map((e) => e.textContent)")

    def open(self, row: int) -> None:
        """Choose a conversation in the list; in one step, as the list may be drawn anew."""
        script = "return document.querySelectorAll('#conversations .open')[arguments[0]]"
        until(lambda: self.run(script, row))
        self.run(script.removeprefix("return ") + ".click()", row)

    def menu(self, title: str, item: str) -> None:
        """Choose from the menu of a conversation in the list."""
        self.show_list()
        script = (
            "const row = [...document.querySelectorAll('#conversations li')]"
            ".find((e) => e.querySelector('.title').textContent === arguments[0]);"
            "if (!row) return false; row.querySelector('summary').click();"
            "[...row.querySelectorAll('.menu button')].find((e) => e.textContent === arguments[1]).click(); return true"
        )
        until(lambda: self.run(script, title, item))

    def stored(self, table: str = "messages") -> list[dict[str, Any]]:
        """What the browser keeps of the conversations."""
        return self.wait_for(
            "const open = indexedDB.open('octavo'); await new Promise((r) => { open.onsuccess = r; });"
            "const all = open.result.transaction(arguments[0]).objectStore(arguments[0]).getAll();"
            "await new Promise((r) => { all.onsuccess = r; }); open.result.close(); return all.result;",
            table,
        )

    def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(PICTURES / f"{name}.png"))

    def check_width(self) -> None:
        """Nothing is wider than the window."""
        assert self.run("return document.documentElement.scrollWidth <= window.innerWidth")

    def check_quiet(self, *allowed: str) -> None:
        """Nothing on the console but what has one of these texts in it, and nothing asked of another host."""
        errors = [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert [line for line in errors if not any(text in line for text in allowed)] == []
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in events if m["method"] == "Network.requestWillBeSent"]
        assert urls
        assert [u for u in urls if not u.startswith((self.url, "data:", "chrome:", "blob:" + self.url, "about:"))] == []
