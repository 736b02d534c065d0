"""The weighted mean of the parameters of several policies (WiSE-FT, arXiv 2109.01903)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from rft_jax.checkpoint.policy import Policy
from rft_jax.checkpoint.start import merged
from rft_jax.data.tokenizers.base import Tokenizer
from rft_jax.errors import ModelError
from rft_jax.types import Params

Others = Sequence[tuple[Policy, float]]
"""Policies, each with its weight."""


def check_alike(policy: Policy, others: Others) -> None:
    """ModelError unless all of them are one function of their parameters, and their token ids stand
    for the same text."""
    model, pieces = policy.model.without_adapters(), _pieces(policy.tokenizer)
    for other, _ in others:
        theirs = other.model.without_adapters()
        for name in model.differences(theirs):
            raise ModelError(
                f"{other.name}: its {name} is {getattr(theirs, name)}, and that of {policy.name} "
                f"is {getattr(model, name)}: average policies of one model."
            )
        if _pieces(other.tokenizer) != pieces:
            raise ModelError(
                f"{other.name}: its tokenizer has other pieces than that of {policy.name}: average "
                "policies of one tokenizer."
            )


def average(policy: Policy, others: Others) -> Params:
    """What is left of 1 of the policy's parameters and the others' by their weights, in float32,
    adapters merged. Two policies at a time are on the devices."""
    params, share = merged(policy), 1 - sum(weight for _, weight in others)

    @functools.partial(jax.jit, donate_argnums=0)
    def add(params: Params, more: Params, share: Array, weight: Array) -> Params:
        return jax.tree.map(lambda a, b: share * a + weight * b, params, more)

    for other, weight in others:
        params, share = add(params, merged(other), jnp.float32(share), jnp.float32(weight)), 1.0
    return params


def _pieces(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
