"""The endless stream of questions; its position is a plain value that a checkpoint can hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from rft_jax.errors import CheckpointError


@dataclass(frozen=True)
class Position:
    """Where the stream stands: of the epoch's order the first `index` questions are taken."""

    epoch: int = 0
    index: int = 0


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
    epoch, index = position.epoch, position.index
    if not (epoch >= 0 and 0 <= index < num_questions):
        raise CheckpointError(
            f"question stream: epoch {epoch}, index {index} does not exist among {num_questions} "
            "questions: the source has changed since the position was saved; bring it back or "
            "start a new run."
        )
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
