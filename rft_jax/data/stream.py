"""The endless stream of questions; its position is a plain value that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from rft_jax.errors import CheckpointError


@dataclass(frozen=True)
class Position:
    """Where the stream stands: of the epoch's order the first `index` questions are taken.

    further: where the streams of a schedule's further sources stand.
    """

    epoch: int = 0
    index: int = 0
    further: tuple[Position, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The position as a checkpoint holds it."""
        further = {"further": [one.to_json() for one in self.further]} if self.further else {}
        return {"epoch": self.epoch, "index": self.index, **further}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Position:
        """The inverse of `to_json`."""
        further = tuple(Position.from_json(one) for one in values.get("further", ()))
        return Position(**{**values, "further": further})


def epoch_order(num_questions: int, seed: int, epoch: int) -> Int[np.ndarray, "num_questions"]:
    """The order of one epoch: a permutation of all rows, a pure function of (seed, epoch).

    It sorts raw Philox words, whose values numpy promises never to change; its shuffles may.
    """
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_questions)
    return np.argsort(words, kind="stable")


def take(
    num_questions: int, seed: int, position: Position, count: int
) -> tuple[Int[np.ndarray, "count"], Position]:
    """The next `count` rows of the stream and the position after them.

    The stream is one permutation of the rows after another, so that no row repeats within an
    epoch; a take may cross any number of epoch boundaries, and any split of takes gives the same
    stream.

    Args:
        num_questions: rows of the source.
        seed: of the run; with the epoch it gives the order.
        position: where the stream stands.

    Raises CheckpointError when the position does not fit `num_questions`.
    """
    epoch, index = _checked(num_questions, position)
    if count < 0:
        raise CheckpointError(
            f"question stream: a take of {count} questions was asked for: it must be 0 or more."
        )
    pieces = [np.empty(0, dtype=np.int64)]
    while count > 0:
        piece = epoch_order(num_questions, seed, epoch)[index : index + count]
        pieces.append(piece)
        count -= len(piece)
        index += len(piece)
        if index == num_questions:
            epoch, index = epoch + 1, 0
    return np.concatenate(pieces), Position(epoch, index)


def ahead(num_questions: int, seed: int, position: Position) -> Iterator[tuple[int, Position]]:
    """The rows of the stream up to the end of the next epoch, each with the position after it.

    Every row is among them. Arguments and error as of `take`.
    """
    epoch, index = _checked(num_questions, position)
    for number, first in ((epoch, index), (epoch + 1, 0)):
        order = epoch_order(num_questions, seed, number)
        for place in range(first, num_questions):
            ends = place + 1 == num_questions
            yield int(order[place]), Position(number + ends, 0 if ends else place + 1)


def _checked(num_questions: int, position: Position) -> tuple[int, int]:
    epoch, index = position.epoch, position.index
    if not (epoch >= 0 and 0 <= index < num_questions):
        raise CheckpointError(
            f"question stream: epoch {epoch}, index {index} does not exist among {num_questions} "
            "questions: the source has changed since the position was saved; bring it back or "
            "start a new run."
        )
    return epoch, index
