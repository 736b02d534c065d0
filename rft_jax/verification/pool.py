"""Verification in worker processes, while the caller samples. Imports no jax.

Chunks of items, not items, cross process borders. A worker that overruns an item's deadline, or
that ends by itself, is replaced: the item at work is undecided, and all others are judged.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, NamedTuple

from rft_jax.errors import VerifierError
from rft_jax.types import Judgement, Question, Verdict
from rft_jax.verification.board import CRASHED, IDLE, MAX_ITEMS
from rft_jax.verification.process import (
    START_SECONDS,
    EndedAtStartError,
    Nursery,
    WorkerGone,
    WorkerProcess,
)
from rft_jax.verification.rules import ERROR, TOO_LONG, TRUNCATED, Limits, VerifierSpec

CHUNK_CHARACTERS = 1_000_000
"""A chunk with more characters than this takes no further item: a worker holds a whole chunk."""
CHUNKS_PER_WORKER = 4
"""A small batch is cut so that each worker gets this many chunks, to even out slow items."""
POLL_SECONDS = 0.05
"""A deadline is noticed this late at most."""
FAILURES_SHOWN = 3
"""The first outputs that the verifier fails on are warned of; each one's reason says it."""

logger = logging.getLogger(__name__)
_TRUNCATED = Judgement(Verdict.INCORRECT, TRUNCATED)
_TOO_LONG = Judgement(Verdict.UNDECIDED, TOO_LONG)
_TIMEOUT = Judgement(Verdict.UNDECIDED, "timeout", slow=True)

MAX_ENDS_WITHOUT_ITEM = 3
"""Workers in a row that may end before they begin an item; then the pool gives up."""


class Item(NamedTuple):
    """One output to judge against a reference: a bare answer, or a solution ending in one; under a
    checker of the user's own any value.

    finished: False for an output cut at the length limit, which is never correct by accident.
    question, columns: of its row, for such a checker.
    """

    reference: Any
    output: str
    finished: bool
    question: str = ""
    columns: Mapping[str, Any] = {}

    @classmethod
    def of(cls, question: Question, output: str, finished: bool = True) -> Item:
        """An output of a question."""
        return cls(question.answer, output, finished, question.text, question.columns)


