"""Addressed randomness: every random number is a pure function of what it is for.

No key is stored, split in a loop or checkpointed; a key is derived where it is used from the run's
seed and an address. In float32 samples therefore do not depend on batch size, slots or host count;
in bfloat16 their keys do not, and numbers, hence now and then a token, do.
"""

from __future__ import annotations

import enum

import jax
from jaxtyping import Array, Int, Key


class Purpose(enum.IntEnum):
    """What a key is for: the first fold, so that no two uses share random numbers."""

    INIT = 0
    ROLLOUT = 1
    EVALUATION = 2
    POOL = 3


def run_key(*, seed: int, purpose: Purpose) -> Key[Array, ""]:
    """The root key of one purpose of one run."""
    return jax.random.fold_in(jax.random.key(seed), int(purpose))


def sample_keys(
    root: Key[Array, ""],
    *,
    step: Int[Array, ""] | int,
    question_ids: Int[Array, "B"],
    sample_indices: Int[Array, "B"],
) -> Key[Array, "B"]:
    """One key per sample, addressed by (root, step, question id, sample index)."""
    step_key = jax.random.fold_in(root, step)

    def one(question_id: Array, sample_index: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(step_key, question_id), sample_index)

    return jax.vmap(one)(question_ids, sample_indices)


def token_keys(keys: Key[Array, "B"], positions: Int[Array, "B"]) -> Key[Array, "B"]:
    """The key of the token at each position of its completion (0 is the first sampled token)."""
    return jax.vmap(jax.random.fold_in)(keys, positions)
