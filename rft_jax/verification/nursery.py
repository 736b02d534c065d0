"""The processes between the pool and its workers: a nursery, and a keeper for each worker.

A fresh interpreter takes tens of milliseconds, and a second with a large library: too long for one
crash in a hundred items. The nursery loads a built-in verifier once and forks the keepers; a fork
takes about a millisecond. A user's module may start threads, which a fork would lose, so only
workers import it.

A keeper forks its worker, and the next one once that has ended. Only it kills the worker (it knows
whether that is reaped yet, so a number that the kernel gave to another process is never hit) and
learns how it ends. On Linux it also gets what the worker's programs leave behind: a process whose
parent ended, whatever session it is in. Imports no jax.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import NoReturn

from rft_jax.verification import sandbox
from rft_jax.verification.rules import Limits, Verifier, VerifierSpec
from rft_jax.verification.worker import Ends, loaded, serve

FORK, END = b"F", b"E"
"""What a keeper is asked for. FORK comes with five descriptors: the worker's ends (Ends), and the
end on which its keeper tells how it ended."""
STATUS = struct.Struct("<i")
"""How a worker ended, as wait() tells it."""
SWEEP_SECONDS = 1.0
"""A keeper looks this often for what its worker left behind."""
END_SECONDS = 3.0
"""Time that what is killed has to be gone."""


class _Keeper:
    """Serves one worker of the pool at a time.

    Args:
        connection: to the pool, which is gone when it closes.
        leash: of the nursery, which is gone when it closes.
        spec, limits, verifier: what every worker begins with.
    """

    def __init__(
        self,
        connection: socket.socket,
        leash: int,
        spec: VerifierSpec,
        limits: Limits,
        verifier: Verifier | str | None,
    ) -> None:
        self._connection, self._leash = connection, leash
        self._spec, self._limits, self._verifier = spec, limits, verifier
        self._workers: dict[int, int] = {}  # two where the kernel takes its time to end one
        self._orphans: dict[int, float] = {}
        self._wake, self._woken_by = os.pipe()
        for descriptor in (self._wake, self._woken_by):
            os.set_blocking(descriptor, False)

    def run(self) -> None:
        """Serve until the pool or the nursery is gone."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        # Launchers send it to all processes of a job, whose step is still to be verified.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        signal.set_wakeup_fd(self._woken_by, warn_on_full_buffer=False)
        sandbox.adopt_orphans()
        poll = select.poll()
        for descriptor in (self._wake, self._connection.fileno(), self._leash):
            poll.register(descriptor, select.POLLIN)
        serving = True
        while serving:
            for descriptor, _ in poll.poll(SWEEP_SECONDS * 1000 if self._workers else None):
                if descriptor == self._wake:
                    os.read(self._wake, 4096)
                else:
                    serving = descriptor != self._leash and self._answer()
            self._reap()
            self._sweep()
        for worker in self._workers:
            _kill_group(worker)
        end_children()

    def _answer(self) -> bool:
        """Do what the pool asks for; False when it is gone."""
        request, descriptors, _, _ = socket.recv_fds(self._connection, len(FORK), 5)
        if request == FORK:
            *ends, ended = descriptors
            self._fork(Ends(*ends), ended)
        elif request == END:
            for worker in self._workers:
                _kill_group(worker)
        return bool(request)

    def _fork(self, ends: Ends, ended: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:  # no memory, or too many processes: as if it ended at its start
            print(f"no worker can be started: {error}", file=sys.stderr, flush=True)
            _tell(ended, os.EX_OSERR << 8)
        else:
            if pid == 0:
                _become(lambda: self._serve(ends, ended))
            self._workers[pid] = ended
        for descriptor in ends:
            os.close(descriptor)

    def _serve(self, ends: Ends, ended: int) -> None:
        os.setsid()  # Ctrl-C does not reach it, and what it starts is killed as one group
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (self._wake, self._woken_by, self._leash, ended):
            os.close(descriptor)
        for other in self._workers.values():
            os.close(other)
        self._connection.close()
        serve(ends, self._spec, self._limits, self._verifier)

    def _reap(self) -> None:
        """Take the ends of all children that have one, and end what an ended worker left."""
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                if (ended := self._workers.pop(pid, None)) is not None:
                    # What it started. A group keeps its number from being reused; without one the
                    # number cannot come round again between two calls.
                    _kill(-pid)
                    end_children(spare=self._workers)
                    _tell(ended, status)

    def _sweep(self) -> None:
        """End what detached itself from the worker and outlived the deadline: the output that it
        was started for is judged by then."""
        now, before = time.monotonic(), self._orphans
        orphans = [pid for pid in sandbox.children() if pid not in self._workers]
        self._orphans = {pid: before.get(pid, now) for pid in orphans}
        for pid, first in self._orphans.items():
            if now - first > self._limits.timeout_seconds:
                _kill(pid)


def end_children(spare: Collection[int] = ()) -> None:
    """Kill and reap all child processes but those to spare, and theirs, which become children.

    Gives up after END_SECONDS on those that start new ones faster than they are killed.
    """
    deadline = time.monotonic() + END_SECONDS
    while left := [pid for pid in sandbox.children() if pid not in spare]:
        for pid in left:
            _kill(pid)
        for pid in left:
            os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > deadline:
            return
        time.sleep(0.001)


def main() -> None:
    """Serve the pool; argument: the descriptors of the connections to it, one a keeper."""
    os.dup2(2, 1)  # whatever a verifier prints goes to stderr
    sandbox.forbid_core_dumps()
    connections = [socket.socket(fileno=int(number)) for number in sys.argv[1].split(",")]
    with connections[0].makefile("rb", buffering=0) as stream:
        spec, limits = pickle.load(stream)
    verifier = loaded(spec) if spec.is_built_in else None
    assert threading.active_count() == 1, "a fork would lose the other threads"
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # as in the keepers
    sandbox.adopt_orphans()
    gc.collect()
    gc.freeze()  # a collection in a worker then copies no page of what was loaded here
    leash, held = os.pipe()
    keepers = set()
    for connection in connections:
        if (pid := os.fork()) == 0:
            os.close(held)
            for other in connections:
                if other is not connection:
                    other.close()
            _become(_Keeper(connection, leash, spec, limits, verifier).run)
        keepers.add(pid)
    for connection in connections:
        connection.close()
    while keepers:
        keepers.discard(os.wait()[0])
        end_children(spare=keepers)  # those of a keeper that was killed


def _become(program: Callable[[], None]) -> NoReturn:
    """Run the program of a forked process and end it."""
    try:
        program()
        os._exit(0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


def _kill_group(worker: int) -> None:
    """End a worker that is not reaped yet, and what it started in its group."""
    _kill(worker)  # first: it may not have a group of its own yet
    _kill(-worker)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _tell(ended: int, status: int) -> None:
    with suppress(BrokenPipeError):  # the pool is gone
        os.write(ended, STATUS.pack(status))
    os.close(ended)
