"""The record of a checkpoint's files: what it finds, and which checkpoint is then resumed from."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath

from rft_jax.checkpoint import integrity as health
from rft_jax.checkpoint.integrity import Damaged, Found
from rft_jax.errors import CheckpointError

ARRAY, HOST = "params/d/0a1b", "host/metadata"


def write(folder: Path, *steps: int, accuracy: float | None = None) -> None:
    """What stands for checkpoints of these steps."""
    for step in steps:
        path = folder / str(step)
        for name, content in (
            (ARRAY, bytes(range(256)) * 40), ("training/d/0", b""), (HOST, b'{"position": 3}'),
            ("_CHECKPOINT_METADATA", b"{}"),
        ):  # fmt: skip
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        health.write_record(path, accuracy)
        # Orbax ends with these.
        (path / "_CHECKPOINT_METADATA").write_bytes(b'{"commit": 1}')
        (path / "commit_success.txt").write_bytes(b"done")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(file: Path, place: int = 777) -> None:
    """Changes one bit."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def record(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Damage to the record's content."""

    def damage(path: Path) -> None:
        content = json.loads((path / health.RECORD).read_text())
        change(content)
        (path / health.RECORD).write_text(json.dumps(content))

    return damage


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated array": (lambda path: cut(path / ARRAY),
                        f"{ARRAY} has 10,237 bytes instead of 10,240"),
    "longer array": (lambda path: (path / ARRAY).write_bytes(bytes(10241)),
                     f"{ARRAY} has 10,241 bytes instead of 10,240"),
    "missing array": (lambda path: (path / ARRAY).unlink(), f"{ARRAY} is missing"),
    "other bytes": (lambda path: flip(path / ARRAY),
                    f"{ARRAY} holds other bytes than were written"),
    "truncated host": (lambda path: cut(path / HOST), f"{HOST} has 12 bytes instead of 15"),
    "other host": (lambda path: flip(path / HOST, 13),
                   f"{HOST} holds other bytes than were written"),
    "half written": (lambda path: (path / health.RECORD).unlink(),
                     "files.json is missing: it is half written"),
    "truncated record": (lambda path: cut(path / health.RECORD),
                         "files.json cannot be read: Expecting"),
    "no record": (record(lambda content: content.pop("files")),
                  "files.json cannot be read: it holds no files"),
    "a size that is none": (record(lambda content: content["files"].update({HOST: [None, 1]})),
                            f"files.json cannot be read: {HOST} is [None, 1], expected a size and "
                            "a crc32"),
    "an accuracy that is none": (record(lambda content: content.update(accuracy="high")),
                                 "files.json cannot be read: accuracy is 'high', expected a "
                                 "number"),
}  # fmt: skip


def test_a_whole_one(tmp_path: Path) -> None:
    write(tmp_path, 4)
    assert health.problem(tmp_path / "4") is None
    assert health.newest_whole(tmp_path) == Found(4)
    content = json.loads((tmp_path / "4/files.json").read_text())
    assert list(content["files"]) == [HOST, ARRAY, "training/d/0"]
    assert content["files"]["training/d/0"] == [0, 0]


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_one_before_is_gone_on_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    write(tmp_path, 2, 4, 6)
    damage, reason = DAMAGE[kind]
    damage(tmp_path / "6")
    found = health.newest_whole(tmp_path)
    assert found.step == 4
    assert [one.step for one in found.damaged] == [6]
    assert found.damaged[0].reason.startswith(reason)
    assert names(tmp_path) == ["2", "4", "6"]  # looking changes nothing

    with caplog.at_level(logging.WARNING):
        assert health.recover(tmp_path) == 4
    assert caplog.messages == [
        f"{tmp_path}/6: this checkpoint is damaged ({found.damaged[0].reason}): it is kept as "
        "damaged-6, and the run resumes from step 4"
    ]
    assert names(tmp_path) == ["2", "4", "damaged-6"]
    assert health.steps(tmp_path) == [2, 4]


def test_all_newer_damage_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, 2, 4, 6)
    (tmp_path / "6" / ARRAY).unlink()
    (tmp_path / "4" / HOST).unlink()
    assert health.newest_whole(tmp_path) == Found(
        2, (Damaged(6, f"{ARRAY} is missing"), Damaged(4, f"{HOST} is missing"))
    )
    with caplog.at_level(logging.WARNING):
        assert health.recover(tmp_path) == 2
    assert len(caplog.messages) == 2
    assert names(tmp_path) == ["2", "damaged-4", "damaged-6"]


