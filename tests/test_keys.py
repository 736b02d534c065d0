"""Keys are functions of their address: of all of it, and of nothing else."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.keys import Purpose, run_key, sample_keys, token_keys


def _bits(keys: jax.Array) -> list[tuple[int, ...]]:
    data = np.asarray(jax.random.key_data(keys))
    return [tuple(row) for row in data.reshape(-1, data.shape[-1]).tolist()]


def _keys(questions: list[int], samples: list[int], step: int = 3) -> jax.Array:
    return sample_keys(
        run_key(seed=5, purpose=Purpose.ROLLOUT),
        step=step,
        question_ids=jnp.asarray(questions, jnp.int32),
        sample_indices=jnp.asarray(samples, jnp.int32),
    )


def test_a_token_key_folds_its_address_in_the_documented_order() -> None:
    found = _bits(token_keys(_keys([9, 70], [0, 2]), jnp.array([4, 11])))
    for bits, address in zip(found, [(9, 0, 4), (70, 2, 11)], strict=True):
        expected = jax.random.key(5)
        for part in (int(Purpose.ROLLOUT), 3, *address):
            expected = jax.random.fold_in(expected, part)
        assert bits == _bits(expected)[0]


def test_the_bits_of_one_address_never_change() -> None:
    """Another value here means that a seed no longer gives the samples it gave before."""
    assert _bits(token_keys(_keys([70], [2]), jnp.array([11]))) == [(441923252, 3359419060)]


@pytest.mark.slow
@settings(max_examples=30)
@given(
    addresses=st.lists(
        st.tuples(st.integers(-1, 2**31 - 1), st.integers(0, 2**31 - 1)), min_size=6, max_size=6
    ),
    order=st.permutations(range(6)),
)
def test_a_key_does_not_depend_on_its_neighbours(
    addresses: list[tuple[int, int]], order: list[int]
) -> None:
    questions, samples = map(list, zip(*addresses, strict=True))
    keys = _bits(_keys(questions, samples))
    again = _bits(_keys([questions[i] for i in order], [samples[i] for i in order]))
    assert again == [keys[i] for i in order]
    assert _bits(_keys(questions[:1] * 6, samples[:1] * 6)) == keys[:1] * 6
    of_tokens = _bits(token_keys(_keys(questions, samples), jnp.arange(6)))
    shuffled = _keys([questions[i] for i in order], [samples[i] for i in order])
    assert _bits(token_keys(shuffled, jnp.array(order))) == [of_tokens[i] for i in order]


def test_every_part_of_an_address_changes_the_key() -> None:
    keys: list[tuple[int, ...]] = []
    for seed, purpose, step in itertools.product((0, 1), Purpose, (0, 1, 2)):
        root = run_key(seed=seed, purpose=purpose)
        pairs = list(itertools.product((0, 1, 2, 1000), (0, 1, 2)))
        questions, samples = (jnp.asarray(part) for part in zip(*pairs, strict=True))
        of_samples = sample_keys(root, step=step, question_ids=questions, sample_indices=samples)
        for position in (0, 1, 2):
            keys += _bits(token_keys(of_samples, jnp.full(of_samples.shape, position)))
    assert len(set(keys)) == len(keys) == 2 * len(Purpose) * 3 * 12 * 3


def test_keys_are_the_same_inside_jit() -> None:
    @jax.jit
    def traced(step: jax.Array, questions: jax.Array, samples: jax.Array) -> jax.Array:
        root = run_key(seed=5, purpose=Purpose.ROLLOUT)
        keys = sample_keys(root, step=step, question_ids=questions, sample_indices=samples)
        return token_keys(keys, step + samples)

    found = traced(jnp.int32(3), jnp.array([4, 8]), jnp.array([1, 0]))
    assert _bits(found) == _bits(token_keys(_keys([4, 8], [1, 0]), jnp.array([4, 3])))
