"""Folders of runs: on a disk, or in a bucket as `gs://BUCKET/FOLDER`, through etils.epath. No jax.

A bucket has no folders to make, and objects that appear whole or not at all, to all processes at
once; but nothing can be appended to. So a log that grows is kept on this machine's disk, and copied
(`Mirror`).
"""

from __future__ import annotations

import contextlib
import errno
import glob
import importlib.util
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TextIO, TypeAlias

from etils import epath

from rft_jax.errors import TemporaryError, UserError
from rft_jax.io.drafts import draft_of, remove_dead, this_process

Folder: TypeAlias = Path | epath.Path
"""Or a file, on a disk or in a bucket."""


def folder_of(text: str | os.PathLike[str]) -> Folder:
    """The folder, or file, of that name. Raises UserError for a place that is neither."""
    name = os.fspath(text)
    if _is_plain(name):
        return Path(name)
    if not name.startswith("gs://") or not name.removeprefix("gs://").strip("/"):
        raise UserError(f"{name}: a folder on a disk or gs://BUCKET/FOLDER is expected.")
    if not importlib.util.find_spec("gcsfs"):
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


_OF_STORAGE = {
    errno.ENOSPC: "free some space, or files where their number is limited",
    errno.EDQUOT: "free some space, or have the quota raised",
    errno.EFBIG: "raise the limit on the size of a file",
    errno.EROFS: "have it mounted for writing",
    errno.EIO: "check the disk",
    errno.ESTALE: "have it mounted again",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the machine's limit on open files",
}
"""Errors of a place that was good before, each with its remedy."""


@contextlib.contextmanager
def storing(folder: Folder) -> Iterator[None]:
    """Turns errors of the storage itself, such as a full disk, into one TemporaryError; what was
    kept before is good. folder: where writing goes, unless the error names a file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = _of_storage(error)
        if found is None:
            raise
        number, name = found
        place = name or (tempfile.gettempdir() if in_bucket(folder) else folder)
        raise TemporaryError(
            f"{place}: cannot write here ({os.strerror(number)}): {_OF_STORAGE[number]}; what was "
            "saved before is whole, and the same command starts from it."
        ) from error


def _of_storage(error: BaseException | None) -> tuple[int, str] | None:
    """(errno, name of the file or nothing) of the storage's error that led to this one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OF_STORAGE:
            return error.errno, os.fsdecode(error.filename or "")
        if not isinstance(error, OSError):
            for number in _OF_STORAGE:  # tensorstore, which writes arrays, has only the text
                if os.strerror(number) in str(error):
                    return number, ""
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def writing(folder: Folder, option: str = "") -> Iterator[None]:
    """Turns errors of many types, in writing below a folder, into one UserError.

    option: how the command line was given that place, if not by --workdir.
    """
    try:
        with storing(folder):
            yield
    except UserError:
        raise
    except Exception as error:  # clients of buckets have types of their own
        text = getattr(error, "strerror", None) or str(error)
        reason = " ".join(text.split())[:300] or type(error).__name__
        raise UserError(
            f"{option}: cannot write here ({reason})."
            if option
            else f"{folder}: cannot write here ({reason}): use another --workdir."
        ) from error


def check_new(path: Path) -> None:
    """UserError when `new_file` would not write there: a file exists, or its folder does not."""
    if _is_stream(path):
        return
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {path} exists, and nothing is overwritten: name another file.")
    check_file(path)


def check_folder(path: Path, names: Sequence[str]) -> None:
    """UserError for what is no folder, and for a folder that holds files of these names."""
    if path.exists() and not path.is_dir():
        raise UserError(f"--out {path} is no folder: name a new one.")
    for name in names:
        if (path / name).exists():
            raise UserError(
                f"--out {path} holds {name}, and nothing is overwritten: name another folder."
            )


