"""What a worker with a built-in verifier cannot do: run text as code, start programs, write files.

An audit hook of the interpreter enforces it, whatever library the verifier calls with a model's
text. A hook cannot be removed: it is for processes that do nothing but judge. Imports no jax.
"""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any

NEVER = frozenset(
    {
        "os.system",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "pty.spawn",
        "subprocess.Popen",
        "socket.bind",
        "socket.connect",
    }
)
"""Audit events that are blocked: new programs, new processes, connections."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Blocked(BaseException):
    """A verifier tried what it must not; no `except Exception` of a library hides it."""

    def __init__(self, event: str) -> None:
        super().__init__(event)
        self.event = event


def install() -> None:
    """Block for the rest of this process: NEVER, and, unless a module is being imported, `compile`
    of text and `open` for writing."""
    sys.addaudithook(_check)


def _check(event: str, arguments: tuple[Any, ...]) -> None:
    if event in NEVER:
        raise Blocked(event)
    if event == "compile":
        forbidden = arguments[0] is not None
    elif event == "open":
        forbidden = bool((arguments[2] or 0) & _WRITING)
    else:
        return
    # A module that is imported late compiles text (namedtuple does) and may write its bytecode.
    if forbidden and not _importing(sys._getframe(1)):
        raise Blocked(event)


def _importing(frame: FrameType | None) -> bool:
    """Whether the code of a module is being run further up the stack."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False
