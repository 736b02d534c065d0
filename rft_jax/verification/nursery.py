"""The nursery seen from the pool: start it, have it fork and end workers. Imports no jax."""

from __future__ import annotations

import itertools
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

from rft_jax.errors import VerifierError
from rft_jax.verification.limits import Limits
from rft_jax.verification.nursery_main import END, FORK, REQUEST
from rft_jax.verification.rules import VerifierSpec
from rft_jax.verification.worker import Ends

CLOSE_SECONDS = 5.0
"""Time the nursery has to end its workers and itself before it is killed."""
SEND_SECONDS = 60.0
"""Time the nursery has to take a request."""

# The module search path goes first: it says where rft_jax and the user's modules are. The main
# module of the parent is never imported, so scripts need no `if __name__ == "__main__"`.
_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from rft_jax.verification.nursery_main import main; main()"
)
_HIDE_ACCELERATORS = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class Nursery:
    """A running nursery in a session of its own; any thread may call it.

    It ends, with all its workers, when this process closes it or dies.
    """

    def __init__(self, spec: VerifierSpec, limits: Limits, search_path: Sequence[str]) -> None:
        """Start the process and return at once; VerifierError when it takes no message."""
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

        ends, ended: descriptors as nursery_main.REQUEST says; the caller closes its own copies.
        """
        with self._lock:
            number = next(self._numbers)
            try:
                socket.send_fds(self._connection, [REQUEST.pack(FORK, number)], [*ends, ended])
            except OSError:
                raise self.failure() from None
        return number

    def end(self, number: int) -> None:
        """Have the worker and all that it started killed. Does nothing when the nursery is gone."""
        with self._lock, suppress(OSError):
            self._connection.sendall(REQUEST.pack(END, number))

    def failure(self) -> VerifierError:
        """What to raise when the nursery is gone."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self._process.returncode
        if code is None:
            how = "it takes no requests"
        else:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
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
