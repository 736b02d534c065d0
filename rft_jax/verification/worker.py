"""What a worker does: it judges the chunks that the pool sends. Imports no jax.

Protocol: chunks come in through a pipe, each a pickled list of what a verifier is called with. What
the worker says stands in memory shared with the pool (board.py); a byte through a second pipe only
says that there is something to look at, so that bytes of a verifier's own do no harm there. The
pool never unpickles.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import select
import signal
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from rft_jax.errors import VerifierError
from rft_jax.types import Judgement, Verdict
from rft_jax.verification import reasoning, sandbox
from rft_jax.verification.board import IDLE, Board, hide
from rft_jax.verification.functions import WrongResultError, as_judgement
from rft_jax.verification.rules import (
    ERROR,
    NO_VERDICT,
    Limits,
    Verifier,
    VerifierSpec,
    load_verifier,
)

OUT_OF_MEMORY = Judgement(Verdict.UNDECIDED, "out of memory")
ALLOW_SECONDS = 0.05
"""Items share an allowance of processor time for this long: it is not asked for each of them."""
MESSAGE_CHARACTERS = 200
"""Of an exception's text in a reason."""


class Ends(NamedTuple):
    """A worker's ends of what it shares with the pool, as descriptors."""

    tasks: int
    bell: int
    life_line: int
    board: int


def loaded(spec: VerifierSpec) -> Verifier | str:
    """The verifier, or why there is none."""
    try:
        return load_verifier(spec)
    except VerifierError as error:
        return str(error)


def serve(ends: Ends, spec: VerifierSpec, limits: Limits, verifier: Verifier | str | None) -> None:
    """Serve the pool until it closes its end, or an item has used up the memory.

    Args:
        ends: descriptors shared with the pool.
        spec, limits: the verifier, and what each item may use.
        verifier: what `loaded` returned, or None where it is still to be loaded.
    """
    die_with_parent(ends.life_line)
    for descriptor in ends:
        os.set_inheritable(descriptor, False)
    os.set_blocking(ends.bell, False)
    board = Board(ends.board)
    hide(ends.board)
    verifier = verifier or loaded(spec)
    board.loaded(verifier if isinstance(verifier, str) else None)
    _ring(ends.bell)
    if isinstance(verifier, str):
        return
    if spec.is_built_in:
        sandbox.forbid_code(compiling=spec.name != reasoning.NAME)
    sandbox.limit_memory(limits.memory_mb)
    # The threads of a user's function may burn the deadline on every core.
    threads = 1 if spec.is_built_in else os.cpu_count() or 1
    processor_time = sandbox.ProcessorTime(limits.timeout_seconds, threads)
    with os.fdopen(ends.tasks, "rb") as tasks:
        while True:
            try:
                chunk = pickle.load(tasks)
            except (EOFError, pickle.UnpicklingError):  # the pool closed its end, or died writing
                return
            if not _judge_chunk(verifier, chunk, board, processor_time, limits.timeout_seconds / 2):
                return
            _ring(ends.bell)


def judge(verifier: Verifier, *item: Any) -> Judgement:
    """The judgement of one item; whatever goes wrong in the verifier is undecided."""
    try:
        return as_judgement(verifier(*item))
    except sandbox.Blocked as error:
        return Judgement(Verdict.UNDECIDED, f"blocked: {error.event}")
    except MemoryError:
        return OUT_OF_MEMORY
    except WrongResultError as error:
        return Judgement(Verdict.UNDECIDED, f"{NO_VERDICT}{error}")
    except BaseException as error:  # also sys.exit: only this item is undecided
        return Judgement(Verdict.UNDECIDED, _failure(error))


def _failure(error: BaseException) -> str:
    """An exception in one line: its type, the first of its text, and where the verifier raised."""
    try:
        text = " ".join(str(error)[: 2 * MESSAGE_CHARACTERS].split())[:MESSAGE_CHARACTERS]
    except Exception:  # its own __str__
        text = "no text"
    kind = type(error).__name__
    return f"{ERROR}{f'{kind}: {text}' if text else kind}{_place(error.__traceback__)}"


def _place(traceback: TracebackType | None) -> str:
    """` (FILE:LINE)` of the innermost frame in the file that the verifier called by this package is
    of: where a library raises says less."""
    package, file, line = str(Path(__file__).parent), "", 0
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_filename
        if name == file or not (file or name.startswith(package)):
            file, line = name, traceback.tb_lineno
        traceback = traceback.tb_next
    return f" ({Path(file).name}:{line})" if file else ""


def die_with_parent(life_line: int) -> None:
    """Have the kernel end this process group when the pool's end of the pipe closes.

    The pool never writes to it: the only event is its end, however it came. The kernel then sends
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
    chunk: list[tuple[Any, ...]],
    board: Board,
    processor_time: sandbox.ProcessorTime,
    slow_seconds: float,
) -> bool:
    """Judge; False when this process should end, the rest of the chunk not judged."""
    process = os.getpid()
    allowed = began = time.monotonic()
    processor_time.allow()
    for index, item in enumerate(chunk):
        board.begin(index)
        judgement = judge(verifier, *item)
        if os.getpid() != process:  # the verifier forked and came back twice: this is the copy
            os._exit(0)
        ended = time.monotonic()
        board.put(index, judgement, ended - began > slow_seconds)
        if judgement is OUT_OF_MEMORY:  # what filled the memory may be there still
            break
        if ended - allowed > ALLOW_SECONDS:
            processor_time.allow()
            allowed = ended
        began = ended
    else:
        board.begin(IDLE)
        return True
    board.begin(IDLE)
    return False


def _ring(bell: int) -> None:
    with suppress(BlockingIOError, BrokenPipeError):  # full: the pool will look; or gone
        os.write(bell, b"\0")
