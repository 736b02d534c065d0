"""Rotary positions: frequencies, as published models scale them, and the rotation itself."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from rft_jax.config import ModelConfig


def at_least_float32(dtype: DTypeLike) -> DTypeLike:
    """The type of norms, angles, scores and logits: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


class Rotation(NamedTuple):
    """Cosines and sines of the rotary angles at each position, I = H / 2."""

    cos: Float[Array, "I ..."]
    sin: Float[Array, "I ..."]


def frequencies(config: ModelConfig, *, local: bool = False) -> npt.NDArray[np.float64]:
    """Radians per position, [I]: theta^(-2i / H) of RoFormer (arXiv 2104.09864, eq. 15), scaled.

    local: for layers with a sliding window, which may have their own base.
    """
    local = local and config.local_rope_theta > 0
    theta = config.local_rope_theta if local else config.rope_theta
    half = config.head_dim // 2
    plain = theta ** (-np.arange(half, dtype=np.float64) / half)
    if local or config.rope_scaling == "none":
        return plain
    if config.rope_scaling == "linear":
        return plain / config.rope_factor
    # Llama 3.1: what turns often within the original length tells neighbours apart and stays.
    turns = config.rope_original_positions * plain / (2 * math.pi)
    low, high = config.rope_low_turns, config.rope_high_turns
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return plain * (kept + (1 - kept) / config.rope_factor)


def rotation(
    positions: Int[Array, "..."], frequencies: npt.NDArray[np.float64], *, dtype: DTypeLike
) -> Rotation:
    """Cosines and sines of position x frequency, [I, ...], computed in `dtype`."""
    radians = jnp.asarray(frequencies, dtype).reshape((-1,) + (1,) * positions.ndim)
    angles = radians * positions[None].astype(dtype)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "N H ..."], by: Rotation) -> Float[Array, "N H ..."]:
    """Rotary position embedding, halves rotated as in Llama, in the type of the angles."""
    half, dtype = x.shape[1] // 2, by.cos.dtype
    cos, sin = by.cos[None], by.sin[None]
    first, second = x[:, :half].astype(dtype), x[:, half:].astype(dtype)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=1)
    return rotated.astype(x.dtype)
