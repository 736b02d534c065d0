"""Published models of the tests, opened and laid out on a mesh of some of the devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rft_jax.config import ModelConfig
from rft_jax.distributed.mesh import param_shardings
from rft_jax.distributed.shards import abstract
from rft_jax.hub.families import model_of
from rft_jax.hub.load import load_params
from rft_jax.hub.weights import Weights, open_weights
from rft_jax.models import transformer
from rft_jax.models.axes import logical_axes
from rft_jax.types import Params


def mesh_of(*sizes: int) -> Mesh:
    """(data, fsdp, tensor) over the first devices."""
    devices = np.asarray(jax.devices()[: int(np.prod(sizes))])
    return Mesh(devices.reshape(sizes), ("data", "fsdp", "tensor"))


def like(config: ModelConfig, mesh: Mesh, dtype: Any = jnp.float32) -> Params:
    """What an import is told to produce."""
    shapes = transformer.abstract_params(config=config, vocab_size=config.vocab_size)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    return abstract(shapes, param_shardings(mesh, shapes, logical_axes(shapes)))


def open_model(folder: Path) -> tuple[ModelConfig, Weights]:
    """Settings and weights of the model in a folder."""
    config = model_of(str(folder))
    return config, open_weights(folder, config, config.vocab_size)


def imported(folder: Path, *sizes: int) -> tuple[ModelConfig, Params]:
    """Settings and parameters of the model in a folder, on a mesh."""
    config, weights = open_model(folder)
    return config, load_params(weights, like(config, mesh_of(*sizes)))
