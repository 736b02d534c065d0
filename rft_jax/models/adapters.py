"""Low-rank adapters (LoRA, arXiv 2106.09685) as a part of the parameter tree.

With model.lora_rank a matrix W of a block has two neighbours, A = `W_a` and B = `W_b`, and acts as
W + alpha / rank * B A. Only they are trained and saved; everything else is frozen.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array

from rft_jax.config import ModelConfig
from rft_jax.types import Params

ENDS = ("_a", "_b")


def split(params: Params, config: ModelConfig) -> tuple[Params, Params]:
    """(frozen, trained) parts of a tree with one leaf per parameter; without adapters everything
    is trained and the frozen part is empty."""
    if not config.lora_rank:
        return {}, params
    return _part(params, adapters=False), _part(params, adapters=True)


def _part(tree: Params, *, adapters: bool) -> Params:
    part: Params = {}
    for name, child in tree.items():
        if isinstance(child, dict):
            inner = _part(child, adapters=adapters)
            if inner:
                part[name] = inner
        elif name.endswith(ENDS) == adapters:
            part[name] = child
    return part


def join(frozen: Params, trained: Params) -> Params:
    """The inverse of `split`."""
    both = dict(frozen)
    for name, child in trained.items():
        both[name] = join(frozen.get(name, {}), child) if isinstance(child, dict) else child
    return both


def merge(params: Params, config: ModelConfig) -> Params:
    """The same policy without adapters: each W + alpha / rank * B A, summed in float32 and kept in
    the type of W. params: stacked, [L, ...]."""
    frozen, trained = split(params, config)
    scale = config.lora_alpha / max(config.lora_rank, 1)

    def walk(weights: Params, adapters: Params) -> Params:
        merged = dict(weights)
        for name, child in adapters.items():
            if isinstance(child, dict):
                merged[name] = walk(weights[name], child)
            elif name.endswith(ENDS[0]):
                target = name.removesuffix(ENDS[0])
                merged[target] = _merged(weights[target], child, adapters[target + ENDS[1]], scale)
        return merged

    return walk(frozen, trained) if config.lora_rank else params


def _merged(weight: Array, first: Array, second: Array, scale: float) -> Array:
    """weight: [L, out..., in...], first: [L, rank, in...], second: [L, out..., rank]."""
    layers, rank = first.shape[:2]
    out = math.prod(second.shape[1:-1])
    product = second.reshape(layers, out, rank) @ first.reshape(layers, rank, -1)
    wide = weight.astype(jnp.float32) + scale * product.reshape(weight.shape)
    return wide.astype(weight.dtype)
