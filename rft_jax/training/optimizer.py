"""AdamW with clipping and a schedule, built from optax."""

from __future__ import annotations

import functools
from typing import Any

import jax
import optax

from rft_jax.config import OptimizerConfig
from rft_jax.types import Params


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate as a function of the updates made so far: linear warm-up, then the shape."""
    peak, last = config.learning_rate, config.learning_rate * config.final_fraction
    rest = max(steps - config.warmup_steps, 1)
    shapes = {
        "constant": lambda: optax.constant_schedule(peak),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, config.final_fraction),
        "linear": lambda: optax.linear_schedule(peak, last, rest),
    }
    after = shapes[config.schedule]()
    if not config.warmup_steps:
        return after
    # The first update already moves: warm-up counts from 1.
    first = peak / config.warmup_steps
    warmup = optax.linear_schedule(first, peak, max(config.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def decay_mask(params: Params) -> Params:
    """True where weight decay applies: everywhere but scales of norms and biases."""

    def decays(path: tuple[Any, ...], _: Any) -> bool:
        return path[-1].key != "scale" and not path[-1].key.endswith("_bias")

    return jax.tree_util.tree_map_with_path(decays, params)


@functools.cache
def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The transformation of gradients of the *loss* (minus the objective).

    Cached, so that equal settings give the same object and a jitted update is compiled once.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adamw = optax.adamw(
        schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
        # None for the type of the parameters.
        mu_dtype=None if config.first_moment_dtype == "float32" else config.first_moment_dtype,
    )
    return optax.chain(clip, adamw)