class VerifierPool:
    """Worker processes that judge items; a context manager that leaves no process behind."""

    def __init__(self, spec: VerifierSpec, limits: Limits) -> None:
        """Start the workers; VerifierError when one cannot load the verifier."""
        self.spec, self.name = spec, spec.name
        self._limits = limits
        self._chunks: queue.SimpleQueue[_Chunk | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the five below
        self._failures = 0
        self._closed = False
        self._failure: VerifierError | None = None
        self._batches: set[_Batch] = set()
        self._processes: list[WorkerProcess] = []
        self._threads: list[threading.Thread] = []
        # Modules resolve as in this process, and from the current folder as under `python -m`.
        self._nursery = Nursery(spec, limits, [*sys.path, os.getcwd()])
        try:
            for slot in range(limits.workers):
                self._processes.append(WorkerProcess(self._nursery, slot, self.name))
            for process in self._processes:
                process.wait_ready()
        except BaseException:
            self._nursery.close()
            for process in self._processes:
                process.release()
            raise
        for slot in range(limits.workers):
            thread = threading.Thread(
                target=self._serve, args=(slot,), name=f"verifier-{slot}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    @property
    def is_rule(self) -> bool:
        """Whether a built-in rule finds the answer in the output."""
        return self.spec.is_rule

    def submit(self, items: Sequence[Item]) -> Future[list[Judgement]]:
        """Begin to judge and return at once.

        Returns: a future of one judgement an item, in order; its result raises VerifierError if
            the pool is closed first or its workers fail.
        """
        batch = _Batch(len(items))
        longest = self._limits.max_characters
        to_run = []
        for position, item in enumerate(items):
            if not item.finished:
                batch.judgements[position] = _TRUNCATED
            elif len(item.output) > longest or _size(item.reference) > longest:
                batch.judgements[position] = _TOO_LONG
            else:
                to_run.append(position)
        batch.remaining = len(to_run)
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise VerifierError("the verifier pool is closed: submit while it is open.")
            if to_run:
                self._batches.add(batch)
        if not to_run:
            batch.finish()
        shares = len(self._threads) * CHUNKS_PER_WORKER
        size = min(MAX_ITEMS, math.ceil(len(to_run) / shares)) or 1
        for chunk in _chunks(batch, items, to_run, size, rows=self.spec.reads_rows):
            self._chunks.put(chunk)
        return batch.future

    def verify(self, items: Sequence[Item]) -> list[Judgement]:
        """One judgement an item, in order."""
        return self.submit(items).result()

    def close(self) -> None:
        """Kill the workers; unfinished batches raise. Closing twice is harmless."""
        self._stop(None)
        for thread in self._threads:
            thread.join()
        self._nursery.close()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _stop(self, failure: VerifierError | None) -> None:
        """End everything; `failure` is why, or None for a close that was asked for."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._failure = failure
            unfinished, self._batches = self._batches, set()
            for process in self._processes:
                process.kill()
        for _ in self._threads:
            self._chunks.put(None)
        for batch in unfinished:
            batch.future.set_exception(
                failure or VerifierError("the verifier pool was closed before this batch was done.")
            )

    def _serve(self, slot: int) -> None:
        """Thread of one worker: chunk after chunk, with a new worker when the old one ended."""
        process = self._processes[slot]
        ends_without_item = 0
        try:
            while (chunk := self._chunks.get()) is not None and not self._closed:
                settled = self._run(process, chunk)
                ends_without_item = 0 if settled else ends_without_item + 1
                if not process.killed:
                    continue
                if ends_without_item == MAX_ENDS_WITHOUT_ITEM:
                    raise VerifierError(
                        f"verification workers end before they begin an item ({process.ending}, "
                        f"{MAX_ENDS_WITHOUT_ITEM} in a row); see their messages above."
                    )
                fresh = self._replace(slot)
                if fresh is None:
                    return
                process = fresh
        except VerifierError as error:
            self._stop(error)
        except Exception as error:  # no failure may leave a caller waiting
            self._stop(VerifierError(f"the verifier pool failed: {type(error).__name__}: {error}"))
        finally:
            self._processes[slot].kill()
            self._processes[slot].release()

    def _replace(self, slot: int) -> WorkerProcess | None:
        """A new worker in place of a killed one; None once the pool is closed."""
        for attempt in range(1, MAX_ENDS_WITHOUT_ITEM + 1):
            with self._lock:
                if self._closed:
                    return None
                fresh = WorkerProcess(self._nursery, slot, self.name)
                self._processes[slot].release()
                self._processes[slot] = fresh
            try:
                fresh.wait_ready()
                break
            except EndedAtStartError:
                if attempt == MAX_ENDS_WITHOUT_ITEM:
                    raise
        return fresh

    def _run(self, process: WorkerProcess, chunk: _Chunk) -> int:
        """Judge a chunk, killing the worker if it fails, and return how many items are settled.

        After a failure the verdicts that arrived stand, the item at work is undecided, and the rest
        goes back to the queue in halves, so that a cluster of slow items spreads over the workers.
        """
        total = len(chunk.items)
        watched, since = IDLE, time.monotonic()
        complete = overdue = looks_done = False
        try:
            process.send(chunk.items)
            while not (complete or overdue):
                woken, before = process.wait(POLL_SECONDS), looks_done
                looks_done = process.is_done(total)
                # Not woken, it may be seen before the judgements are.
                complete = looks_done and (woken or before)
                current, now = process.current, time.monotonic()
                if current != watched:
                    # The item began since the last look: its time is never counted too long.
                    watched, since = current, now
                limit = START_SECONDS if current == IDLE else self._limits.timeout_seconds
                overdue = now - since > limit
        except WorkerGone:
            pass
        if not complete:
            process.kill()
        done = self._settle(chunk, 0, process.judgements(total))
        if done == total:
            return total
        culprit = watched if overdue else process.current
        left = list(range(done, total))
        if culprit in left:
            self._settle(chunk, culprit, [_TIMEOUT if overdue or process.out_of_time else CRASHED])
            left.remove(culprit)
        half = math.ceil(len(left) / 2) or 1
        for indices in (left[:half], left[half:]):
            if indices:
                self._chunks.put(
                    _Chunk(
                        chunk.batch,
                        [chunk.positions[index] for index in indices],
                        [chunk.items[index] for index in indices],
                    )
                )
        return total - len(left)

    def _settle(self, chunk: _Chunk, start: int, judgements: Sequence[Judgement]) -> int:
        """Record judgements of the chunk's items from `start` on; returns how many."""
        batch = chunk.batch
        for position, judgement in zip(chunk.positions[start:], judgements, strict=False):
            batch.judgements[position] = judgement
            if judgement.reason.startswith(ERROR):
                self._show(judgement.reason)
        with self._lock:
            batch.remaining -= len(judgements)
            complete = batch.remaining == 0 and batch in self._batches
            if complete:
                self._batches.remove(batch)
        if complete:
            batch.finish()
        return len(judgements)

    def _show(self, reason: str) -> None:
        with self._lock:
            self._failures += 1
            if self._failures > FAILURES_SHOWN:
                return
        logger.warning(
            "verification.verifier %r failed, so the output is undecided: %s",
            self.name,
            reason.removeprefix(ERROR),
        )


class _Batch:
    """The items of one submit, and what is known of them."""

    def __init__(self, size: int) -> None:
        self.judgements: list[Judgement | None] = [None] * size
        self.remaining = size
        self.future: Future[list[Judgement]] = Future()
        self.future.set_running_or_notify_cancel()  # from here on it cannot be cancelled

    def finish(self) -> None:
        """Hand the judgements over; every one is there."""
        judgements = [judgement for judgement in self.judgements if judgement is not None]
        assert len(judgements) == len(self.judgements)
        self.future.set_result(judgements)


class _Chunk(NamedTuple):
    """Items of one batch that travel together: their positions in it, and of each (reference,
    output), for a verifier that reads rows also (question, columns)."""

    batch: _Batch
    positions: list[int]
    items: list[tuple[Any, ...]]


def _chunks(
    batch: _Batch, items: Sequence[Item], positions: Sequence[int], most: int, *, rows: bool
) -> Iterator[_Chunk]:
    """Chunks of the items at these positions, `most` of them in each, fewer of long ones."""
    chunk = _Chunk(batch, [], [])
    characters = 0
    for position in positions:
        item = items[position]
        chunk.positions.append(position)
        chunk.items.append(item[:2] + item[3:] if rows else item[:2])
        characters += _size(item[0]) + len(item[1]) + (_size(item[3:]) if rows else 0)
        if len(chunk.items) == most or characters > CHUNK_CHARACTERS:
            yield chunk
            chunk = _Chunk(batch, [], [])
            characters = 0
    if chunk.items:
        yield chunk


def _size(value: Any) -> int:
    """Characters of a value."""
    return len(value if isinstance(value, str) else repr(value))
