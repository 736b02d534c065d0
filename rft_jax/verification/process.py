"""The pool's ends of its processes: the nursery, and the workers that it forks. Imports no jax."""

from __future__ import annotations

import itertools
import json
import mmap
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

from rft_jax.errors import VerifierError
from rft_jax.verification.rules import Limits, VerifierSpec
from rft_jax.verification.worker import END, FORK, IDLE, REQUEST, STATUS, Ends, Verdicts

START_SECONDS = 60.0
"""Time a worker has to load the verifier, to take in a chunk, and to begin it."""
KILL_SECONDS = 10.0
"""Time the kernel has to end a killed worker."""
CLOSE_SECONDS = 5.0
"""Time the nursery has to end its workers and itself before it is killed."""
SEND_SECONDS = 60.0
"""Time the nursery has to take a request."""

# The module search path goes first: it says where rft_jax and the user's modules are. The main
# module of the parent is never imported, so scripts need no `if __name__ == "__main__"`.
_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:]; from rft_jax.verification.worker import main; main()"
)
_HIDE_ACCELERATORS = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class Nursery:
    """A running nursery in its own session; any thread may call it.

    It ends, with all its workers, when this process closes it or dies.
    """

    def __init__(self, spec: VerifierSpec, limits: Limits, search_path: Sequence[str]) -> None:
        """Start the process and return at once; VerifierError when it takes no message.

        Args:
            spec, limits: what every worker gets.
            search_path: where workers look for modules, as sys.path.
        """
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # one request at a time
        self._connection, theirs = socket.socketpair()
        self._connection.settimeout(SEND_SECONDS)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _BOOT, str(theirs.fileno()), *search_path],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    env={**os.environ, **_HIDE_ACCELERATORS},
                )
        except BaseException:
            self._connection.close()
            raise
        try:
            self._connection.sendall(pickle.dumps((spec, limits)))
        except OSError:
            error = self.failure()
            self.close()
            raise error from None

    def fork(self, ends: Ends, ended: int) -> int:
        """The number of a new worker; VerifierError when the nursery is gone.

        ends, ended: descriptors as worker.REQUEST says; the caller closes its own copies.
        """
        with self._lock:
            number = next(self._numbers)
            try:
                socket.send_fds(self._connection, [REQUEST.pack(FORK, number)], [*ends, ended])
            except OSError:
                raise self.failure() from None
        return number

    def end(self, number: int) -> None:
        """Have a worker and all that it started killed; does nothing when the nursery is gone."""
        with self._lock, suppress(OSError):
            self._connection.sendall(REQUEST.pack(END, number))

    def failure(self) -> VerifierError:
        """What to raise when the nursery is gone."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self._process.returncode
        how = "it takes no requests" if code is None else _in_words(code)
        return VerifierError(
            f"the process that starts verification workers is gone ({how}); see its messages above."
        )

    def close(self) -> None:
        """End the nursery and every worker, for certain. Closing twice is harmless."""
        self._connection.close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class WorkerGone(Exception):
    """The process ended, or does not take what it is sent."""


class EndedAtStartError(VerifierError):
    """The process ended while it loaded the verifier: because of it, or killed from outside."""


class WorkerProcess:
    """A running worker in its own session: Ctrl-C does not reach it, a kill ends all it started.

    It shares its pipes and its word of memory with no other worker, so a kill in the middle of a
    message harms none.
    """

    def __init__(self, nursery: Nursery, name: str) -> None:
        """Ask for the process and return at once; call `wait_ready` before the first `send`.

        name: of the verifier, for messages. Raises VerifierError when the nursery is gone.
        """
        self._nursery = nursery
        self._name = name
        self._received = bytearray()
        self._kill_lock = threading.Lock()
        self.killed = False
        self._code: int | None = None
        with ExitStack() as theirs, ExitStack() as ours:
            tasks, self._tasks = _pipe(theirs, ours)
            self._answers, answers = _pipe(ours, theirs)
            life_line, self._life = _pipe(theirs, ours)
            self._ended, ended = _pipe(ours, theirs)
            os.set_blocking(self._tasks, False)
            os.set_blocking(self._answers, False)
            word_file = theirs.enter_context(tempfile.TemporaryFile(buffering=0))
            word_file.truncate(8)
            self._word = ours.enter_context(mmap.mmap(word_file.fileno(), 8))
            self._progress = ours.enter_context(memoryview(self._word).cast("q"))
            self._progress[0] = IDLE
            self._number = nursery.fork(Ends(tasks, answers, life_line, word_file.fileno()), ended)
            self._ours = ours.pop_all()

    @property
    def current(self) -> int:
        """Index within its chunk of the item at work, or IDLE."""
        return int(self._progress[0])

    @property
    def ended(self) -> bool:
        """Whether the process ended, or nobody is left to tell."""
        return bool(_ready({self._ended: select.POLLIN}, 0.0))

    def wait_ready(self) -> None:
        """Return when the verifier is loaded; VerifierError when it cannot be."""
        try:
            deadline = time.monotonic() + START_SECONDS
            while not (answers := self._read(0.1)):
                if time.monotonic() > deadline:
                    raise VerifierError(
                        f"verification.verifier is {self._name!r}: a worker did not load it "
                        f"within {START_SECONDS:.0f} s; make its module quicker to import."
                    )
        except WorkerGone:
            self.kill()
            if self._code is None:
                raise self._nursery.failure() from None
            raise EndedAtStartError(
                f"verification.verifier is {self._name!r}: the worker ended while it loaded it "
                f"({self.ending}); see its messages above."
            ) from None
        if answers[0] is not None:
            raise VerifierError(answers[0])

    def send(self, chunk: Sequence[tuple[str, str]]) -> None:
        """Hand over (reference, output) pairs; WorkerGone when the worker does not take them."""
        data = memoryview(pickle.dumps(list(chunk), protocol=pickle.HIGHEST_PROTOCOL))
        deadline = time.monotonic() + START_SECONDS
        while data:
            ready = _ready({self._tasks: select.POLLOUT, self._ended: select.POLLIN}, 0.1)
            if self._ended in ready or time.monotonic() > deadline:
                raise WorkerGone
            try:
                if ready:
                    data = data[os.write(self._tasks, data) :]
            except BrokenPipeError:
                raise WorkerGone from None

    def receive(self, seconds: float) -> Verdicts:
        """Verdicts that arrive within `seconds`, in order; WorkerGone when none can come."""
        return [
            (verdict, reason) for verdicts in self._read(seconds) for verdict, reason in verdicts
        ]

    def drain(self) -> Verdicts:
        """Verdicts a killed worker had sent."""
        with suppress(WorkerGone):
            return self.receive(0.0)
        return []

    def kill(self) -> None:
        """End the worker and what it started, for certain. Any thread may call this, repeatedly."""
        with self._kill_lock:
            if self.killed:
                return
            self.killed = True
            self._nursery.end(self._number)
            if _ready({self._ended: select.POLLIN}, KILL_SECONDS):
                status = os.read(self._ended, STATUS.size)
                if len(status) == STATUS.size:
                    self._code = os.waitstatus_to_exitcode(*STATUS.unpack(status))

    def release(self) -> None:
        """Close the pipes of a killed worker; only the thread that uses them may call this.

        With the life line closed, the worker ends even if the nursery was gone and killed nothing.
        """
        self._ours.close()

    @property
    def out_of_time(self) -> bool:
        """Whether the kernel ended it for the processor time it used."""
        return self._code == -signal.SIGXCPU

    @property
    def ending(self) -> str:
        """How a killed worker ended, in words."""
        return "unknown" if self._code is None else _in_words(self._code)

    def _read(self, seconds: float) -> list[Any]:
        """Messages that are complete after at most one wait of `seconds`."""
        # A process may hold the pipe open beyond its parent's death, so look for that death too.
        ready = _ready({self._answers: select.POLLIN, self._ended: select.POLLIN}, seconds)
        if self._answers not in ready:
            if self._ended in ready:
                raise WorkerGone
            return []
        end_of_file = False
        while True:
            try:
                data = os.read(self._answers, 1 << 16)
            except BlockingIOError:
                break
            if not data:
                end_of_file = True
                break
            self._received += data
        *lines, self._received = self._received.split(b"\n")
        messages = [json.loads(line) for line in lines]
        if end_of_file and not messages:
            raise WorkerGone
        return messages


def _in_words(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """(read end, write end), each closed by its owner."""
    read_end, write_end = os.pipe()
    reader.callback(os.close, read_end)
    writer.callback(os.close, write_end)
    return read_end, write_end


def _ready(events: dict[int, int], seconds: float) -> frozenset[int]:
    """The descriptors that become ready, or whose other end closes, within `seconds`."""
    poll = select.poll()  # unlike select(), takes descriptors beyond 1023
    for descriptor, event in events.items():
        poll.register(descriptor, event)
    return frozenset(descriptor for descriptor, _ in poll.poll(seconds * 1000))
