"""Locks: one holder, and none that is dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rft_jax.errors import TemporaryError
from rft_jax.io import lock
from rft_jax.io.drafts import Process, this_process
from rft_jax.io.lock import held
from rft_jax.io.paths import write_new


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sft.lock"


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"REFRESH": 0.05, "STALE": 0.4}.items():
        monkeypatch.setattr(lock, f"{name}_SECONDS", seconds)


def of(process: Process) -> str:
    return json.dumps({"host": "node7", **process._asdict(), "since": "2026-01-01T00:00:00+00:00"})


def dead_here() -> Process:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        pid = other.pid
    return this_process()._replace(pid=pid)


def test_a_second_holder_is_refused_by_name(path: Path) -> None:
    with held([path]):
        with pytest.raises(TemporaryError) as error, held([path]):
            pass
        text = str(error.value)
        assert text.startswith(f"{path}: process {os.getpid()} on ")
        assert " is at work here since 20" in text
        assert "\n" not in text
    with held([path]):
        pass
    assert list(path.parent.iterdir()) == []


def test_those_taken_before_one_that_is_held_are_given_back(path: Path) -> None:
    other = path.with_name("rft.lock")
    with held([path]):
        with pytest.raises(TemporaryError), held([other, path]):
            pass
        assert not other.exists()


@pytest.mark.parametrize(
    "change",
    [lambda process: process._replace(started=process.started - 1), lambda process: dead_here()],
    ids=["its id was given again", "no such process"],
)
def test_a_dead_process_of_this_machine_blocks_nobody(path: Path, change) -> None:  # type: ignore[no-untyped-def]
    path.write_text(of(change(this_process())))
    with held([path]):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("content", [of(Process("elsewhere", 7, 7)), "", '{"host": "nod', "[]"])
def test_one_from_elsewhere_without_a_sign_of_life_is_dead(path: Path, content: str) -> None:
    path.write_text(content)
    told: list[str] = []
    with held([path], told.append):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    (line,) = told
    assert "watching for" in line


def test_the_locks_of_one_dead_holder_are_watched_once_and_those_taken_are_refreshed(
    path: Path,
) -> None:
    paths = [path.with_name(f"{name}.lock") for name in ("sft", "rft", "online_rft")]
    for one in paths[1:]:
        one.write_text(of(Process("elsewhere", 7, 7)))
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        os.utime(paths[0], (1, 1))

    with held(paths, tell):
        assert paths[0].stat().st_mtime != 1  # refreshed beside the watching
        assert {json.loads(one.read_text())["pid"] for one in paths} == {os.getpid()}
    assert len(told) == 1
    assert list(path.parent.iterdir()) == []


def test_a_write_whose_answer_was_lost_is_ones_own(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lossy(path: Path, content: str) -> bool:
        write_new(path, content)
        return False

    monkeypatch.setattr(lock, "write_new", lossy)
    with held([path]), pytest.raises(TemporaryError), held([path]):
        pass


def test_a_symlink_to_nothing_is_refused(path: Path) -> None:
    path.symlink_to("nothing")
    with pytest.raises(FileExistsError), held([path]):
        pass


def test_one_from_elsewhere_that_lives_is_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "STALE_SECONDS", 5.0)  # the thread below may have to wait its turn
    path.write_text(of(Process("elsewhere", 7, 7)))
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.02):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(TemporaryError, match="process 7 on node7 is at work"), held([path]):
            pass
    finally:
        over.set()
        thread.join()
    assert "elsewhere" in path.read_text()


@pytest.mark.parametrize("left", [False, True])
def test_of_many_at_once_one_holds(path: Path, left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "REFRESH_SECONDS", 10.0)  # none shows that it lives: it is seen
    if left:
        path.write_text(of(dead_here()))
    outcomes: list[bool] = []
    ready, over = threading.Barrier(8), threading.Event()

    def start() -> None:
        ready.wait()
        try:
            with held([path]):
                outcomes.append(True)
                over.wait(60)
        except TemporaryError:
            outcomes.append(False)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    while len(outcomes) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    over.set()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]
    assert list(path.parent.iterdir()) == []


def test_a_process_killed_while_it_took_over_blocks_nobody(path: Path) -> None:
    path.write_text(of(dead_here()))
    path.with_name("sft.lock.claim").write_text(of(dead_here()))
    with held([path]):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        assert list(path.parent.iterdir()) == [path]
    assert list(path.parent.iterdir()) == []


def test_a_holder_shows_that_it_lives(path: Path) -> None:
    with held([path]):
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 60
        while path.stat().st_mtime == 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        path.unlink()  # by hand
        while not path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_holder_that_another_one_took_for_dead_ends(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with held([path]):
        path.write_text(of(Process("elsewhere", 7, 7)))
        deadline = time.monotonic() + 60
        while not ended:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert ended[0] == os.EX_TEMPFAIL
    assert "elsewhere" in path.read_text()