def test_the_same_step_may_be_damaged_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 2)
    for _ in range(3):
        write(tmp_path, 4)
        (tmp_path / "4" / health.RECORD).unlink()
        with caplog.at_level(logging.WARNING):
            assert health.recover(tmp_path) == 2
    assert names(tmp_path) == ["2", "damaged-4", "damaged-4-2", "damaged-4-3"]
    assert [re.findall(r"kept as (\S+),", message)[0] for message in caplog.messages] == [
        "damaged-4", "damaged-4-2", "damaged-4-3",
    ]  # fmt: skip


def test_none_is_whole(tmp_path: Path) -> None:
    write(tmp_path, 2, 4)
    (tmp_path / "2" / ARRAY).unlink()
    (tmp_path / "4" / health.RECORD).unlink()
    with pytest.raises(CheckpointError) as error:
        health.recover(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: no checkpoint here is whole: 4 (files.json is missing: it is half written); "
        f"2 ({ARRAY} is missing): bring the files back, or start over with another --workdir."
    )
    assert names(tmp_path) == ["2", "4"]


@pytest.mark.parametrize("folder", ["none", "."])
def test_there_is_none(tmp_path: Path, folder: str) -> None:
    (tmp_path / "damaged-4").mkdir()
    (tmp_path / "4.orbax-checkpoint-tmp-17").mkdir()
    (tmp_path / "07").mkdir()
    (tmp_path / "3").write_text("a file")
    assert health.recover(tmp_path / folder) is None


def test_a_part_and_sizes_alone(tmp_path: Path) -> None:
    write(tmp_path, 4)
    flip(tmp_path / "4" / ARRAY)
    assert (
        health.problem(tmp_path / "4", "params") == f"{ARRAY} holds other bytes than were written"
    )
    assert health.problem(tmp_path / "4", "params", contents=False) is None
    assert health.problem(tmp_path / "4", "host") is None
    assert health.problem(tmp_path / "4", "par") == "par is missing"


def test_accuracies(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint here was evaluated: set evaluation"):
        health.best(tmp_path)
    for step, accuracy in ((1, 0.5), (2, None), (3, 0.75), (4, 0.75), (5, 0.0), (6, float("nan"))):
        write(tmp_path, step, accuracy=accuracy)
    assert health.accuracies(tmp_path) == {1: 0.5, 3: 0.75, 4: 0.75, 5: 0.0}
    assert health.best(tmp_path) == 4
    (tmp_path / "4" / health.RECORD).write_text("{")
    assert health.best(tmp_path) == 3


def test_paths_of_disks_and_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert health.absolute(Path("a")) == epath.Path(tmp_path / "a")
    assert health.absolute(epath.Path("gs://bucket/a")) == epath.Path("gs://bucket/a")
    write(tmp_path, 4)
    assert health.steps(epath.Path(tmp_path)) == [4]
    assert health.problem(epath.Path(tmp_path) / "4") is None


def test_renamed_ones_are_of_the_step_that_they_were_saved_at(tmp_path: Path) -> None:
    write(tmp_path, 2, 4, 6, accuracy=0.5)
    for old, new in (("4", "x"), ("6", "4"), ("x", "6")):
        (tmp_path / old).rename(tmp_path / new)
    assert health.problem(tmp_path / "6") == "it is that of step 4: the folder was renamed"
    assert health.problem(tmp_path / "6", "params", contents=False) is not None
    assert health.newest_whole(tmp_path).step == 2
    assert health.accuracies(tmp_path) == {2: 0.5}
    (tmp_path / "6").rename(tmp_path / "99")
    assert health.best(tmp_path) == 2
    assert health.recover(tmp_path) == 2
    assert names(tmp_path) == ["2", "damaged-4", "damaged-99"]


def test_one_of_another_run_is_none_of_this_run(tmp_path: Path) -> None:
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "config.json").write_text(json.dumps({"id": f"id of {run}"}))
        write(tmp_path / run / "checkpoints", 2, 4)
        assert health.newest_whole(tmp_path / run / "checkpoints") == Found(4)
    (tmp_path / "a/checkpoints/4").rename(tmp_path / "old")
    (tmp_path / "b/checkpoints/4").rename(tmp_path / "a/checkpoints/4")
    assert health.problem(tmp_path / "a/checkpoints/4") == (
        "it is of another run, id of b, than config.json here, id of a"
    )
    assert health.newest_whole(tmp_path / "a/checkpoints").step == 2


def test_a_record_of_an_older_version_says_neither_step_nor_run(tmp_path: Path) -> None:
    write(tmp_path, 4)
    content = json.loads((tmp_path / "4/files.json").read_text())
    assert (content.pop("step"), content.pop("run")) == (4, None)
    (tmp_path / "4/files.json").write_text(json.dumps(content))
    assert health.newest_whole(tmp_path) == Found(4)
