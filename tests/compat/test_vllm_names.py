"""vLLM's modules and names, as scripts and other programs look for them."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from octavo.compat.modules import MODULES
from octavo.compat.vllm import PACKAGES, main

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGES), os.environ.get("PYTHONPATH", "")])}


def python(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_every_name_has_an_answer() -> None:
    for names in MODULES.values():
        for home in names.values():
            module, _, name = home.partition(":")
            assert hasattr(importlib.import_module(module), name), home


PROGRAM = """
import importlib.metadata, importlib.util, pickle, subprocess, sys
import vllm, vllm.envs as envs
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.utils import FlexibleArgumentParser, random_uuid
from vllm.utils.argparse_utils import FlexibleArgumentParser as Newer
assert FlexibleArgumentParser is Newer
assert importlib.util.find_spec("vllm") is not None and importlib.util.find_spec("vllm.nothing") is None
assert vllm.__version__ == importlib.metadata.version("vllm") and vllm.__version_tuple__ == (0, 33, 0)
assert envs.VLLM_USE_V1 and envs.VLLM_API_KEY is None
try:
    envs.VLLM_NOTHING
except AttributeError as error:
    assert "means nothing" in str(error)
else:
    raise AssertionError
init_logger("script").warning_once("said %s", "once")
init_logger("script").warning_once("said %s", "once")
assert pickle.loads(pickle.dumps(vllm.SamplingParams(top_k=3))).top_k == 3
inner = "import vllm.lora.request as r, sys; print(r.LoRARequest.__module__)"
print(subprocess.run([sys.executable, "-c", inner], capture_output=True, text=True, check=True).stdout)
"""


def test_a_program_that_looks_for_vllm(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    out = python("-m", "octavo.compat.vllm", str(script))
    assert "octavo.lora.request" in out  # also in the processes that it starts
    assert out.count("said once") == 1


def test_a_module_is_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys, vllm; print(vllm.__version__, sys.argv[1:], __name__)")
    done = subprocess.run(
        [sys.executable, "-m", "octavo.compat.vllm", "-m", "mine", "--flag"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.stdout == "0.33.0+octavo ['--flag'] __main__\n", done.stderr


def test_the_api_server_is_a_program() -> None:
    out = python("-m", "vllm.entrypoints.openai.api_server", "--max-modle-len", "9", code=2)
    assert "Did you mean --max-model-len" in out
    assert "is no program" in python("-m", "vllm.sampling_params", code=1)


def test_installed_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("octavo.compat.vllm.sysconfig.get_path", lambda _: str(tmp_path))
    assert main(["--install"]) == 0
    program = f"import site; site.addsitedir({str(tmp_path)!r}); import vllm; print(vllm.__version__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "0.33.0+octavo\n", done.stderr
    assert main(["--uninstall"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert "from now on" in capsys.readouterr().out


def test_vllm_itself_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm-0.33.0.dist-info").mkdir()
    (tmp_path / "vllm-0.33.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.33.0\n")
    monkeypatch.setattr("octavo.compat.vllm.sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["--install"]) == 1
    assert not (tmp_path / "octavo_vllm.pth").exists()


@pytest.mark.parametrize("arguments", [["-m"], ["nothing.py"]])
def test_what_cannot_be_run(arguments: list[str]) -> None:
    assert main(arguments) == 2
