"""Folders of runs: on a disk, or in a bucket as `gs://BUCKET/FOLDER`, through etils.epath. No jax.

A bucket has no folders to make, and objects that appear whole or not at all, to all processes at
once; but nothing can be appended to. So a log that grows is kept on this machine's disk, and copied
(`Mirror`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from etils import epath

from rft_jax.errors import UserError

Folder: TypeAlias = Path | epath.Path
"""Or a file, on a disk or in a bucket."""


def folder_of(text: str | os.PathLike[str]) -> Folder:
    """The folder, or file, of that name. Raises UserError for a place that is neither."""
    name = os.fspath(text)
    if _is_plain(name):
        return Path(name)
    if not name.startswith("gs://"):
        raise UserError(f"{name}: a folder on a disk or gs://BUCKET/FOLDER is expected.")
    if not any(map(importlib.util.find_spec, ("gcsfs", "tensorflow"))):
        raise UserError(f'{name}: a bucket needs gcsfs: pip install "rft_jax[gcs]".')
    import fsspec

    # What it has listed once it would never look up again, and other processes write here too.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(name)


def _is_plain(name: str) -> bool:
    return "://" not in name and not name.startswith("gs:")  # a slash left out


def on_disk(text: str, what: str) -> Path:
    """The folder or file of that name; UserError when it is in a bucket. what: the option."""
    if not _is_plain(text):
        raise UserError(f"{what} is {text}: a place on a disk is expected; copy it afterwards.")
    return Path(text)


def in_bucket(path: Folder) -> bool:
    """Whether it is in a bucket."""
    return "://" in str(path)


def make(folder: Folder) -> None:
    """Make a folder and those it is in, where there are folders to make."""
    if not in_bucket(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def writing(folder: Folder) -> Iterator[None]:
    """Turns errors of many types, in writing below a folder, into one UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # clients of buckets have types of their own
        text = getattr(error, "strerror", None) or str(error)
        reason = " ".join(text.split())[:300] or type(error).__name__
        raise UserError(
            f"{folder}: cannot write here ({reason}): use another --workdir."
        ) from error


def write_atomically(path: Folder, content: str | bytes) -> None:
    """Write a file so that a kill at any instant leaves the old one or the new one whole."""
    data = content.encode() if isinstance(content, str) else content
    if isinstance(path, epath.Path) and in_bucket(path):
        path.write_bytes(data)
        return
    # The process id keeps the processes of a job off each other's file.
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


class Mirror:
    """A folder on this machine's disk, `local`, for files that grow or that only a disk can have.

    It is `folder` itself where that is on a disk, and nothing is copied. Of a folder in a bucket it
    is an empty one, whose files are copied there whole when they have changed.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._remote = in_bucket(folder)
        self.local = Path(tempfile.mkdtemp(prefix="rft_jax-")) if self._remote else Path(folder)
        self._copied: dict[str, tuple[int, int]] = {}
        self._turn = threading.Lock()
        self._pool = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def fetch(self, name: str) -> Path:
        """The path of a file in `local`, with what `folder` has of it."""
        path = self.local / name
        if self._remote and (self.folder / name).exists():
            path.write_bytes((self.folder / name).read_bytes())
        return path

    def copy_soon(self) -> None:
        """Copy beside other work; an error of that shows in the next call."""
        if not self._remote:
            return
        if self._last is not None and self._last.done():
            self._last.result()
        # One that has not begun copies what is there when it begins.
        if self._last is None or self._last.running() or self._last.done():
            self._last = self._pool.submit(self.copy)

    def copy(self) -> None:
        """Copy what has changed since; it is in `folder` when this returns."""
        if not self._remote:
            return
        with self._turn, writing(self.folder):
            for path in sorted(self.local.rglob("*")):
                if not path.is_file():
                    continue
                name, state = path.relative_to(self.local).as_posix(), path.stat()
                seen = state.st_size, state.st_mtime_ns
                if self._copied.get(name) != seen:
                    write_atomically(self.folder / name, path.read_bytes())
                    self._copied[name] = seen

    def close(self) -> None:
        """Copy a last time, and remove the folder on the disk that stood in for a bucket."""
        self._pool.shutdown()
        try:
            self.copy()
        finally:
            if self._remote:
                shutil.rmtree(self.local)
