"""The pool's ends of its processes: the nursery, and the workers that it forks. Imports no jax."""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import IO, Any

from rft_jax.errors import VerifierError
from rft_jax.types import Judgement
from rft_jax.verification import board
from rft_jax.verification.nursery import END, FORK, STATUS
from rft_jax.verification.rules import Limits, VerifierSpec
from rft_jax.verification.worker import Ends

START_SECONDS = 60.0
"""Time a worker has to load the verifier, to take in a chunk, and to begin it."""
KILL_SECONDS = 10.0
"""Time the kernel has to end a killed worker."""
CLOSE_SECONDS = 10.0
"""Time the nursery has to end its workers and itself before it is killed."""
SHOWN_BYTES = 1 << 20
"""Of what the verifiers of a pool print."""
SEND_SECONDS = 60.0
"""Time the nursery has to take a request."""

# The module search path goes first: it says where rft_jax and the user's modules are. The main
# module of the parent is never imported, so scripts need no `if __name__ == "__main__"`.
_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:]; from rft_jax.verification.nursery import main; main()"
)
_HIDE_ACCELERATORS = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class Nursery:
    """A running nursery in its own session, with a keeper for each slot; any thread may call it.

    It ends, with all its workers, when this process closes it or dies.
    """

    def __init__(self, spec: VerifierSpec, limits: Limits, search_path: Sequence[str]) -> None:
        """Start the process and return at once; VerifierError when it takes no message.

        Args:
            spec, limits: what every worker gets.
            search_path: where workers look for modules, as sys.path.
        """
        self._lock = threading.Lock()  # one request at a time
        self._connections: list[socket.socket] = []
        with ExitStack() as stack:
            try:
                theirs = []
                for _ in range(limits.workers):
                    ours, other = socket.socketpair()
                    self._connections.append(ours)
                    ours.settimeout(SEND_SECONDS)
                    theirs.append(stack.enter_context(other).fileno())
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _BOOT, ",".join(map(str, theirs)), *search_path],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=theirs,
                    start_new_session=True,
                    env={**os.environ, **_HIDE_ACCELERATORS},
                )
            except BaseException:
                self._disconnect()
                raise
        self._shower = threading.Thread(
            target=_show, args=(self._process.stderr,), name="verifier-output", daemon=True
        )
        self._shower.start()
        try:
            self._connections[0].sendall(pickle.dumps((spec, limits)))
        except OSError:
            error = self.failure()
            self.close()
            raise error from None

    def fork(self, slot: int, ends: Ends, ended: int) -> None:
        """Have the slot's keeper start a worker; VerifierError when it is gone.

        ends, ended: descriptors as nursery.FORK says; the caller closes its own copies.
        """
        with self._lock:
            try:
                socket.send_fds(self._connections[slot], [FORK], [*ends, ended])
            except OSError:
                raise self.failure() from None

    def end(self, slot: int) -> None:
        """Have the slot's worker and all that it started killed; does nothing when its keeper is
        gone."""
        with self._lock, suppress(OSError):
            self._connections[slot].sendall(END)

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
        self._disconnect()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._shower.join(1.0)  # longer only where something that is left holds the pipe

    def _disconnect(self) -> None:
        for connection in self._connections:
            connection.close()


class WorkerGone(Exception):
    """The process ended, or does not take what it is sent."""


class EndedAtStartError(VerifierError):
    """The process ended while it loaded the verifier: because of it, or killed from outside."""


class WorkerProcess:
    """A running worker in its own session: Ctrl-C does not reach it, a kill ends all it started.

    It shares its pipes and its board with no other worker. What it writes to either is no program
    and no length to wait for (board.py).
    """

    def __init__(self, nursery: Nursery, slot: int, name: str) -> None:
        """Ask for the process and return at once; call `wait_ready` before the first `send`.

        Raises VerifierError when the nursery is gone.

        Args:
            nursery: where the slot's keeper is.
            slot: of the worker; the one that was there before must be killed.
            name: of the verifier, for messages.
        """
        self._nursery, self._slot = nursery, slot
        self._name = name
        self._kill_lock = threading.Lock()
        self._deaf = False
        self.killed = False
        self._code: int | None = None
        with ExitStack() as theirs, ExitStack() as ours:
            tasks, self._tasks = _pipe(theirs, ours)
            self._bell, bell = _pipe(ours, theirs)
            life_line, self._life = _pipe(theirs, ours)
            self._ended, ended = _pipe(ours, theirs)
            os.set_blocking(self._tasks, False)
            file = board.new_file()
            theirs.callback(os.close, file)
            self._board = board.Board(file)
            ours.callback(self._board.close)
            self._board.clear()
            nursery.fork(slot, Ends(tasks, bell, life_line, file), ended)
            self._ours = ours.pop_all()

    @property
    def current(self) -> int:
        """Index within its chunk of the item at work, or IDLE."""
        return self._board.current

    @property
    def ended(self) -> bool:
        """Whether the process ended, or nobody is left to tell."""
        return bool(_ready({self._ended: select.POLLIN}, 0.0))

    def wait_ready(self) -> None:
        """Return when the verifier is loaded; VerifierError when it cannot be."""
        deadline = time.monotonic() + START_SECONDS
        gone = False
        while (error := self._board.start()) is None:
            if gone:
                self.kill()
                if self._code is None:
                    raise self._nursery.failure()
                raise EndedAtStartError(
                    f"verification.verifier is {self._name!r}: the worker ended while it loaded it "
                    f"({self.ending}); see its messages above."
                )
            if time.monotonic() > deadline:
                raise VerifierError(
                    f"verification.verifier is {self._name!r}: a worker did not load it "
                    f"within {START_SECONDS:.0f} s; make its module quicker to import."
                )
            try:
                self.wait(0.1)
            except WorkerGone:
                gone = True  # it may have told why
        if error:
            raise VerifierError(error)

    def send(self, chunk: Sequence[tuple[Any, ...]]) -> None:
        """Hand over what the verifier is called with for each item; WorkerGone when the worker does
        not take it."""
        self._board.clear()
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

    def wait(self, seconds: float) -> bool:
        """Wait until the worker has something to say; WorkerGone when it ended.

        True says that it may have: whatever it wrote before is seen now.
        """
        watched = {self._ended: select.POLLIN}
        if not self._deaf:
            watched[self._bell] = select.POLLIN
        ready = _ready(watched, seconds)
        if self._bell in ready:
            # An end of file before its death: a verifier closed what it found.
            self._deaf = not os.read(self._bell, 1 << 16)
            return not self._deaf
        if ready:
            raise WorkerGone
        return False

    def is_done(self, total: int) -> bool:
        """Whether all items of the chunk are judged."""
        return self._board.count(total) == total

    def judgements(self, total: int) -> list[Judgement]:
        """Those of the chunk's `total` items that are judged: of a killed worker, or of one that is
        done."""
        return self._board.judgements(self._board.count(total))

    def kill(self) -> None:
        """End the worker and what it started, for certain. Any thread may call this, repeatedly."""
        with self._kill_lock:
            if self.killed:
                return
            self.killed = True
            self._nursery.end(self._slot)
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


def _show(printed: IO[bytes]) -> None:
    """Pass on to stderr what the processes print, up to SHOWN_BYTES."""
    left = SHOWN_BYTES
    with printed:
        while data := os.read(printed.fileno(), 1 << 16):
            shown, left = data[:left], left - len(data)
            if shown and left <= 0:
                shown += b"\n[what verifiers print from here on is not shown]\n"
            left = max(left, 0)
            with suppress(OSError):  # closed
                os.write(2, shown)


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
