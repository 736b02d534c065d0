"""The rollout's own layout of the parameters, computed once per rollout."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from rft_jax.models import transformer
from rft_jax.types import Params

_cast = jax.jit(transformer.cast, static_argnames="dtype")


def rollout_params(params: Params, shardings: Any, *, dtype: str) -> Params:
    """The parameters that sampling reads: cast, in their rollout layout, unstacked.

    They are cast before they move: half the bytes. One matrix after another is unstacked, so that
    beside the layers at most one matrix of all layers is in memory.

    Args:
        params: stacked, the leaves under `blocks` [L, ...].
        shardings: of each leaf of `params`, or one for all; they keep the width axis whole, so that
            the decode loop gathers no weights.
        dtype: of all but the scales of norms (`transformer.cast`).
    """
    if any(leaf.dtype != dtype for leaf in jax.tree.leaves(params)):
        params = _cast(params, dtype=dtype)
    shardings = jax.tree.broadcast(shardings, params)
    stacked, whole = params["blocks"], {k: v for k, v in params.items() if k != "blocks"}
    of_whole = {name: shardings[name] for name in whole}
    leaves, tree = jax.tree.flatten(stacked)
    by_leaf = [
        _layers(jax.device_put(leaf, where), where)
        for leaf, where in zip(leaves, jax.tree.leaves(shardings["blocks"]), strict=True)
    ]
    layers = tuple(jax.tree.unflatten(tree, of_layer) for of_layer in zip(*by_leaf, strict=True))
    return jax.device_put(whole, of_whole) | {"blocks": layers}


def of_layer(where: Any) -> Any:
    """The sharding of one layer's matrix, from that of all layers in one array."""
    if not isinstance(where, NamedSharding):
        return where
    return NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))


@functools.partial(jax.jit, static_argnames="where")
def _layers(stacked: jax.Array, where: Any) -> tuple[jax.Array, ...]:
    to = of_layer(where)
    return tuple(jax.lax.with_sharding_constraint(stacked[i], to) for i in range(stacked.shape[0]))
