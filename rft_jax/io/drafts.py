"""Files and folders that are written beside their place, and whose they are. Imports no jax.

A process that is killed leaves its drafts. Their names say which process that was, so that the next
one can remove them, and leaves those of a process at work alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
import platform
import re
import shutil
import time
from pathlib import Path
from typing import NamedTuple

_NAME = re.compile(r"\.(?:(?P<place>[0-9a-f]{8})-)?(?P<pid>\d+)(?:-(?P<started>\d+))?\.tmp$")
"""Of a draft; earlier versions named only the process id."""
_NUMBER = itertools.count()
"""Keeps the threads of a process off each other's."""
_FOREIGN_SECONDS = 30.0
"""Age of a draft from elsewhere that counts as left behind: a write takes less."""


class Process(NamedTuple):
    """A process as others can tell it from any other.

    place: where its id counts, which is one boot of a machine and one container on it; started: in
    the clock of that boot, since ids come back (0 where the system does not say).
    """

    place: str
    pid: int
    started: int

    def __str__(self) -> str:
        return f"{self.place}-{self.pid}-{self.started}"

    def lives(self) -> bool | None:
        """None for a process that cannot be seen from here."""
        if self.place != _place():
            return None
        try:
            with contextlib.suppress(PermissionError):  # of another user, and there
                os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return self.started == 0 or _started(self.pid) in (0, self.started)


def this_process() -> Process:
    """The one that asks."""
    pid = os.getpid()
    return Process(_place(), pid, _started(pid))


def draft_of(path: Path) -> Path:
    """Where this process writes what is to take the place of `path`."""
    return path.with_name(f"{path.name}.{next(_NUMBER)}.{this_process()}.tmp")


def remove_dead(folder: Path, pattern: str = "*.tmp") -> None:
    """Remove the drafts of dead processes among what the pattern names in a folder on a disk."""
    for path in folder.glob(pattern):
        match = _NAME.search(path.name)
        if match is None:
            continue
        place, started = match["place"] or _place(), int(match["started"] or 0)
        with contextlib.suppress(OSError):  # removed meanwhile, or not ours to remove
            lives = Process(place, int(match["pid"]), started).lives()
            if lives is None:
                lives = time.time() - path.stat().st_mtime < _FOREIGN_SECONDS
            if not lives and path.is_dir():
                shutil.rmtree(path)
            elif not lives:
                path.unlink()


@functools.cache
def _place() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        place = boot + os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        place = platform.node()
    return hashlib.sha256(place.encode()).hexdigest()[:8]


def _started(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux, or hidden from this user
        return 0
    state, *fields = text.rpartition(")")[2].split()
    # A zombie holds no file any more.
    return -1 if state in "ZX" else int(fields[18])
