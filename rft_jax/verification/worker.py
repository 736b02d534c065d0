"""The program of the worker processes: a nursery that forks them, and what each then does.

The nursery is one process with one thread. A fresh interpreter takes tens of milliseconds, and a
second with a large library: too long for one crash in a hundred items. The nursery loads a built-in
verifier once; a fork then takes about a millisecond. A user's module may start threads, which a
fork would lose, so only workers import it. Only the nursery, as their parent, kills
workers (it knows which are not reaped yet, so a number that the kernel gave to another process is
never hit) and learns how they end.

Protocol of a worker: chunks come in, each a pickled list of (reference, output). Out go lines of
JSON: null or the text of an error once the verifier is loaded, then lists of [verdict, reason] in
the order of the items. The index of the item at work is in a word of
memory shared with the parent. Imports no jax.
"""

from __future__ import annotations

import fcntl
import gc
import json
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple, NoReturn

from rft_jax.errors import VerifierError
from rft_jax.types import Judgement, Verdict
from rft_jax.verification import sandbox
from rft_jax.verification.rules import Limits, Verifier, VerifierSpec, load_verifier

IDLE = -1
"""Value of the shared word while no item is at work."""
FORK, END = 0, 1
REQUEST = struct.Struct("<II")
"""What to do (FORK, END) with the worker of which number. FORK comes with five descriptors: the
worker's ends (Ends), and the end on which the nursery tells how it ended."""
STATUS = struct.Struct("<i")
"""How a worker ended, as wait() tells it."""
FLUSH_SECONDS = 0.05
FLUSH_ITEMS = 64
"""Verdicts wait this long plus one item at most, or until there are this many, before they are
sent: a kill loses no more."""
OUT_OF_MEMORY = (Verdict.UNDECIDED.value, "out of memory")

Verdicts = list[tuple[str, str]]


class Ends(NamedTuple):
    """A worker's ends of what it shares with its parent, as descriptors."""

    tasks: int
    answers: int
    life_line: int
    word: int


def loaded(spec: VerifierSpec) -> Verifier | str:
    """The verifier, or why there is none."""
    try:
        return load_verifier(spec)
    except VerifierError as error:
        return str(error)


def serve(ends: Ends, spec: VerifierSpec, limits: Limits, verifier: Verifier | str | None) -> None:
    """Serve the parent until it closes its end, or an item has used up the memory.

    Args:
        ends: descriptors shared with the parent.
        spec, limits: the verifier, and what each item may use.
        verifier: what `loaded` returned, or None where it is still to be loaded.
    """
    die_with_parent(ends.life_line)
    for descriptor in ends:
        os.set_inheritable(descriptor, False)
    progress = memoryview(mmap.mmap(ends.word, 8)).cast("q")
    tasks, answers = os.fdopen(ends.tasks, "rb"), os.fdopen(ends.answers, "wb")
    verifier = verifier or loaded(spec)
    if isinstance(verifier, str):
        _send(answers, verifier)
        return
    _send(answers, None)
    if spec.is_built_in:
        sandbox.forbid_code()
    sandbox.limit_memory(limits.memory_mb)
    # The threads of a user's function may burn the deadline on every core.
    threads = 1 if spec.is_built_in else os.cpu_count() or 1
    processor_time = sandbox.ProcessorTime(limits.timeout_seconds, threads)
    useful = True
    while useful:
        try:
            chunk = pickle.load(tasks)
        except (EOFError, pickle.UnpicklingError):  # the parent closed its end, or died writing
            return
        useful = _judge_chunk(verifier, chunk, answers, progress, processor_time)


def judge(verifier: Verifier, reference: str, output: str) -> tuple[str, str]:
    """(verdict, reason) of one item; whatever goes wrong in the verifier is undecided."""
    try:
        result = verifier(reference, output)
        if isinstance(result, Judgement):
            return Verdict(result.verdict).value, str(result.reason)
    except sandbox.Blocked as error:
        return Verdict.UNDECIDED.value, f"blocked: {error.event}"
    except MemoryError:
        return OUT_OF_MEMORY
    except BaseException as error:  # also sys.exit: only this item is undecided
        return Verdict.UNDECIDED.value, f"error: {type(error).__name__}"
    if result is True:
        return Verdict.CORRECT.value, "accepted"
    if result is False:
        return Verdict.INCORRECT.value, "rejected"
    return Verdict.UNDECIDED.value, f"error: returned {type(result).__name__}"


def die_with_parent(life_line: int) -> None:
    """Have the kernel end this process group when the parent's end of the pipe closes.

    The parent never writes to it: the only event is its end, however it came. The kernel then sends
    SIGIO, whose default is to terminate, even while a verifier hangs inside C code, where neither a
    thread nor a Python signal handler would run.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})
    fcntl.fcntl(life_line, fcntl.F_SETOWN, -os.getpid())  # negative: the whole group
    flags = fcntl.fcntl(life_line, fcntl.F_GETFL)
    fcntl.fcntl(life_line, fcntl.F_SETFL, flags | os.O_ASYNC)
    poll = select.poll()
    poll.register(life_line, select.POLLIN)
    if poll.poll(0):  # it closed before the kernel was asked to tell
        os._exit(1)


def _judge_chunk(
    verifier: Verifier,
    chunk: list[tuple[str, str]],
    answers: BinaryIO,
    progress: memoryview,
    processor_time: sandbox.ProcessorTime,
) -> bool:
    """Judge and send; False when this process should end, the rest of the chunk not judged."""
    process = os.getpid()
    verdicts: Verdicts = []
    sent = time.monotonic()
    processor_time.allow()
    for index, (reference, output) in enumerate(chunk):
        if verdicts and (len(verdicts) == FLUSH_ITEMS or time.monotonic() - sent > FLUSH_SECONDS):
            progress[0] = IDLE  # waiting for the parent to read is no item's time
            _send(answers, verdicts)
            verdicts = []
            sent = time.monotonic()
            processor_time.allow()
        progress[0] = index
        verdict = judge(verifier, reference, output)
        if os.getpid() != process:  # the verifier forked and came back twice: this is the copy
            os._exit(0)
        verdicts.append(verdict)
        if verdict is OUT_OF_MEMORY:  # what filled the memory may be there still
            break
    progress[0] = IDLE
    _send(answers, verdicts)
    return len(verdicts) == 0 or verdicts[-1] is not OUT_OF_MEMORY


def _send(answers: BinaryIO, message: Any) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


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
            self._verifier = loaded(self._spec)
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
            self._fork(number, Ends(*ends), ended)
        elif number in self._children:  # otherwise it ended by itself
            _kill(self._children[number].pid)
        return True

    def _fork(self, number: int, ends: Ends, ended: int) -> None:
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

    def _become_worker(self, ends: Ends, ended: int) -> NoReturn:
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
            serve(ends, self._spec, self._limits, self._verifier)
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
                # What it started. A group keeps its number from being reused; without one the
                # number cannot come round again between two calls.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
                _tell(child.ended, status)


def main() -> None:
    """Serve the pool; argument: the descriptor of the connection to it."""
    os.dup2(2, 1)  # whatever a verifier prints goes to stderr
    sandbox.forbid_core_dumps()
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
