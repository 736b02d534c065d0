"""What becomes of a job when one of its processes is lost: the others say which one, and end.

A device waits for the others for ever, whatever became of them. So every process tells the job's
store, about once a second and from a thread of its own, that it lives and where it is, and reads
the same of the others. One that falls silent is lost (killed, frozen, cut off). One that lives but
whose work stands still, while the others wait for it, is stalled.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

EXIT_LOST = os.EX_TEMPFAIL
"""Exit status of a process that ends because of another one; starting the job again helps."""

_PREFIX = "rft_jax/at/"
_PERIODS_LAST = 5
"""Periods that process 0, which keeps the store, ends later than the others."""


@dataclass(frozen=True)
class Limits:
    """Seconds. lost_after: without a sign of life; stalled_after: at one place of the work, which
    must be longer than compiling and the longest rollout take."""

    lost_after: float = 60.0
    stalled_after: float = 3600.0


@dataclass(frozen=True)
class Place:
    """Where a process is. beats: signs of life; moves: places so far, the same in all processes
    when all are equally far; ended: "" at work, "done", or what made it stop; status: then, the
    exit status of all processes."""

    host: str
    beats: int
    moves: int
    what: str
    ended: str = ""
    status: int = EXIT_LOST


class Judge:
    """What the signs of life say. Seconds are of any clock that does not jump.

    processes: of the job; own: the number of this one. status: the exit status that goes with a
    verdict.
    """

    def __init__(self, processes: int, own: int, limits: Limits, now: float) -> None:
        self._own, self._limits = own, limits
        self._places: dict[int, Place] = {}
        self._heard = dict.fromkeys(range(processes), now)
        self._moved = now
        self.status = EXIT_LOST

    def verdict(self, places: Mapping[int, Place], now: float) -> str | None:
        """Why this process should end, if it should. places: the newest of every process."""
        for process, place in places.items():
            before = self._places.get(process)
            if before is None or before.beats != place.beats or place.ended:
                self._heard[process] = now
            if process == self._own and (before is None or before.moves != place.moves):
                self._moved = now
            self._places[process] = place
        failed = [p for p, place in self._places.items() if place.ended not in ("", "done")]
        if failed:
            first = failed[0]
            self.status = self._places[first].status
            return f"{self._name(first)} stopped: {self._places[first].ended}"
        for process, since in self._heard.items():
            ended = process in self._places and self._places[process].ended
            if not ended and now - since > self._limits.lost_after:
                return (
                    f"{self._name(process)} has given no sign of life for {now - since:.0f} "
                    f"seconds: it was killed, frozen or cut off"
                )
        if now - self._moved > self._limits.stalled_after:
            return self._stalled(now)
        return None

    def _stalled(self, now: float) -> str:
        least = min(place.moves for place in self._places.values())
        behind = [p for p, place in sorted(self._places.items()) if place.moves == least]
        who = ", ".join(self._name(process) for process in behind)
        if len(behind) == len(self._heard):
            who = "the whole job"
        return (
            f"nothing has happened for {now - self._moved:.0f} seconds: {who} is stalled at "
            f"{self._places[behind[0]].what!r}"
        )

    def _name(self, process: int) -> str:
        place = self._places.get(process)
        return f"process {process} ({place.host})" if place else f"process {process}"


class Watch:
    """The thread. It ends the process, by EXIT_LOST, when another one is lost.

    store: see collectives.store; process, processes: number of this one, and how many there are.
    """

    def __init__(self, store: Any, process: int, processes: int, limits: Limits) -> None:
        self._store, self._process, self._processes = store, process, processes
        self._limits = limits
        self._period = min(1.0, limits.lost_after / 5, limits.stalled_after / 5)
        self._place = Place(socket.gethostname(), 0, 0, "the start")
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def at(self, what: str) -> None:
        """Say what the work is now. All processes must call it alike."""
        with self._lock:
            old = self._place
            self._place = replace(old, moves=old.moves + 1, what=what)

    def done(self) -> None:
        """This process has ended its work: silence is no loss from now on."""
        self._tell("done")

    def failed(self, why: str, status: int = EXIT_LOST) -> None:
        """This process is about to stop: the others are told why, and given time to hear it.
        status: of all of them."""
        self._tell(why, status)
        time.sleep(3 * self._period)

    def wait_for_verdict(self) -> None:
        """After an exchange that failed: the other process that is lost ends this one soon, if
        there is one."""
        time.sleep(self._limits.lost_after + (_PERIODS_LAST + 5) * self._period)

    def _tell(self, ended: str, status: int = EXIT_LOST) -> None:
        with self._lock:
            old = self._place
            self._place = replace(old, beats=old.beats + 1, ended=ended, status=status)
        self._over.set()
        self._thread.join(timeout=10 * self._period)
        self._write()

    def _write(self) -> None:
        with self._lock:
            text = json.dumps(asdict(self._place))
        self._store.key_value_set(f"{_PREFIX}{self._process}", text, allow_overwrite=True)

    def _read(self) -> dict[int, Place]:
        texts = self._store.key_value_dir_get(_PREFIX)
        return {int(key.rpartition("/")[2]): Place(**json.loads(text)) for key, text in texts}

    def _watch(self) -> None:
        judge = Judge(self._processes, self._process, self._limits, time.monotonic())
        answered = time.monotonic()
        while not self._over.wait(self._period):
            with self._lock:
                old = self._place
                self._place = replace(old, beats=old.beats + 1)
            try:
                self._write()
                places = self._read()
                answered = time.monotonic()
            except Exception as error:  # of several types, by what became of the connection
                silent = time.monotonic() - answered
                if silent > self._limits.lost_after:
                    self._end(
                        f"process 0, which keeps the job together, has not answered for "
                        f"{silent:.0f} seconds ({str(error).splitlines()[0][:200]})"
                    )
                continue
            why = judge.verdict(places, answered)
            if why is not None:
                self._end(why, judge.status)

    def _end(self, why: str, status: int = EXIT_LOST) -> None:
        then = ""
        if status == EXIT_LOST:
            then = "; start the job again, and it resumes from its last checkpoint"
        print(
            f"rft-jax: error: {why.rstrip('.')}. Process {self._process} ends too{then}.",
            file=sys.stderr,
            flush=True,
        )
        if self._process == 0:
            # The store ends with it, and jax would abort whoever had not read it yet, and one that
            # has failed before it has left by itself.
            time.sleep(_PERIODS_LAST * self._period)
        # The other threads may wait for a device for ever, and so would atexit handlers.
        os._exit(status)
