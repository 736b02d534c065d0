"""Random policies, made on the host: compiling `transformer.init` takes seconds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rft_jax.config import ModelConfig
from rft_jax.models import transformer
from rft_jax.types import Params


def random_policy(config: ModelConfig, vocab_size: int, seed: int = 0) -> Params:
    """Normal matrices of deviation 1 / sqrt(D), and norms that multiply by about 1."""
    generator = np.random.default_rng(seed)

    def one(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> jax.Array:
        values = generator.normal(scale=config.d_model**-0.5, size=shape.shape)
        around = path[-1].key == "scale" and not config.norm_offset
        return jnp.asarray(values + around, shape.dtype)

    shapes = transformer.abstract_params(config=config, vocab_size=vocab_size)
    return jax.tree_util.tree_map_with_path(one, shapes)
