"""What the pages are made of: files of the package alone, as they were fetched, under a strict policy."""

import subprocess
import sys
from pathlib import Path

import octavo
from octavo.server.pages import is_asked
from tests.server.running import Running

STATIC = Path(octavo.__file__).parent / "server" / "static"
VENDOR = Path(octavo.__file__).parents[1] / "docs" / "vendor.py"


def test_libraries_are_those_of_the_manifest() -> None:
    subprocess.run([sys.executable, str(VENDOR), "--check"], check=True)


def test_every_file_is_served(tiny_server: Running) -> None:
    """With its type and a policy that allows no script but these; and not again to who has it."""
    for path in sorted(p for p in STATIC.rglob("*") if p.is_file()):
        answer = tiny_server.get(f"/static/{path.relative_to(STATIC).as_posix()}")
        assert answer.status_code == 200
        assert answer.content == path.read_bytes()
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        if path.suffix == ".js":
            assert answer.headers["content-type"].startswith("text/javascript")
        again = tiny_server.get(answer.request.url.path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_nothing_else_is_served(tiny_server: Running) -> None:
    for path in ("", "none.js", "../pages.py", "%2e%2e/pages.py", "..%2fpages.py", "vendor", "/etc/passwd"):
        assert tiny_server.get(f"/static/{path}").status_code == 404


def test_files_of_our_own_are_small_and_load_nothing_from_elsewhere() -> None:
    for path in (*STATIC.glob("*.js"), *STATIC.glob("*.css"), *STATIC.glob("*.html")):
        text = path.read_text()
        assert len(text.splitlines()) < 400, path.name
        assert not any(word in text for word in ('src="http', 'href="http', "url(http", 'from "http')), path.name


def test_the_page_learns_the_models_own_values(tiny_server: Running) -> None:
    about = tiny_server.get("/page/model").json()
    fields = {field["name"]: field for field in about["sampling"]}
    assert fields["temperature"]["low"] == 0
    assert fields["top_p"]["high"] == 1
    assert fields["max_tokens"]["default"] is None
    assert about["model"]["name"] == "tiny"
    assert about["model"]["max_model_len"] == 2048


def test_whether_a_template_lets_one_choose_to_think() -> None:
    assert is_asked("enable_thinking", "{% if enable_thinking is defined and enable_thinking is false %}")
    assert is_asked("thinking", "{%- if not thinking %}{%- endif %}")
    assert not is_asked("thinking", "{{ 'Write <thinking> first, if you like thinking.' }}")
