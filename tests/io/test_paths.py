"""Folders on a disk: what is written is whole, and mirrors are the folders themselves."""

from __future__ import annotations

import errno
import importlib.util
import os
import resource
import stat
import threading
from pathlib import Path

import pytest

from rft_jax.errors import TemporaryError, UserError
from rft_jax.io.paths import (
    Mirror,
    check_new,
    folder_of,
    in_bucket,
    new_file,
    on_disk,
    storing,
    write_atomically,
    write_new,
)


@pytest.mark.parametrize("name", ["runs/study", "/tmp/a b", ".", "gs/runs"])
def test_a_name_is_a_place_on_the_disk(name: str) -> None:
    assert folder_of(name) == Path(name)
    assert not in_bucket(folder_of(name))
    assert on_disk(name, "--out") == Path(name)


@pytest.mark.parametrize(
    "name", ["s3://bucket/runs", "http://host/runs", "hf://org/name", "://", "gs:/bucket/runs"]
)
def test_other_places_are_refused(name: str) -> None:
    with pytest.raises(UserError) as error:
        folder_of(name)
    assert str(error.value) == (f"{name}: a folder on a disk or gs://BUCKET/FOLDER is expected.")


def test_a_bucket_needs_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        folder_of("gs://bucket/runs")
    assert str(error.value) == (
        'gs://bucket/runs: a bucket needs gcsfs: pip install "rft_jax[gcs]".'
    )


@pytest.mark.parametrize("name", ["gs://bucket/out", "gs:/bucket/out"])
def test_what_must_lie_on_a_disk_is_no_bucket(name: str) -> None:
    with pytest.raises(UserError) as error:
        on_disk(name, "--out")
    assert str(error.value) == (
        f"--out is {name}: a place on a disk is expected; copy it afterwards."
    )


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_cut_short_leaves_the_old_file_alone(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "facts.json"
    write_atomically(path, "old")

    def power_cut(self: Path, target: Path) -> Path:
        raise error("power cut")

    monkeypatch.setattr(Path, "replace", power_cut)
    with pytest.raises(error, match="power cut"):
        write_atomically(path, b"new")
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {"facts.json": "old"}


def test_a_mirror_of_a_folder_on_the_disk_is_the_folder(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path)
    assert mirror.local == tmp_path
    (tmp_path / "log").write_text("a line")
    assert mirror.fetch("log").read_text() == "a line"
    mirror.copy_soon()
    mirror.copy()
    mirror.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        OSError(errno.EIO, os.strerror(errno.EIO)),
        ValueError("RESOURCE_EXHAUSTED: write failed: No space left on device [...]"),
    ],
)
def test_storage_that_fails_is_one_line_to_start_again_from(error: Exception) -> None:
    def save() -> None:
        try:
            raise error
        except Exception as inner:  # as a library would
            raise RuntimeError("the checkpoint failed") from inner

    with pytest.raises(TemporaryError) as raised, storing(Path("/work")):
        save()
    text = str(raised.value)
    assert text.startswith("/work: cannot write here (")
    assert "the same command starts from it" in text
    assert "\n" not in text


def test_other_errors_are_no_fault_of_the_storage() -> None:
    for error in (KeyError("a"), PermissionError(errno.EACCES, "denied", "/x")):
        with pytest.raises(type(error)), storing(Path("/work")):
            raise error


def test_a_limit_on_files_is_one_line(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with (
            pytest.raises(TemporaryError, match=r"work/a: .*File too large.*raise the limit"),
            storing(Path("work/a")),
        ):
            write_atomically(tmp_path / "a", "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    assert write_new(tmp_path / "a", "first")
    assert not write_new(tmp_path / "a", "second")
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == {"a": "first"}


def test_an_output_follows_a_link_and_leaves_nothing_half(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to("real/out")
    with new_file(link) as file:
        file.write("a")
        assert not (tmp_path / "real/out").exists()
    assert link.is_symlink()
    assert (tmp_path / "real/out").read_text() == "a"
    with pytest.raises(KeyError), new_file(link) as file:
        raise KeyError
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["out"]
    with pytest.raises(UserError, match="exists, and nothing is overwritten"):
        check_new(link)


def test_what_is_no_file_is_written_through(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_text()))
    reader.start()
    check_new(fifo)
    with new_file(fifo) as file:
        file.write("rows")
    reader.join()
    assert got == ["rows"]
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    null = Path(os.devnull)
    with new_file(null) as file:
        file.write("rows")
    assert stat.S_ISCHR(null.stat().st_mode)
    full = Path("/dev/full")
    with pytest.raises(TemporaryError, match="/dev/full: cannot write here"), new_file(full) as out:
        out.write("rows")
    assert stat.S_ISCHR(full.stat().st_mode)


@pytest.mark.parametrize(
    ("name", "text"),
    [(".", "--out . is a folder: name a file."), ("no/out", "--out no/out: cannot write here (N")],
)
def test_a_place_for_no_output_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        check_new(Path(name))
    assert str(error.value).startswith(text)
