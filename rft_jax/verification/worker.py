"""A verification worker: judges chunks of items until its parent is gone. Imports no jax.

The nursery forks it. Protocol: chunks come in, each a pickled list of (reference, output). Out go
frames (4 bytes of length, then a pickle): None or the text of an error once the verifier is loaded,
then lists of (verdict, reason) in the order of the items. The index of the item at work stands in a
word of memory shared with the parent.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
import select
import signal
import struct
import time
from typing import Any, BinaryIO, NamedTuple

from rft_jax.errors import VerifierError
from rft_jax.types import Judgement, Verdict
from rft_jax.verification import guard
from rft_jax.verification.limits import Limits, ProcessorTime, limit_memory
from rft_jax.verification.rules import Verifier, VerifierSpec, load_verifier

IDLE = -1
"""Value of the shared word while no item is at work."""
FRAME = struct.Struct("<I")
"""Length of a frame in bytes, before it."""
FLUSH_SECONDS = 0.05
FLUSH_ITEMS = 64
"""Verdicts wait at most so long plus one item, or so many, before they are sent: what a kill can
undo."""
OUT_OF_MEMORY = (Verdict.UNDECIDED.value, "out of memory")

Verdicts = list[tuple[str, str]]


class Ends(NamedTuple):
    """A worker's ends of what it shares with its parent, as descriptors."""

    tasks: int
    frames: int
    life_line: int
    word: int


def loaded(spec: VerifierSpec) -> Verifier | str:
    """The verifier, or why there is none."""
    try:
        return load_verifier(spec)
    except VerifierError as error:
        return str(error)


def serve(ends: Ends, spec: VerifierSpec, limits: Limits, verifier: Verifier | str | None) -> None:
    """Serve the parent until it closes its end, or an item used up the memory.

    verifier: what `loaded` found, if that was called already.
    """
    die_with_parent(ends.life_line)
    for descriptor in ends:
        os.set_inheritable(descriptor, False)
    progress = memoryview(mmap.mmap(ends.word, 8)).cast("q")
    tasks, frames = os.fdopen(ends.tasks, "rb"), os.fdopen(ends.frames, "wb")
    verifier = verifier or loaded(spec)
    if isinstance(verifier, str):
        _send(frames, verifier)
        return
    _send(frames, None)
    if spec.is_built_in:
        guard.install()
    limit_memory(limits.memory_mb)
    # The threads of a user's function may burn the deadline on every core.
    threads = 1 if spec.is_built_in else os.cpu_count() or 1
    processor_time = ProcessorTime(limits.timeout_seconds, threads)
    useful = True
    while useful:
        try:
            chunk = pickle.load(tasks)
        except (EOFError, pickle.UnpicklingError):  # the parent closed its end, or died writing
            return
        useful = _judge_chunk(verifier, chunk, frames, progress, processor_time)


def judge(verifier: Verifier, reference: str, output: str) -> tuple[str, str]:
    """(verdict, reason) of one item; whatever goes wrong in the verifier is undecided."""
    try:
        found = verifier(reference, output)
        if isinstance(found, Judgement):
            return Verdict(found.verdict).value, str(found.reason)
    except guard.Blocked as error:
        return Verdict.UNDECIDED.value, f"blocked: {error.event}"
    except MemoryError:
        return OUT_OF_MEMORY
    except BaseException as error:  # also sys.exit: only this item is undecided
        return Verdict.UNDECIDED.value, f"error: {type(error).__name__}"
    if found is True:
        return Verdict.CORRECT.value, "accepted"
    if found is False:
        return Verdict.INCORRECT.value, "rejected"
    return Verdict.UNDECIDED.value, f"error: returned {type(found).__name__}"


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
    frames: BinaryIO,
    progress: memoryview,
    processor_time: ProcessorTime,
) -> bool:
    """Judge and send; False when this process should end, the rest of the chunk not judged."""
    process = os.getpid()
    verdicts: Verdicts = []
    sent = time.monotonic()
    processor_time.allow()
    for index, (reference, output) in enumerate(chunk):
        if verdicts and (len(verdicts) == FLUSH_ITEMS or time.monotonic() - sent > FLUSH_SECONDS):
            progress[0] = IDLE  # waiting for the parent to read is no item's time
            _send(frames, verdicts)
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
    _send(frames, verdicts)
    return len(verdicts) == 0 or verdicts[-1] is not OUT_OF_MEMORY


def _send(frames: BinaryIO, message: Any) -> None:
    payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    frames.write(FRAME.pack(len(payload)) + payload)
    frames.flush()
