"""/stats: scales, windows and states that people understand. Driven in a browser."""

import pytest

from tests.server.browser import NEEDS_BROWSER, Page, until
from tests.server.scripted_page import Script

pytestmark = NEEDS_BROWSER


def metrics(
    up: int = 1, state: str = "running", tokens: int = 0, running: int = 0, first: tuple[int, int] = (0, 0)
) -> str:
    """Numbers as the server gives them; `first` are times to the first token within 0.25 s, and above."""
    states = {name: int(name == state) for name in ("running", "starting", "restarting", "dead")}
    lines = [f'octavo:replicas{{model_name="m",state="{name}"}} {value}.0' for name, value in states.items()]
    name = "octavo:time_to_first_token_seconds"
    lines += [
        f'{name}_bucket{{le="0.1"}} 0.0',
        f'{name}_bucket{{le="0.25"}} {first[0]}.0',
        f'{name}_bucket{{le="+Inf"}} {sum(first)}.0',
    ]
    lines += [f"{name}_count {sum(first)}.0", f"{name}_sum {0.2 * first[0] + 3 * first[1]}"]
    lines += [f'octavo:engine_up{{engine="0"}} {up}.0', f"octavo:generation_tokens_total {tokens}.0"]
    return "\n".join([*lines, f'octavo:num_requests_running{{engine="0"}} {running}.0', ""])


def shown(page: Page, title: str) -> str:
    return page.texts(f"[aria-label='{title}'] output")[0]


def test_numbers_and_scales(page: Page, script: Script) -> None:
    script.metrics = metrics(running=3)
    page.show("/stats")
    until(lambda: page.one("#state").text == "Up: the engine runs.")
    assert shown(page, "Requests running") == "3"
    script.metrics = metrics(running=3, tokens=400, first=(19, 1))
    until(lambda: shown(page, "Tokens written a second") not in ("–", "0"))
    until(lambda: shown(page, "Time to the first token") == "340 ms")  # (19 times 0.2 s and 3 s) / 20
    assert page.texts("[aria-label='Time to the first token'] .more") == ["95 % within 250 ms"]
    marks = page.run(
        "return [...document.querySelectorAll(\"[aria-label='Requests running'] text\")].map((e) => e.textContent)"
    )
    assert marks == ["0", "2.5", "5", "1 min ago", "now"]
    page.picture(f"stats-scales-{page.view}")
    page.check_width()
    page.check_quiet()


def test_windows(page: Page, script: Script) -> None:
    from selenium.webdriver.support.ui import Select

    script.metrics = metrics()
    page.show("/stats")
    until(lambda: page.one("#state").text.startswith("Up"))
    for value, name, text in (("600", "10 min ago", "the last 10 minutes"), ("3600", "1 h ago", "the last hour")):
        Select(page.one("#window")).select_by_value(value)
        until(lambda name=name: name in page.run("return document.querySelector('.tile svg').textContent"))
        assert text in page.one(".tile svg").get_attribute("aria-label")


@pytest.mark.parametrize(
    ("status", "text", "told"),
    [
        (200, metrics(up=0, state="dead"), "Down: the engine is not running."),
        (200, metrics(up=0, state="restarting"), "Down: the engine is starting again."),
        (502, "<html>Bad Gateway</html>", "Down: the server answers 502, without numbers."),
        (200, "<html>Sign in</html>", "Down: the server answers 200, without numbers."),
    ],
)
def test_down_is_said(page: Page, script: Script, status: int, text: str, told: str) -> None:
    script.metrics = metrics(running=2)
    page.show("/stats")
    until(lambda: shown(page, "Requests running") == "2")
    script.metrics, script.metrics_status = text, status
    until(lambda: page.one("#state").text == told)
    assert "since" in page.one("#since").text
    assert set(page.texts(".tile output")) == {"–"}  # the last numbers are not those of now
    assert page.driver.title.startswith("Down")
    page.picture(f"stats-down-{page.view}")
    page.check_width()
    script.metrics, script.metrics_status = metrics(running=1), 200
    until(lambda: page.one("#state").text == "Up: the engine runs.")
    assert shown(page, "Requests running") == "1"


def test_a_server_that_is_gone(page: Page, script: Script) -> None:
    script.metrics = metrics()
    page.show("/stats")
    until(lambda: page.one("#state").text.startswith("Up"))
    page.run("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    until(lambda: page.one("#state").text == "Down: the server does not answer.")
