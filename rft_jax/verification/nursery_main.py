"""The main program of the nursery: one process with one thread that forks workers on request.

`nursery.py` starts it. A fresh interpreter takes tens of milliseconds, and a second with a large
library: too long for one crash in a hundred items. The nursery loads a built-in verifier once, and
then a fork takes about a millisecond. A module of the user's may start threads, which a fork would
lose, so only workers import that. Imports no jax.

As the parent of the workers the nursery alone kills them (it knows which are not reaped yet, so a
number that the kernel gave to another process is never hit) and alone learns how they end.
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
from contextlib import suppress
from typing import NamedTuple, NoReturn

from rft_jax.verification import worker
from rft_jax.verification.limits import Limits, forbid_core_dumps
from rft_jax.verification.rules import Verifier, VerifierSpec

FORK, END = 0, 1
REQUEST = struct.Struct("<II")
"""What to do (FORK, END) with the worker of which number. FORK comes with five descriptors: the
worker's ends (worker.Ends), and the end on which the nursery tells how it ended."""
STATUS = struct.Struct("<i")
"""How a worker ended, as wait() tells it."""


class _Child(NamedTuple):
    pid: int
    ended: int


class _Nursery:
    """The living workers, and what each of them begins with."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._spec: VerifierSpec
        self._limits: Limits
        with connection.makefile("rb", buffering=0) as stream:
            self._spec, self._limits = pickle.load(stream)
        self._verifier: Verifier | str | None = None
        if self._spec.is_built_in:
            self._verifier = worker.loaded(self._spec)
        assert threading.active_count() == 1, "a fork would lose the other threads"
        self._children: dict[int, _Child] = {}
        self._wake, self._woken_by = os.pipe()
        for descriptor in (self._wake, self._woken_by):
            os.set_blocking(descriptor, False)

    def run(self) -> None:
        """Serve until the pool closes its end of the connection, or dies."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        # Launchers send it to all processes of a job, whose step is still to be verified.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        signal.set_wakeup_fd(self._woken_by, warn_on_full_buffer=False)
        gc.collect()
        gc.freeze()  # a collection in a worker then copies no page of what was loaded here
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._connection, select.POLLIN)
        serving = True
        while serving:
            for descriptor, _ in poll.poll():
                if descriptor == self._wake:
                    os.read(self._wake, 4096)
                    self._reap()
                else:
                    serving = self._answer()
        for child in self._children.values():
            _kill(child.pid)
        for child in self._children.values():
            os.waitpid(child.pid, 0)

    def _answer(self) -> bool:
        """Do what the pool asks for; False when it is gone."""
        request, descriptors, _, _ = socket.recv_fds(self._connection, REQUEST.size, 5)
        if len(request) < REQUEST.size:
            return False
        what, number = REQUEST.unpack(request)
        if what == FORK:
            *ends, ended = descriptors
            self._fork(number, worker.Ends(*ends), ended)
        elif number in self._children:  # otherwise it ended by itself
            _kill(self._children[number].pid)
        return True

    def _fork(self, number: int, ends: worker.Ends, ended: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:  # no memory, or too many processes: as if it ended at its start
            print(f"no worker can be started: {error}", file=sys.stderr, flush=True)
            _tell(ended, os.EX_OSERR << 8)
        else:
            if pid == 0:
                self._become_worker(ends, ended)
            self._children[number] = _Child(pid, ended)
        for descriptor in ends:
            os.close(descriptor)

    def _become_worker(self, ends: worker.Ends, ended: int) -> NoReturn:
        try:
            os.setsid()  # Ctrl-C does not reach it, and all that it starts is killed with it
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # Above all the other workers' `ended`: those must close when the nursery dies.
            for descriptor in (self._wake, self._woken_by, ended):
                os.close(descriptor)
            for child in self._children.values():
                os.close(child.ended)
            self._connection.close()
            worker.serve(ends, self._spec, self._limits, self._verifier)
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)

    def _reap(self) -> None:
        for number, child in list(self._children.items()):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                del self._children[number]
                # What it started. A group keeps its number from being given anew; without one the
                # number cannot come round again between two calls.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
                _tell(child.ended, status)


def main() -> None:
    """Serve the pool; argument: the descriptor of the connection to it."""
    os.dup2(2, 1)  # whatever a verifier prints goes to stderr
    forbid_core_dumps()
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        connection.set_inheritable(False)
        _Nursery(connection).run()


def _kill(pid: int) -> None:
    """End a worker that is not reaped yet, and what it started."""
    os.kill(pid, signal.SIGKILL)  # first: it may not have a group of its own yet
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _tell(ended: int, status: int) -> None:
    with suppress(BrokenPipeError):  # the pool is gone
        os.write(ended, STATUS.pack(status))
    os.close(ended)
