"""The rollout's own layout of the parameters, made once per rollout."""

from __future__ import annotations

import functools
from typing import Any

import jax

from rft_jax.batches import Params


@functools.partial(jax.jit, static_argnames=("dtype",))
def _cast(params: Params, dtype: str) -> Params:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def rollout_params(params: Params, shardings: Any, *, dtype: str) -> Params:
    """`params` cast to `dtype` (before they move: half the bytes) and laid out as `shardings`.

    The layout keeps the width axis whole, so that the decode loop gathers no weights.
    """
    if any(leaf.dtype != dtype for leaf in jax.tree.leaves(params)):
        params = _cast(params, dtype)
    return jax.device_put(params, shardings)
