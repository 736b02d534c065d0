"""Packing: sequences of odd lengths into rows of one static shape. Host side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rft_jax.config import Config
from rft_jax.types import PackedBatch

Weight = float | np.ndarray
"""One for an output, or one for each of its tokens."""


class OutputFacts(NamedTuple):
    """What a coefficient that is computed before each update needs of an output beside its tokens.

    question_id, correct, reward, finished: as in types.Facts; reference: log pi_ref(o | q) in nats;
    share: what the coefficient is multiplied by, 1 over the denominator.
    """

    question_id: int
    correct: bool
    reward: float
    finished: bool
    reference: float
    share: float


class TrainingSequence(NamedTuple):
    """A prompt and an output with the output's weight in the objective.

    weight: GC / denominator (1/|o| is applied in packing); kl_weight: the same for the KL term;
    log_probs: what the sampler reported for each completion token, empty when unknown; facts: where
    the coefficient in the weight is computed again before the update; values: V before each token
    and what it should have been, where a value function is trained; replayed: beside the policy's
    own outputs (config section `replay`): it has no log-probs, facts or values.
    """

    prompt: Sequence[int]
    completion: Sequence[int]
    weight: Weight
    kl_weight: float = 0.0
    log_probs: Sequence[float] = ()
    facts: OutputFacts | None = None
    values: tuple[Sequence[float], Sequence[float]] | None = None
    replayed: bool = False

    @property
    def length(self) -> int:
        """Slots that it takes: its last token is only a target."""
        return len(self.prompt) + len(self.completion) - 1


def num_microbatches(
    num_sequences: int, longest: int, *, row_length: int, rows_per_microbatch: int
) -> int:
    """Micro-batches that hold `num_sequences` of at most `longest` tokens, however they fall."""
    per_row = row_length // longest
    rows = -(-num_sequences // per_row)
    return -(-rows // rows_per_microbatch)


def _first_fit(lengths: Sequence[int], row_length: int) -> list[tuple[int, int]]:
    """(row, offset) of each sequence: longest first, each in the first row with room."""
    used: list[int] = []
    places = [(0, 0)] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        row = next((r for r, taken in enumerate(used) if taken + length <= row_length), len(used))
        if row == len(used):
            used.append(0)
        places[index] = (row, used[row])
        used[row] += length
    return places


def places(sequences: Sequence[TrainingSequence], row_length: int) -> list[tuple[int, int]]:
    """(row, offset) at which `pack` puts each sequence."""
    return _first_fit([one.length for one in sequences], row_length)


def pack(
    sequences: Sequence[TrainingSequence],
    *,
    row_length: int,
    rows_per_microbatch: int,
    max_microbatches: int,
) -> PackedBatch:
    """Pack sequences into [M, R, S] rows; a sequence of n tokens takes n - 1 slots.

    A token's weight is its output's weight / |o|, at the slot that predicts it; the log-probs of
    what is replayed are NaN. The arrays are numpy's; the same shapes come out whatever the
    sequences, so an update is compiled once.
    Raises ValueError when the sequences do not fit.
    """
    lengths = [one.length for one in sequences]
    for length in lengths:
        if length > row_length:
            raise ValueError(
                f"a sequence of {length + 1} tokens does not fit update.row_length, {row_length}."
            )
    placed = places(sequences, row_length)
    rows = 1 + max((row for row, _ in placed), default=-1)
    used = -(-rows // rows_per_microbatch)
    if used > max_microbatches:
        raise ValueError(
            f"{len(sequences)} sequences need {used} micro-batches and there is room for "
            f"{max_microbatches}: raise update.row_length."
        )
    shape = (max_microbatches * rows_per_microbatch, row_length)
    whole = {name: np.zeros(shape, np.int32) for name in ("inputs", "targets", "positions")}
    segments = np.zeros(shape, np.int32)
    real = {name: np.zeros(shape, np.float32) for name in ("weights", "kl_weights", "log_probs")}
    numbers = np.zeros(shape[0], np.int32)
    for sequence, length, (row, offset) in zip(sequences, lengths, placed, strict=True):
        tokens = np.fromiter((*sequence.prompt, *sequence.completion), np.int32, length + 1)
        here = slice(offset, offset + length)
        numbers[row] += 1
        whole["inputs"][row, here] = tokens[:-1]
        whole["targets"][row, here] = tokens[1:]
        whole["positions"][row, here] = np.arange(length)
        segments[row, here] = numbers[row]
        outputs = slice(offset + len(sequence.prompt) - 1, offset + length)
        size = len(sequence.completion)
        real["weights"][row, outputs] = sequence.weight / size
        real["kl_weights"][row, outputs] = sequence.kl_weight / size
        if len(sequence.log_probs):
            real["log_probs"][row, outputs] = sequence.log_probs
        if sequence.replayed:
            real["log_probs"][row, outputs] = np.nan
    split = (max_microbatches, rows_per_microbatch, row_length)
    arrays: dict[str, Any] = {
        "inputs": whole["inputs"].reshape(split),
        "targets": whole["targets"].reshape(split),
        "positions": whole["positions"].reshape(split),
        "segments": segments.reshape(split),
        "weights": real["weights"].reshape(split),
        "kl_weights": real["kl_weights"].reshape(split),
        "sampler_log_probs": real["log_probs"].reshape(split),
        "num_microbatches": np.int32(used),
    }
    return PackedBatch(**arrays)


def spread(
    sequences: Sequence[TrainingSequence], values: Sequence[np.ndarray], batch: PackedBatch
) -> np.ndarray:
    """Numbers of output tokens at the slots that predict them, [M, R, S] float32, 0 elsewhere.

    Args:
        sequences: that `batch` packs.
        values: of each output's tokens.
        batch: of these sequences.
    """
    split = batch.inputs.shape
    found = np.zeros((split[0] * split[1], split[2]), np.float32)
    for one, of_output, (row, offset) in zip(
        sequences, values, places(sequences, split[2]), strict=True
    ):
        found[row, offset + len(one.prompt) - 1 : offset + one.length] = of_output
    return found.reshape(split)


class UpdateSizes(NamedTuple):
    """Sizes that all updates of a run have. sequences: at most of a step; microbatches: that hold
    them, however long they are; rows: of a micro-batch; row_length: tokens of a row."""

    sequences: int
    microbatches: int
    rows: int
    row_length: int


def update_sizes(config: Config) -> UpdateSizes:
    """The sizes of a run's updates."""
    shapes = config.update
    most = shapes.sequences_per_step
    if config.refill is not None:
        assert config.rollout is not None
        group = config.rollout.samples_per_question
        most = config.refill.accepted or config.refill.mixed_groups * group
    elif config.rollout is not None and not most:
        most = config.rollout.questions_per_step * config.rollout.samples_per_question
    if config.row.log_ratios and config.rollout is not None and shapes.minibatches > 1:
        group = config.rollout.samples_per_question  # which stays together
        most = -(-most // group // shapes.minibatches) * group
    else:
        most = -(-most // shapes.minibatches)
    most += config.replay.sequences_per_step if config.replay else 0
    rows = {"row_length": shapes.row_length, "rows_per_microbatch": shapes.rows_per_microbatch}
    longest = config.data.max_prompt_tokens + config.data.max_completion_tokens
    return UpdateSizes(
        most, num_microbatches(most, longest, **rows), shapes.rows_per_microbatch, shapes.row_length
    )


def pack_step(sequences: Sequence[TrainingSequence], config: Config) -> PackedBatch:
    """The sequences of a step in the shapes that all its updates have (numpy)."""
    sizes = update_sizes(config)
    return pack(
        sequences,
        row_length=sizes.row_length,
        rows_per_microbatch=sizes.rows,
        max_microbatches=sizes.microbatches,
    )
