"""What a worker tells the pool: fixed records in memory that both share. Imports no jax.

A verifier of the user's runs in the worker and may write to every descriptor that it finds. None
leads to this memory, and whatever stands in it the pool reads as a verdict and a short text: it
runs nothing, follows no length that it was told beyond the record, and waits for nothing.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import struct
import tempfile
from functools import lru_cache

from rft_jax.types import Judgement, Verdict

MAX_ITEMS = 256
"""Records, and so items of the largest chunk."""
TEXT_BYTES = 496
"""Of a reason, and of an answer, in UTF-8; a longer one is cut, an answer with its digest."""
MAX_STEPS = 1024
"""Of an output whose rewards a checker may say."""
IDLE = -1
"""In place of an item's index while none is at work."""
CRASHED = Judgement(Verdict.UNDECIDED, "crashed")

_CURRENT, _DONE, _LOADED = range(3)
"""Words before the records: the item at work, how many are judged, what became of the start."""
_OK, _FAILED = 1, 2
_WORDS = struct.Struct("@3q")
_HEAD = struct.Struct("<BBHhHd")
"""Of a record: the verdict, whether it took over half of the deadline, bytes of the reason and of
the answer (-1 for none), how many steps there are, the reward (nan for none)."""
_SIZES = struct.Struct("<HhH")
"""The three sizes in it."""
_STEP = struct.Struct("<Id")
"""Its end and its reward; steps stand between the head and the texts."""
_RECORD_BYTES = _HEAD.size + MAX_STEPS * _STEP.size + 2 * TEXT_BYTES
_ERROR_BYTES = 4000
_VERDICTS = tuple(Verdict)


class Board:
    """The records; worker and pool each map the same file."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, _WORDS.size + MAX_ITEMS * _RECORD_BYTES)
        self._view = memoryview(self._memory)
        self._words = self._view[: _WORDS.size].cast("q")

    def close(self) -> None:
        """Unmap it."""
        self._words.release()
        self._view.release()
        self._memory.close()

    # The worker's side

    def loaded(self, error: str | None) -> None:
        """The verifier is loaded, or why it cannot be."""
        text = (error or "").encode(errors="replace")[:_ERROR_BYTES]
        self._memory[_WORDS.size : _WORDS.size + _ERROR_BYTES] = text.ljust(_ERROR_BYTES, b"\0")
        self._words[_LOADED] = _OK if error is None else _FAILED

    def begin(self, index: int) -> None:
        """An item is at work now, or IDLE."""
        self._words[_CURRENT] = index

    def put(self, index: int, judgement: Judgement, slow: bool) -> None:
        """The verdict of an item; they come in order."""
        record = _record(judgement, slow)
        start = _WORDS.size + index * _RECORD_BYTES
        self._memory[start : start + len(record)] = record
        self._words[_DONE] = index + 1

    # The pool's side

    def clear(self) -> None:
        """Before a chunk: nothing is at work and nothing is judged."""
        self._words[_CURRENT], self._words[_DONE] = IDLE, 0

    def start(self) -> str | None:
        """What became of the start: None while it lasts, empty once loaded, else the error."""
        if self._words[_LOADED] != _FAILED:
            return "" if self._words[_LOADED] == _OK else None
        text = self._memory[_WORDS.size : _WORDS.size + _ERROR_BYTES].rstrip(b"\0")
        return text.decode(errors="replace") or "unknown"

    @property
    def current(self) -> int:
        """Index within its chunk of the item at work, or IDLE."""
        return self._words[_CURRENT]

    def count(self, total: int) -> int:
        """How many of `total` items are judged."""
        return min(max(self._words[_DONE], 0), total)

    def judgements(self, count: int) -> list[Judgement]:
        """Those of the first `count` items; a record that is none is of a crashed worker."""
        found = []
        for start in range(_WORDS.size, _WORDS.size + count * _RECORD_BYTES, _RECORD_BYTES):
            reason, answer, steps = _SIZES.unpack_from(self._memory, start + 2)
            end = start + _HEAD.size + min(steps, MAX_STEPS) * _STEP.size
            end += min(reason, TEXT_BYTES) + min(max(answer, 0), TEXT_BYTES)
            found.append(_judgement(self._memory[start:end]))
        return found


def new_file() -> int:
    """A descriptor of a file for a board; it has no name."""
    if hasattr(os, "memfd_create"):  # a full disk cannot take its pages away
        descriptor = os.memfd_create("verdicts")
    else:
        with tempfile.TemporaryFile(buffering=0) as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, _WORDS.size + MAX_ITEMS * _RECORD_BYTES)
    return descriptor


def hide(descriptor: int) -> None:
    """Leave this process no descriptor of the file, which is mapped: they lead to nothing instead.

    mmap keeps one of its own.
    """
    file = os.fstat(descriptor)
    with open(os.devnull, "r+b") as nothing:
        for name in os.listdir("/dev/fd"):
            try:
                other = os.fstat(int(name))
            except OSError:  # the one that listed them
                continue
            if (file.st_dev, file.st_ino) == (other.st_dev, other.st_ino):
                os.dup2(nothing.fileno(), int(name), inheritable=False)


@lru_cache(maxsize=1024)
def _record(judgement: Judgement, slow: bool) -> bytes:
    reason, answer = _cut(judgement.reason), _cut(judgement.answer or "", digest=True)
    reward = math.nan if judgement.reward is None else judgement.reward
    size = -1 if judgement.answer is None else len(answer)
    verdict = _VERDICTS.index(judgement.verdict)
    head = _HEAD.pack(verdict, slow, len(reason), size, len(judgement.steps), reward)
    return head + b"".join(_STEP.pack(*step) for step in judgement.steps) + reason + answer


def _cut(text: str, *, digest: bool = False) -> bytes:
    """The characters that fit, whole; with a digest of all where they do not all fit."""
    whole = text.encode(errors="replace")
    if len(whole) <= TEXT_BYTES:
        return whole
    end = f" {hashlib.sha256(whole).hexdigest()}" if digest else ""
    return (whole[: TEXT_BYTES - len(end)].decode(errors="ignore") + end).encode()


@lru_cache(maxsize=1024)
def _judgement(record: bytes) -> Judgement:
    verdict, slow, reason, answer, count, reward = _HEAD.unpack_from(record)
    first, end = _HEAD.size + min(count, MAX_STEPS) * _STEP.size, min(reason, TEXT_BYTES)
    texts, steps = record[first:], tuple(_STEP.iter_unpack(record[_HEAD.size : first]))
    if verdict >= len(_VERDICTS) or not all(math.isfinite(reward) for _, reward in steps):
        return CRASHED
    return Judgement(
        _VERDICTS[verdict],
        texts[:end].decode(errors="replace"),
        bool(slow),
        None if answer < 0 else texts[end:].decode(errors="replace"),
        reward if 0 <= reward <= 1 else None,
        steps,
    )
