"""The rollout's own layout of the parameters, made once per rollout."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jaxtyping import Array

from rft_jax.batches import Params


@functools.partial(jax.jit, static_argnames=("dtype",))
def _cast(params: Params, dtype: str) -> Params:
    def one(path: tuple[Any, ...], leaf: Array) -> Array:
        return leaf if path[-1].key == "scale" else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(one, params)


def rollout_params(params: Params, shardings: Any, *, dtype: str) -> Params:
    """`params` cast to `dtype` (before they move: half the bytes) and laid out as `shardings`.

    Norm scales stay as they are, since the forward pass multiplies by them in float32: the cast
    changes no output by a bit. The layout keeps the width axis whole, so that the decode loop
    gathers no weights.
    """
    if any(leaf.dtype != dtype for leaf in jax.tree.leaves(params)):
        params = _cast(params, dtype)
    return jax.device_put(params, shardings)
