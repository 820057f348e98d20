"""Whom the processor is given to when both wait for it."""

import json
import subprocess
import sys

import pytest

from octavo.parent_process import SHORTEST_SLICE

LOOK = """
import ctypes, json, os, platform, subprocess, sys, threading
from octavo.parent_process import SET_ATTRIBUTES, _Attributes, wake_at_once

def turn(thread):
    found = _Attributes()
    asked = SET_ATTRIBUTES[platform.machine()] + 1  # sched_getattr(2)
    assert ctypes.CDLL(None).syscall(asked, thread, ctypes.byref(found), ctypes.sizeof(found), 0) == 0
    return [found.runtime, found.policy, found.nice]

if len(sys.argv) > 1:
    print(json.dumps([turn(0)]))
    sys.exit()
os.nice(3)
before, end = turn(0), threading.Event()
other = threading.Thread(target=end.wait)
other.start()
wake_at_once()
child = json.loads(subprocess.run([sys.executable, __file__, "child"], stdout=subprocess.PIPE, check=True).stdout)
print(json.dumps([before, turn(0), turn(other.native_id), *child]))
end.set()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="short turns are Linux's")
def test_threads_that_are_woken_ask_for_short_turns(tmp_path):
    """All that there are, at the same niceness; a process that they start has the usual turns."""
    program = tmp_path / "look.py"
    program.write_text(LOOK)
    done = subprocess.run([sys.executable, program], stdout=subprocess.PIPE, check=True)
    before, own, other, child = json.loads(done.stdout)
    if not before[0]:
        pytest.skip("Linux has turns of a thread's own from 6.12 on")
    assert before[0] > SHORTEST_SLICE
    assert before[2] >= 3
    assert own == other == [SHORTEST_SLICE, 0, before[2]]
    assert child == before
