"""The floor `text/` stands without torch: who only reads and writes text starts without it."""

import pkgutil
import subprocess
import sys

import octavo.text


def test_text_imports_no_torch() -> None:
    names = [module.name for module in pkgutil.iter_modules(octavo.text.__path__, "octavo.text.")]
    program = f"import sys, {', '.join(names)}; assert 'torch' not in sys.modules, 'torch'"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
