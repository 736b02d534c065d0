"""Folders on a disk: what is written is whole, and mirrors are the folders themselves."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from rft_jax.errors import UserError
from rft_jax.io.paths import Mirror, folder_of, in_bucket, on_disk, write_atomically


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
