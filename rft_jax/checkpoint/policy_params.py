"""The parameters of a policy that was found, on the devices of a mesh."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import jax
from jax.sharding import Mesh

from rft_jax.checkpoint.policy import Policy
from rft_jax.checkpoint.start import load_policy
from rft_jax.config import MeshConfig
from rft_jax.distributed.mesh import make_mesh, param_shardings
from rft_jax.distributed.shards import abstract
from rft_jax.errors import UserError
from rft_jax.models import adapters, transformer
from rft_jax.models.axes import logical_axes
from rft_jax.rollout.params import rollout_params
from rft_jax.training.state import param_shapes
from rft_jax.types import Params


def to_sample_from(policy: Policy, mesh: Mesh) -> Params:
    """In the layout and type that a rollout reads, the type they are also loaded in: adapters
    beside the matrices that they act on, as they are in training.

    Raises UserError for a type that jax has not, and what load_policy raises.
    """
    model = policy.model
    if jax.dtypes.canonicalize_dtype(model.compute_dtype) != model.compute_dtype:
        raise UserError(
            f"{policy.name}: the run computes in float64, and jax in float32 by default: set "
            "JAX_ENABLE_X64=1, or choose compute_dtype float32."
        )
    shapes = param_shapes(model, mesh, model.vocab_size)
    where = param_shardings(mesh, shapes, logical_axes(shapes), fsdp=False)
    cast = functools.partial(transformer.cast, dtype=model.compute_dtype)
    frozen, trained = adapters.split(abstract(jax.eval_shape(cast, shapes), where), model)
    like = frozen or trained
    base, of_run = load_policy(policy.init_from, model, Path(), like, step=policy.step)
    return rollout_params(adapters.join(base, of_run), where, dtype=model.compute_dtype)


def merged(policy: Policy) -> Params:
    """In float32, adapters merged, over all devices as evenly as the width allows."""
    fsdp = math.gcd(jax.device_count(), policy.model.d_model)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=fsdp))
    plain = policy.model.without_adapters()
    like = param_shapes(plain, mesh, plain.vocab_size)
    return load_policy(policy.init_from, plain, Path(), like, step=policy.step)[0]
