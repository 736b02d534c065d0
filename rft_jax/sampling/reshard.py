"""The rollout's own layout of the parameters, made once per rollout."""

from __future__ import annotations

from typing import Any

import jax

from rft_jax.batches import Params
from rft_jax.models import transformer

_cast = jax.jit(transformer.cast, static_argnames="dtype")


def rollout_params(params: Params, shardings: Any, *, dtype: str) -> Params:
    """`params` cast to `dtype` (`transformer.cast`; before they move: half the bytes) and laid out
    as `shardings`. The layout keeps the width axis whole, so that the decode loop gathers no
    weights."""
    if any(leaf.dtype != dtype for leaf in jax.tree.leaves(params)):
        params = _cast(params, dtype=dtype)
    return jax.device_put(params, shardings)
