"""Signs of life: which process is lost, failed or stalled, and how the others end."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest

from rft_jax.distributed.watchdog import EXIT_LOST, Judge, Limits, Place, Watch

LIMITS = Limits(lost_after=10.0, stalled_after=100.0)


def place(process: int, beats: int = 0, moves: int = 0, what: str = "", ended: str = "") -> Place:
    return Place(f"host-{process}", beats, moves, what, ended)


def test_beats_are_life_whatever_the_work_does() -> None:
    judge = Judge(2, 0, LIMITS, now=0.0)
    for second in range(99):
        places = {n: place(n, beats=second) for n in range(2)}
        assert judge.verdict(places, float(second)) is None


@pytest.mark.parametrize("own", [0, 1])
def test_a_silent_process_is_lost(own: int) -> None:
    judge = Judge(3, own, LIMITS, now=5.0)
    for second in range(5, 17):
        places = {n: place(n, beats=second) for n in range(2)} | {2: place(2, beats=min(second, 6))}
        why = judge.verdict(places, float(second))
        assert why is None  # ten seconds are not yet more than ten
    why = judge.verdict({n: place(n, beats=17) for n in range(2)}, 17.0)
    assert why == (
        "process 2 (host-2) has given no sign of life for 11 seconds: it was killed, frozen or cut "
        "off"
    )


def test_one_that_was_never_heard_of_is_lost() -> None:
    judge = Judge(2, 0, LIMITS, now=0.0)
    assert judge.verdict({0: place(0, beats=1)}, 10.0) is None
    why = judge.verdict({0: place(0, beats=2)}, 10.5)
    assert why is not None
    assert why.startswith("process 1 has given no sign of life for 10 seconds")


def test_silence_that_ends_in_time_is_no_loss() -> None:
    judge = Judge(2, 0, LIMITS, now=0.0)
    for second, beats in ((9, 1), (18, 2), (27, 3)):
        places = {0: place(0, beats=second), 1: place(1, beats=beats)}
        assert judge.verdict(places, float(second)) is None


def test_a_process_that_is_done_may_be_silent() -> None:
    judge = Judge(2, 0, LIMITS, now=0.0)
    for second in range(0, 90, 9):
        places = {0: place(0, beats=second), 1: place(1, ended="done")}
        assert judge.verdict(places, float(second)) is None


def test_a_process_that_failed_ends_the_others_at_once() -> None:
    judge = Judge(3, 0, LIMITS, now=0.0)
    places = {n: place(n) for n in range(3)} | {1: place(1, ended="DataError: q.jsonl is missing")}
    assert judge.verdict(places, 0.5) == (
        "process 1 (host-1) stopped: DataError: q.jsonl is missing"
    )
    assert judge.status == EXIT_LOST


def test_its_status_is_that_of_all() -> None:
    judge = Judge(2, 0, LIMITS, now=0.0)
    failed = replace(place(1, ended="ConfigError: no such field"), status=2)
    assert judge.verdict({0: place(0), 1: failed}, 0.5) is not None
    assert judge.status == 2


def stalled(moves: list[int]) -> str | None:
    """What process 0 says when nobody has moved for 101 seconds."""
    judge = Judge(len(moves), 0, LIMITS, now=0.0)
    for second in range(102):
        places = {
            n: place(n, second, done, f"update of step {done}") for n, done in enumerate(moves)
        }
        why = judge.verdict(places, float(second))
        if second <= 100:
            assert why is None
    return why


def test_the_one_behind_is_stalled() -> None:
    assert stalled([7, 7, 6]) == (
        "nothing has happened for 101 seconds: process 2 (host-2) is stalled at 'update of step 6'"
    )
    assert stalled([7, 6, 6]) == (
        "nothing has happened for 101 seconds: process 1 (host-1), process 2 (host-2) is stalled "
        "at 'update of step 6'"
    )


def test_all_equally_far_are_the_whole_job() -> None:
    assert stalled([6, 6]) == (
        "nothing has happened for 101 seconds: the whole job is stalled at 'update of step 6'"
    )


def test_work_that_goes_on_is_not_stalled() -> None:
    judge = Judge(2, 0, LIMITS, now=0.0)
    for second in range(1000):
        places = {n: place(n, second, second // 99) for n in range(2)}
        assert judge.verdict(places, float(second)) is None


class Store:
    """Keys and values, as jax.distributed has them; silent: it answers no more."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.silent, self.refused = False, 0
        self.changed = threading.Condition()

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        self._answer()
        with self.changed:
            assert allow_overwrite or key not in self.values
            self.values[key] = value
            self.changed.notify_all()

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
        self._answer()
        return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]

    def place(self, process: int) -> Place:
        return Place(**json.loads(self.values[f"rft_jax/at/{process}"]))

    def tell(self, process: int, **facts: Any) -> None:
        there = Place(f"host-{process}", 0, 0, "somewhere")
        content = json.dumps(asdict(there) | facts)
        self.key_value_set(f"rft_jax/at/{process}", content, allow_overwrite=True)

    def wait_for(self, moment: Any) -> None:
        with self.changed:
            assert self.changed.wait_for(moment, timeout=60)

    def _answer(self) -> None:
        if self.silent:
            with self.changed:
                self.refused += 1
                self.changed.notify_all()
            raise RuntimeError("UNAVAILABLE: failed to connect\nmore of it")


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Waits for the exit status of the process; the thread ends in its place."""
    found: list[int] = []
    ended = threading.Event()
    before = set(threading.enumerate())

    def leave(status: int) -> None:
        found.append(status)
        ended.set()
        raise SystemExit

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # it would tell of SystemExit

    def status() -> int:
        assert ended.wait(60)
        return found[0]

    yield status
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()
    assert len(found) <= 1


def test_a_lost_process_ends_this_one(exits: Any, capfd: pytest.CaptureFixture[str]) -> None:
    store = Store()
    store.tell(1)
    Watch(store, 0, 2, Limits(0.5, 1000))
    assert exits() == EXIT_LOST == 75
    said = capfd.readouterr().err
    assert said.startswith("rft-jax: error: process 1 (host-1) has given no sign of life for ")
    assert said.endswith(
        ". Process 0 ends too; start the job again, and it resumes from its last checkpoint.\n"
    )
    assert said.count("\n") == 1


def test_the_reason_of_another_process_is_told(
    exits: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    store = Store()
    Watch(store, 1, 2, Limits(1000, 1000))
    store.tell(0, ended="ConfigError: no such file", status=2)
    assert exits() == 2
    # Starting it again would not help.
    assert capfd.readouterr().err == (
        "rft-jax: error: process 0 (host-0) stopped: ConfigError: no such file. Process 1 ends "
        "too.\n"
    )


def test_a_store_that_answers_no_more(exits: Any, capfd: pytest.CaptureFixture[str]) -> None:
    store = Store()
    Watch(store, 1, 2, Limits(0.5, 1000))
    store.silent = True
    assert exits() == EXIT_LOST
    said = capfd.readouterr().err
    assert "process 0, which keeps the job together, has not answered for " in said
    assert "(UNAVAILABLE: failed to connect)" in said


@pytest.mark.slow
def test_a_store_that_answers_again_is_forgiven(exits: Any) -> None:
    store = Store()
    one = Watch(store, 0, 1, Limits(60, 60))
    store.wait_for(lambda: store.values)
    store.silent = True
    store.wait_for(lambda: store.refused > 0)
    store.silent = False
    beats = store.place(0).beats
    store.wait_for(lambda: store.place(0).beats > beats)
    one.done()


def test_places_are_told_as_the_work_goes_on(exits: Any) -> None:
    store = Store()
    one = Watch(store, 0, 1, Limits(5, 1000))
    one.at("update of step 1")
    one.at("update of step 2")
    store.wait_for(lambda: store.values and store.place(0).what == "update of step 2")
    assert store.place(0).moves == 2
    assert store.place(0).ended == ""
    one.done()
    assert store.place(0).ended == "done"
    assert "watch" not in [thread.name for thread in threading.enumerate()]


def test_work_that_stands_still_ends_the_process(
    exits: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    Watch(Store(), 0, 1, Limits(1000, 0.5)).at("sampling")
    assert exits() == EXIT_LOST
    assert "the whole job is stalled at 'sampling'" in capfd.readouterr().err


def test_a_process_that_fails_gives_the_others_time_to_hear_it(exits: Any) -> None:
    store = Store()
    one = Watch(store, 0, 2, Limits(1.0, 1000))
    heard = threading.Event()

    def listen() -> None:
        store.wait_for(lambda: store.values and store.place(0).ended)
        heard.set()

    thread = threading.Thread(target=listen)
    thread.start()
    one.failed("KeyError: 3", 2)
    thread.join()
    assert heard.is_set()
    assert (store.place(0).ended, store.place(0).status) == ("KeyError: 3", 2)
