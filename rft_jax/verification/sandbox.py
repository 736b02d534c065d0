"""What a worker may do and use: no text run as code, bounded memory and processor time.

An audit hook of the interpreter refuses code, new programs and writing to files, whatever library
the verifier calls with a model's text. A hook cannot be removed: it is for processes that only
judge. The kernel enforces the rest. Imports no jax.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

NEVER = frozenset(
    {
        "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "pty.spawn",
        "subprocess.Popen", "socket.bind", "socket.connect",
    }
)  # fmt: skip
"""Audit events that are blocked: new programs, new processes, connections."""

_PR_SET_CHILD_SUBREAPER = 36
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Blocked(BaseException):
    """A verifier tried what it must not; no `except Exception` of a library hides it."""

    def __init__(self, event: str) -> None:
        super().__init__(event)
        self.event = event


def forbid_code(*, compiling: bool = True) -> None:
    """Block for the rest of this process: NEVER, and, unless a module is being imported, `open` for
    writing and, with `compiling`, `compile` of text."""
    sys.addaudithook(functools.partial(_check, compiling))


def _check(compiling: bool, event: str, arguments: tuple[Any, ...]) -> None:
    if event in NEVER:
        raise Blocked(event)
    if event == "compile":
        forbidden = compiling and arguments[0] is not None
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


def forbid_core_dumps() -> None:
    """A crash of this process or of its children writes no file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def adopt_orphans() -> None:
    """Linux: a process below this one whose parent ends becomes a child of this one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> list[int]:
    """The child processes of this one, which has one thread; none where the kernel does not say."""
    try:
        text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return []
    return [int(pid) for pid in text.split()]


def limit_memory(mebibytes: int) -> None:
    """Let the address space of this process grow by this much (MiB) from now on."""
    # Where the kernel knows no such limit (macOS) the call fails; the deadline then still holds.
    with suppress(ValueError, OSError):
        _set_soft(resource.RLIMIT_AS, _mapped_bytes() + (mebibytes << 20))


class ProcessorTime:
    """Processor time of this process: `allow` gives it enough for one more item.

    The parent kills a worker past its deadline. This holds even while the parent is stopped: the
    kernel then ends the process with SIGXCPU, about a second after the deadline.
    """

    def __init__(self, timeout_seconds: float, threads: int) -> None:
        """threads: how many of its threads may run at once within a deadline."""
        self._seconds = timeout_seconds * threads + 1.0  # the kernel counts in whole seconds

    def allow(self) -> None:
        """The next item may take its time, whatever was used before."""
        _set_soft(resource.RLIMIT_CPU, math.ceil(time.process_time() + self._seconds))


def _set_soft(kind: int, wanted: int) -> None:
    """Set a soft limit as far as the hard one, which stays, allows."""
    _, hard = resource.getrlimit(kind)
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(kind, (soft, hard))


def _mapped_bytes() -> int:
    """Address space in use; where the kernel does not tell it, the most memory ever used."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * os.sysconf("SC_PAGE_SIZE")