def check_file(path: Path, option: str = "--out") -> None:
    """UserError when no file can be written there, new or in place of another."""
    parent = path.resolve().parent
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: name a file.")
    if not parent.is_dir():
        raise UserError(f"{option} {path}: cannot write here ({os.strerror(errno.ENOENT)}).")
    if not _is_stream(path) and not os.access(parent, os.W_OK):
        raise UserError(f"{option} {path}: cannot write here ({os.strerror(errno.EACCES)}).")


@contextlib.contextmanager
def new_file(path: Path, option: str = "--out") -> Iterator[TextIO]:
    """A file beside `path` to write into, which takes its place in the end or vanishes. A symlink
    stays one, and what is no regular file (a device, a pipe, this process's stdout) is written
    through."""
    check_file(path, option)
    target, number = path.resolve(), _own_stream(path)
    with storing(path):
        try:
            if number is not None:
                # Opened by its name, a file that stdout goes into would be emptied.
                with os.fdopen(os.dup(number), "w", encoding="utf-8") as file:
                    yield file
            elif _is_stream(path):
                with path.open("w", encoding="utf-8") as file:
                    yield file
            else:
                remove_dead(target.parent, f"{glob.escape(target.name)}.*.tmp")
                draft = draft_of(target)
                try:
                    with draft.open("w", encoding="utf-8") as file:
                        yield file
                    draft.replace(target)
                finally:
                    draft.unlink(missing_ok=True)
        except OSError as error:
            if error.errno in _OF_STORAGE or (number and error.errno == errno.EPIPE):
                raise
            raise UserError(f"{option} {path}: cannot write here ({error.strerror}).") from error


def _is_stream(path: Path) -> bool:
    """Whether what is there is neither a file nor a folder, or is this process's own stdout."""
    if not path.exists() or path.is_dir():
        return False
    return not path.is_file() or _own_stream(path) is not None


def _own_stream(path: Path) -> int | None:
    """1 or 2 where that stream goes into what is there."""
    if not path.exists():
        return None
    there = path.stat()
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(there, os.fstat(number)):
                return number
    return None


def write_atomically(path: Folder, content: str | bytes) -> None:
    """Write a file so that a kill at any instant leaves the old one or the new one whole."""
    if in_bucket(path):
        path.write_bytes(_bytes(content))
        return
    with _drafted(Path(path), _bytes(content)) as draft:
        draft.replace(path)


def write_new(path: Folder, content: str | bytes) -> bool:
    """Write a file whole unless there is one of that name; whether it was written. Of several
    processes at once it is true in one."""
    if in_bucket(path):
        import fsspec

        if path.exists():  # in a zonal bucket gcsfs would replace it all the same
            return False
        try:
            fsspec.filesystem("gs").pipe_file(str(path), _bytes(content), mode="create")
        except FileExistsError:
            return False
        return True
    with _drafted(Path(path), _bytes(content)) as draft:
        try:
            os.link(draft, path)
        except FileExistsError:
            if path.is_symlink() and not path.exists():  # it can be neither read nor made
                raise
            # NFS may say so to one whose first request succeeded and whose answer was lost.
            with contextlib.suppress(FileNotFoundError):  # given back meanwhile
                return draft.samefile(path)
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            # A file system without hard links.
            try:
                with path.open("xb") as file:
                    file.write(_bytes(content))
            except FileExistsError:
                return False
        return True


@contextlib.contextmanager
def _drafted(path: Path, data: bytes) -> Iterator[Path]:
    """A file beside `path` with what is to be there, safe on the disk; it is gone afterwards."""
    draft = draft_of(path)
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


class Mirror:
    """A folder on this machine's disk, `local`, for files that grow or that only a disk can have.

    It is `folder` itself where that is on a disk, and nothing is copied. Of a folder in a bucket it
    is an empty one, whose files are copied there whole when they have changed.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._remote = in_bucket(folder)
        self.local = _own_folder() if self._remote else Path(folder)
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


def _own_folder() -> Path:
    """An empty folder on this machine's disk; those that killed processes left are removed."""
    remove_dead(Path(tempfile.gettempdir()), "rft_jax-*.tmp")
    return Path(tempfile.mkdtemp(prefix="rft_jax-", suffix=f".{this_process()}.tmp"))
