"""What a worker may use, and how the kernel holds it to that. Imports no jax."""

from __future__ import annotations

import math
import os
import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Limits(NamedTuple):
    """Limits of a pool and of each of its workers.

    workers: processes that judge at the same time.
    timeout_seconds: wall time that one item may take, counted from when its work begins.
    memory_mb: address space in MiB that a worker may add to what it has once its verifier is
    loaded; an item that asks for more is undecided ("out of memory").
    max_characters: length of the longest reference or output that is judged; an item above it is
    undecided ("too long") and reaches no worker.
    """

    workers: int
    timeout_seconds: float
    memory_mb: int = 2048
    max_characters: int = 200_000


def forbid_core_dumps() -> None:
    """A crash of this process or of its children writes no file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_memory(mebibytes: int) -> None:
    """Let the address space of this process grow by so much from now on."""
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
