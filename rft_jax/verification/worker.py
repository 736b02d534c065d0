"""The main program of a verification worker: judges chunks of items until its parent is gone.

It is started by `process.py` and imports no jax. Protocol: a pickled verifier name comes in, then
chunks, each a pickled list of (reference, output). Out go frames (4 bytes of length, then a
pickle): None or the text of an error once the verifier is loaded, then lists of (verdict, reason)
in the order of the items. The index of the item at work stands in a word shared with the parent.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
import signal
import struct
import sys
import time
from typing import Any, BinaryIO

from rft_jax.records import Judgement, Verdict
from rft_jax.verification.rules import Verifier, VerifierError, load_verifier

IDLE = -1
"""Value of the shared word while no item is at work."""
FRAME = struct.Struct("<I")
"""Length of a frame in bytes, before it."""
FLUSH_SECONDS = 0.05
"""Verdicts wait at most so long plus one item before they are sent: what a kill can undo."""

Verdicts = list[tuple[str, str]]


def main() -> None:
    """Serve the parent on stdin and stdout; arguments: descriptors of life line and shared word."""
    life_line, word_file = int(sys.argv[1]), int(sys.argv[2])
    _die_with_parent(life_line)
    tasks, frames = _private_streams()
    progress = memoryview(mmap.mmap(word_file, 8)).cast("q")
    try:
        verifier = load_verifier(pickle.load(tasks))
    except VerifierError as error:
        _send(frames, str(error))
        return
    _send(frames, None)
    while True:
        try:
            chunk = pickle.load(tasks)
        except (EOFError, pickle.UnpicklingError):  # the parent closed its end, or died writing
            return
        _judge_chunk(verifier, chunk, frames, progress)


def judge(verifier: Verifier, reference: str, output: str) -> tuple[str, str]:
    """(verdict, reason) of one item; whatever goes wrong in the verifier is undecided."""
    try:
        found = verifier(reference, output)
        if isinstance(found, Judgement):
            return Verdict(found.verdict).value, str(found.reason)
    except BaseException as error:  # also sys.exit: only this item is undecided
        return Verdict.UNDECIDED.value, f"error: {type(error).__name__}"
    if found is True:
        return Verdict.CORRECT.value, "accepted"
    if found is False:
        return Verdict.INCORRECT.value, "rejected"
    return Verdict.UNDECIDED.value, f"error: returned {type(found).__name__}"


def _judge_chunk(
    verifier: Verifier,
    chunk: list[tuple[str, str]],
    frames: BinaryIO,
    progress: memoryview,
) -> None:
    verdicts: Verdicts = []
    sent = time.monotonic()
    for index, (reference, output) in enumerate(chunk):
        if verdicts and time.monotonic() - sent > FLUSH_SECONDS:
            progress[0] = IDLE  # waiting for the parent to read is no item's time
            _send(frames, verdicts)
            verdicts = []
            sent = time.monotonic()
        progress[0] = index
        verdicts.append(judge(verifier, reference, output))
    progress[0] = IDLE
    _send(frames, verdicts)


def _send(frames: BinaryIO, message: Any) -> None:
    payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    frames.write(FRAME.pack(len(payload)) + payload)
    frames.flush()


def _private_streams() -> tuple[BinaryIO, BinaryIO]:
    """stdin and stdout under other numbers, so that a verifier that prints or reads harms nothing:
    it reads nothing, and prints to stderr."""
    tasks = os.fdopen(os.dup(0), "rb")
    frames = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return tasks, frames


def _die_with_parent(life_line: int) -> None:
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
