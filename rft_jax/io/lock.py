"""One process, or job, writes a run's files: a lock for disks, NFS and buckets. Imports no jax.

A lock is a file that names its holder and is refreshed every few seconds. It appears by an
operation that succeeds for one process only. Whether its holder lives is seen directly where it is
a process of this machine (and container); elsewhere by whether the file is refreshed, which needs
no clocks that agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from rft_jax.errors import TemporaryError
from rft_jax.io.drafts import Process, this_process
from rft_jax.io.paths import Folder, in_bucket, write_atomically, write_new

REFRESH_SECONDS = 10.0
"""Time between two signs of life."""
STALE_SECONDS = 45.0
"""Without one, the holder of a lock is dead."""

Show = Callable[[str], None]


@contextlib.contextmanager
def held(paths: Sequence[Folder], show: Show = lambda _: None) -> Iterator[None]:
    """Hold the locks of these names, in this process, or raise TemporaryError that says who does.

    show: told of a wait for a holder that cannot be seen from here.
    """
    content = json.dumps(
        {
            "host": platform.node(),
            **this_process()._asdict(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "token": uuid.uuid4().hex,
        }
    )
    taken: list[Folder] = []
    over = threading.Event()
    keeper = threading.Thread(target=_keep, args=(taken, content, over), daemon=True)
    # From the first lock on: the holder of the next one may be watched for long.
    keeper.start()
    try:
        dead: set[str] = set()
        for path in paths:
            _take(path, content, dead, show)
            taken.append(path)
        yield
    finally:
        over.set()
        keeper.join()
        for path in taken:
            _release(path, content)


def _take(path: Folder, content: str, dead: set[str], show: Show) -> None:
    """dead: locks of holders that are known to be."""
    while not write_new(path, content):
        found = _read(path)
        if found == content:  # written by a request whose answer was lost
            return
        if found is None:  # given back meanwhile
            continue
        if found not in dead and _lives(path, found, show):
            holder = _facts(found)
            raise TemporaryError(
                f"{path}: process {holder.get('pid', '?')} on {holder.get('host', '?')} is at work "
                f"here since {holder.get('since', '?')}: wait for its end, stop it, or use another "
                "--workdir."
            )
        if _facts(found):
            dead.add(found)
        # Many may see the same dead holder. Its lock is replaced, not removed, by the one of them
        # that holds the lock of doing so: at no time is there none to be taken.
        claim = path.with_name(f"{path.name}.claim")
        _take(claim, content, dead, show)
        try:
            if _read(path) == found:
                write_atomically(path, content)
                return
        finally:
            _release(claim, content)


def _lives(path: Folder, found: str, show: Show) -> bool:
    facts = _facts(found)
    try:
        process = Process(facts["place"], facts["pid"], facts["started"])
        lives = process.lives()
    except (KeyError, TypeError):  # half written, or of another version
        lives = None
    if lives is not None:
        return lives
    sign, until = _sign(path), time.monotonic() + STALE_SECONDS
    show(
        f"{path} is of process {facts.get('pid', '?')} on {facts.get('host', '?')}: watching for "
        f"{STALE_SECONDS:.0f} seconds whether it is still at work"
    )
    while time.monotonic() < until:
        time.sleep(min(1.0, STALE_SECONDS / 10))
        if _sign(path) != sign:
            return _read(path) is not None
    return False


def _facts(found: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        facts = json.loads(found)
        if isinstance(facts, dict):
            return facts
    return {}


def _read(path: Folder) -> str | None:
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None


def _sign(path: Folder) -> object:
    """What a sign of life changes."""
    try:
        if in_bucket(path):
            return path.stat().mtime  # type: ignore[union-attr]
        # Opened: NFS asks the server only then.
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns, file.read()
    except FileNotFoundError:
        return None


def _keep(taken: Sequence[Folder], content: str, over: threading.Event) -> None:
    while not over.wait(REFRESH_SECONDS):
        for path in tuple(taken):
            # What fails may succeed the next time; a full disk still takes a new time.
            with contextlib.suppress(Exception):
                found = _read(path)
                if found not in (None, content):
                    _lost(path)
                if found is None:  # removed by hand
                    write_new(path, content)
                elif in_bucket(path):
                    write_atomically(path, content)
                else:
                    os.utime(path)


def _lost(path: Folder) -> None:
    """This process stood still for so long that another one took its place: it must not write."""
    print(
        f"rft-jax: error: {path}: another process has taken over, since this one gave no sign of "
        "life: it ends here.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(os.EX_TEMPFAIL)


def _release(path: Folder, content: str) -> None:
    # Of several types in a bucket. What stays is the lock of a dead process.
    with contextlib.suppress(Exception):
        if _read(path) == content:
            path.unlink()
