"""One worker process seen from its parent: start, send a chunk, receive verdicts, kill."""

from __future__ import annotations

import mmap
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from rft_jax.verification.rules import VerifierError
from rft_jax.verification.worker import FRAME, IDLE, Verdicts

START_SECONDS = 60.0
"""Time a worker has to load the verifier, to take in a chunk, and to begin it."""

# The module search path goes first: it says where rft_jax and the user's modules are. The main
# module of the parent is never imported, so scripts need no `if __name__ == "__main__"`.
_BOOT = (
    "import sys; sys.path[:] = sys.argv[3:]; from rft_jax.verification.worker import main; main()"
)
_HIDE_ACCELERATORS = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class WorkerGone(Exception):
    """The process ended, or does not take what it is sent."""


class EndedAtStartError(VerifierError):
    """The process ended while it loaded the verifier: because of it, or killed from outside."""


class WorkerProcess:
    """A running worker in a session of its own (Ctrl-C does not reach it; it is killed whole)."""

    def __init__(self, verifier: str, search_path: Sequence[str]) -> None:
        """Start the process and return at once; `wait_ready` follows."""
        life_line, self._life = os.pipe()
        with tempfile.TemporaryFile() as word_file:
            word_file.truncate(8)
            self._word = mmap.mmap(word_file.fileno(), 8)
            self._progress = memoryview(self._word).cast("q")
            self._progress[0] = IDLE
            descriptors = (life_line, word_file.fileno())
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _BOOT, *map(str, descriptors), *search_path],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    bufsize=0,
                    pass_fds=descriptors,
                    start_new_session=True,
                    env={**os.environ, **_HIDE_ACCELERATORS},
                )
            except BaseException:
                os.close(self._life)
                raise
            finally:
                os.close(life_line)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._tasks = self._process.stdin.fileno()
        self._frames = self._process.stdout.fileno()
        os.set_blocking(self._tasks, False)
        os.set_blocking(self._frames, False)
        self._received = bytearray()
        self._kill_lock = threading.Lock()
        self.killed = False
        self._verifier = verifier

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def current(self) -> int:
        """Index within its chunk of the item at work, or IDLE."""
        return int(self._progress[0])

    def wait_ready(self) -> None:
        """Return when the verifier is loaded; VerifierError when it cannot be."""
        try:
            self._write(self._verifier)
            deadline = time.monotonic() + START_SECONDS
            while not (answers := self._read(0.1)):
                if time.monotonic() > deadline:
                    raise VerifierError(
                        f"verification.verifier is {self._verifier!r}: a worker did not load it "
                        f"within {START_SECONDS:.0f} s; make its module quicker to import."
                    )
        except WorkerGone:
            self.kill()
            raise EndedAtStartError(
                f"verification.verifier is {self._verifier!r}: the worker ended while it loaded it "
                f"({self.ending}); see its messages above."
            ) from None
        if answers[0] is not None:
            raise VerifierError(answers[0])

    def send(self, chunk: Sequence[tuple[str, str]]) -> None:
        """Hand over (reference, output) pairs; WorkerGone when the worker does not take them."""
        self._write(list(chunk))

    def receive(self, seconds: float) -> Verdicts:
        """Verdicts that arrive within `seconds`, in order; WorkerGone when none can come."""
        return [verdict for verdicts in self._read(seconds) for verdict in verdicts]

    def drain(self) -> Verdicts:
        """Verdicts a killed worker had sent."""
        with suppress(WorkerGone):
            return self.receive(0.0)
        return []

    def kill(self) -> None:
        """End the worker and what it started, for certain. Any thread may call this, repeatedly."""
        with self._kill_lock:
            if not self.killed:
                self.killed = True
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()

    def release(self) -> None:
        """Close the pipes of a killed worker; only the thread that uses them may call this."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        os.close(self._life)
        self._progress.release()
        self._word.close()

    @property
    def ending(self) -> str:
        """How a killed or ended worker ended, in words."""
        code = self._process.returncode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def _write(self, message: Any) -> None:
        data = memoryview(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))
        deadline = time.monotonic() + START_SECONDS
        while data:
            try:
                if _wait_for(self._tasks, select.POLLOUT, 0.1):
                    data = data[os.write(self._tasks, data) :]
            except BrokenPipeError:
                raise WorkerGone from None
            if data and (self._process.poll() is not None or time.monotonic() > deadline):
                raise WorkerGone

    def _read(self, seconds: float) -> list[Any]:
        """Messages that are complete after at most one wait of `seconds`."""
        # A process may hold the pipe open beyond its parent's death, so look for that death too.
        ended = self._process.poll() is not None
        readable = _wait_for(self._frames, select.POLLIN, 0.0 if ended else seconds)
        if ended and not readable:
            raise WorkerGone
        end_of_file = False
        while readable:
            try:
                data = os.read(self._frames, 1 << 20)
            except BlockingIOError:
                break
            if not data:
                end_of_file = True
                break
            self._received += data
        messages = self._complete_messages()
        if end_of_file and not messages:
            raise WorkerGone
        return messages

    def _complete_messages(self) -> list[Any]:
        messages = []
        start = 0
        while len(self._received) - start >= FRAME.size:
            (length,) = FRAME.unpack_from(self._received, start)
            end = start + FRAME.size + length
            if end > len(self._received):
                break
            messages.append(pickle.loads(self._received[start + FRAME.size : end]))
            start = end
        del self._received[:start]
        return messages


def _wait_for(descriptor: int, event: int, seconds: float) -> bool:
    """Whether the descriptor becomes ready, or its other end closes, within `seconds`."""
    poll = select.poll()  # unlike select(), takes descriptors beyond 1023
    poll.register(descriptor, event)
    return bool(poll.poll(seconds * 1000))
