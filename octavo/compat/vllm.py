"""Run what imports vllm, unmodified: `python -m octavo.compat.vllm script.py [arguments]`, or `-m module [arguments]`.

`import vllm` and the submodules that scripts use are answered with Octavo's classes of the same names, in the processes
that they start as well. `--install` has all of this environment's programs find them, without this one, until
`--uninstall`: then `lm_eval --model vllm` or `python -m vllm.entrypoints.openai.api_server` run as they are.
"""

import importlib.metadata
import os
import runpy
import sys
import sysconfig
from pathlib import Path

PACKAGES = Path(__file__).parent / "packages"
"""Where `vllm` is, as it is answered."""
PATH_FILE = "octavo_vllm.pth"


def install() -> None:
    """Answer `import vllm` with Octavo, in this process and those that it starts."""
    for loaded in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
        del sys.modules[loaded]
    sys.path.insert(0, str(PACKAGES))
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PACKAGES), *([inherited] if inherited else [])])


def _path_file() -> Path:
    return Path(sysconfig.get_path("purelib"), PATH_FILE)


def install_for_all() -> str:
    """Have all programs of this environment find it; what was done, in words."""
    try:
        found = importlib.metadata.distribution("vllm")
    except importlib.metadata.PackageNotFoundError:
        found = None
    if found is not None and not found.version.endswith("+octavo"):
        return f"vLLM {found.version} itself is installed here. Uninstall it first, or use an environment of its own."
    _path_file().write_text(f"{PACKAGES}\n")
    return f"Programs of this environment find Octavo as vllm from now on ({_path_file()}). --uninstall ends that."


def main(arguments: list[str]) -> int:
    first = arguments[0] if arguments else "-h"
    if first in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    if first == "--install":
        print(install_for_all())
        return 0 if _path_file().exists() else 1
    if first == "--uninstall":
        _path_file().unlink(missing_ok=True)
        print("Programs of this environment find no vllm of Octavo's any more.")
        return 0
    is_module = first == "-m"
    script = Path(arguments[1] if is_module and len(arguments) > 1 else first)
    if is_module and len(arguments) < 2:
        print("octavo: -m needs the name of a module.", file=sys.stderr)
        return 2
    if not is_module and not script.is_file():
        print(f"octavo: there is no script {script}.", file=sys.stderr)
        return 2
    sys.argv = arguments[1:] if is_module else arguments
    sys.path[0] = str(Path.cwd() if is_module else script.resolve().parent)
    install()
    if is_module:
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
