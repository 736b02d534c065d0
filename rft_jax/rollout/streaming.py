"""Ended outputs on their way from the devices to the host, while these decode the others."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from rft_jax.distributed.mesh import batch_sharding, batch_size_divisor, constrain
from rft_jax.distributed.shards import mesh_of, on_shards, owned_parts, put
from rft_jax.rollout.slots import Outputs
from rft_jax.types import Prompts

TAKEN_AT_ONCE = 8
"""A shard's ended outputs leave in parts of this size, or of its outputs divided by this number if
that is more."""


class Ended(NamedTuple):
    """E outputs of this process's rows that have ended since the last part; see Completions.

    numbers: question row x G + sample index of each; steps: decode steps, summed over shards, when
        they were taken.
    """

    numbers: Int[np.ndarray, "E"]
    tokens: Int[np.ndarray, "E T"]
    log_probs: Float[np.ndarray, "E T"]
    entropies: Float[np.ndarray, "E T"]
    lengths: Int[np.ndarray, "E"]
    finished: Bool[np.ndarray, "E"]
    steps: int


class Taken(NamedTuple):
    """E outputs of every shard on their way to the host. numbers: within the shard, -1 for none;
    rows: the first five fields of Outputs."""

    numbers: Int[Array, "DE"]
    rows: tuple[Array, ...]


class Taking:
    """Takes ended outputs off the devices, each once.

    Each shard finds its own; the host knows only how many there are. So all processes run the same
    programs, and each copies what it owns.
    """

    def __init__(self, prompts: Prompts, num_samples: int) -> None:
        self._mesh = mesh_of(prompts.tokens)
        shards = batch_size_divisor(self._mesh) if self._mesh is not None else 1
        total = prompts.tokens.shape[0] * num_samples
        self._per_shard = total // shards
        self.at_once = max(TAKEN_AT_ONCE, -(-self._per_shard // TAKEN_AT_ONCE))
        where = batch_sharding(self._mesh) if self._mesh is not None else None
        self._taken = put(np.zeros(total, bool), where)

    def take(self, outputs: Outputs) -> Taken:
        """The next `at_once` of each shard; fewer where fewer have ended."""
        self._taken, taken = _take(outputs, self._taken, mesh=self._mesh, at_once=self.at_once)
        return taken

    def on_host(self, taken: Taken, steps: int) -> Iterator[Ended]:
        """Yield what this process owns of them, waiting for it. steps: see Ended."""
        for part in owned_parts(taken):
            numbers, rows = part.rows
            shard = (part.first + np.arange(len(numbers))) // self.at_once
            real = numbers >= 0
            if real.any():
                global_numbers = shard * self._per_shard + numbers
                fields = (global_numbers[real], *(leaf[real] for leaf in rows), steps)
                yield Ended._make(fields)


@functools.partial(jax.jit, static_argnames=("mesh", "at_once"), donate_argnames=("taken",))
def _take(
    outputs: Outputs, taken: Bool[Array, "B"], *, mesh: Mesh | None, at_once: int
) -> tuple[Bool[Array, "B"], Taken]:
    def on_shard(outputs: Outputs, taken: Array) -> tuple[Array, Taken]:
        count = taken.shape[0]
        new = outputs.ended & (outputs.lengths > 0) & ~taken
        numbers = jnp.flatnonzero(new, size=at_once, fill_value=count)
        rows = jax.tree.map(lambda leaf: leaf[jnp.minimum(numbers, count - 1)], outputs[:5])
        rows = tuple(constrain(leaf, *(None,) * leaf.ndim) for leaf in rows)
        taken = taken.at[numbers].set(True, mode="drop")
        return taken, Taken(jnp.where(numbers < count, numbers, -1), rows)

    return on_shards(on_shard, mesh, (True, True))(outputs, taken)  # type: ignore[no-any-return]
