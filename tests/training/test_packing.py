"""Packing: every token once, at its own position, in as many rows as there is room for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rft_jax.training.packing import TrainingSequence, num_microbatches, pack
from rft_jax.types import PackedBatch

ROWS = {"row_length": 12, "rows_per_microbatch": 2}

TOKENS = st.integers(0, 50)
SEQUENCES = st.lists(
    st.builds(
        lambda prompt, completion, weight, kl_weight, known: TrainingSequence(
            prompt,
            completion,
            weight,
            kl_weight,
            [-0.5 * (t + 1) for t in range(len(completion))] if known else (),
        ),
        st.lists(TOKENS, min_size=1, max_size=6),
        st.lists(TOKENS, min_size=1, max_size=6),
        st.sampled_from([0.0, 0.25, 1.0]),
        st.sampled_from([0.0, 0.125]),
        st.booleans(),
    ),
    max_size=12,
)


def unpack(batch: PackedBatch) -> list[tuple[tuple[float, ...], ...]]:
    """(tokens, weights, KL weights, sampler log-probs) of each segment, from its slots alone."""
    found = []
    for micro, row in np.ndindex(batch.inputs.shape[:2]):
        segments = batch.segments[micro, row]
        numbers = sorted(set(segments.tolist()) - {0})
        assert numbers == list(range(1, len(numbers) + 1))
        for number in numbers:
            slots = np.flatnonzero(segments == number)
            assert (np.diff(slots) == 1).all()  # in one piece
            assert batch.positions[micro, row, slots].tolist() == list(range(len(slots)))
            inputs, targets = batch.inputs[micro, row, slots], batch.targets[micro, row, slots]
            assert inputs[1:].tolist() == targets[:-1].tolist()
            real = (batch.weights, batch.kl_weights, batch.sampler_log_probs)
            found.append(
                (
                    (*inputs.tolist(), int(targets[-1])),
                    *(tuple(values[micro, row, slots].tolist()) for values in real),
                )
            )
    return sorted(found)


@given(SEQUENCES)
def test_every_token_is_packed_once_with_what_belongs_to_it(
    sequences: list[TrainingSequence],
) -> None:
    batch = pack(sequences, **ROWS, max_microbatches=6)
    expected = []
    for one in sequences:
        size, before = len(one.completion), [0.0] * (len(one.prompt) - 1)
        # float32, as the device has it; 1/|o| counts EOS, which is one of the completion's tokens.
        weights = [float(np.float32(one.weight / size))] * size
        kl_weights = [float(np.float32(one.kl_weight / size))] * size
        log_probs = list(one.log_probs) or [0.0] * size
        expected.append(
            (
                (*one.prompt, *one.completion),
                tuple(before + weights),
                tuple(before + kl_weights),
                tuple(before + log_probs),
            )
        )
    assert unpack(batch) == sorted(expected)
    total = sum(one.weight for one in sequences)
    assert batch.weights.sum() == pytest.approx(total, rel=1e-5)
    padding = batch.segments == 0
    for values in batch[:-1]:
        assert not values[padding].any()


@given(SEQUENCES)
def test_shapes_do_not_depend_on_the_sequences(sequences: list[TrainingSequence]) -> None:
    batch = pack(sequences, **ROWS, max_microbatches=6)
    assert {values.shape for values in batch[:-1]} == {(6, 2, 12)}
    assert [str(values.dtype) for values in batch] == ["int32"] * 4 + ["float32"] * 3 + ["int32"]
    used = int(batch.num_microbatches)
    assert not batch.segments[used:].any()
    assert used == 0 or batch.segments[used - 1].any()


@given(
    st.integers(1, 20).flatmap(
        lambda longest: st.tuples(
            st.just(longest),
            st.lists(st.integers(2, max(longest, 2)), min_size=1, max_size=60),
        )
    ),
    st.integers(0, 40),
    st.integers(1, 4),
)
def test_room_is_never_exceeded(
    longest_and_lengths: tuple[int, list[int]], spare: int, rows_per_microbatch: int
) -> None:
    """First fit opens a row only when each other one lacks room, and then holds row_length //
    longest sequences or more: so no lengths up to `longest` overrun the bound."""
    longest, lengths = longest_and_lengths
    assume(max(lengths) <= longest)
    shape = {"row_length": longest + spare, "rows_per_microbatch": rows_per_microbatch}
    room = num_microbatches(len(lengths), longest, **shape)
    sequences = [TrainingSequence([1], [2] * (length - 1), 1.0) for length in lengths]
    batch = pack(sequences, **shape, max_microbatches=room)
    assert 1 <= batch.num_microbatches <= room


def test_room_for_the_longest_is_exact() -> None:
    """Sequences that leave no slot unused need all of it."""
    sequences = [TrainingSequence([1] * 3, [2] * 4, 1.0)] * 9  # 6 slots each
    room = num_microbatches(9, 6, row_length=12, rows_per_microbatch=2)
    assert room == 3
    assert pack(sequences, **ROWS, max_microbatches=room).num_microbatches == 3


def test_long_sequences_are_placed_first() -> None:
    sequences = [TrainingSequence([1], [2] * size, 1.0) for size in (3, 9, 4, 8)]
    batch = pack(sequences, **ROWS, max_microbatches=1)
    assert sorted(np.count_nonzero(batch.segments[0], axis=1).tolist()) == [12, 12]


def test_nothing_to_pack_uses_no_micro_batch() -> None:
    batch = pack([], **ROWS, max_microbatches=2)
    assert batch.num_microbatches == 0
    assert not batch.segments.any()


def test_a_sequence_longer_than_a_row_is_an_error() -> None:
    fits, longer = (TrainingSequence([1] * 6, [2] * size, 1.0) for size in (7, 8))
    pack([fits], **ROWS, max_microbatches=1)
    with pytest.raises(ValueError, match=r"^a sequence of 14 tokens does not fit update\.row_len"):
        pack([longer], **ROWS, max_microbatches=1)


def test_too_many_sequences_are_an_error() -> None:
    sequences = [TrainingSequence([1] * 6, [2] * 7, 1.0)] * 5
    with pytest.raises(
        ValueError,
        match=r"^5 sequences need 3 micro-batches and there is room for 2: raise "
        r"update\.row_length\.$",
    ):
        pack(sequences, **ROWS, max_microbatches=2)
