"""How much Python a call takes, for tests of how cost grows: unlike time, it is the same on a busy machine."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def instructions(function: Callable[[], Any]) -> int:
    """Instructions of Python's virtual machine that a call takes; what it calls in C counts as one."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count
