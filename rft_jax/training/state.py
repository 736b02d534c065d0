"""Where parameters and optimizer state live on a mesh, and which of them a run trains."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rft_jax.config import ModelConfig
from rft_jax.distributed.mesh import param_shardings, replicated
from rft_jax.distributed.shards import abstract
from rft_jax.models import adapters, transformer
from rft_jax.models.axes import logical_axes
from rft_jax.training.update import init_state
from rft_jax.types import Params, TrainState


@dataclass(frozen=True)
class Layout:
    """Shapes, types and shardings of a run's arrays, as trees of ShapeDtypeStructs.

    base: all parameters but adapters; where there are adapters it is frozen and in the compute
    type. state: what an update changes; its parameters are the adapters where there are any.
    rollout: shardings of all parameters while sampling.
    """

    base: Params
    state: TrainState
    rollout: Any

    @property
    def trained(self) -> Params:
        """The parameters that an update changes."""
        return self.state.params


def make_layout(
    model: ModelConfig, mesh: Mesh, optimizer: optax.GradientTransformation, vocab_size: int
) -> Layout:
    """The layout of a policy with `vocab_size` rows of its embedding, and of its training."""
    params = param_shapes(model, mesh, vocab_size)
    frozen, trained = adapters.split(params, model)
    if frozen:
        cast = functools.partial(transformer.cast, dtype=model.compute_dtype)
        frozen = abstract(jax.eval_shape(cast, frozen), shardings(frozen))
    return Layout(
        base=frozen or trained,
        state=state_like(trained, optimizer, mesh),
        rollout=param_shardings(mesh, params, logical_axes(params), fsdp=False),
    )


def state_like(trained: Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes, types and shardings of the state of parameters that are trained."""
    state = jax.eval_shape(functools.partial(init_state, optimizer=optimizer), trained)
    everywhere = replicated(mesh)
    # Moments lie where their parameters lie; counts are everywhere.
    of_optimizer = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, like: like.sharding,
        state.optimizer,
        trained,
        transform_non_params=lambda _: everywhere,
    )
    where: Any = TrainState(everywhere, shardings(trained), of_optimizer)  # type: ignore[arg-type]
    like: TrainState = abstract(state, where)
    return like


def as_reference(params: Params, dtype: str) -> Params:
    """A copy of trained parameters as pi_ref holds them: in the compute type, which changes no
    output (models/transformer.cast)."""
    cast = transformer.cast(params, dtype)
    return jax.tree.map(lambda new, old: jnp.copy(new) if new is old else new, cast, params)


def reference_like(trained: Params, dtype: str) -> Params:
    """Shapes, types and shardings of `as_reference`."""
    cast = functools.partial(transformer.cast, dtype=dtype)
    return abstract(jax.eval_shape(cast, trained), shardings(trained))


def param_shapes(model: ModelConfig, mesh: Mesh, vocab_size: int) -> Params:
    """All parameters, adapters included, as they are trained."""
    shapes = transformer.abstract_params(config=model, vocab_size=vocab_size)
    return abstract(shapes, param_shardings(mesh, shapes, logical_axes(shapes)))


def fresh_state(
    params: Params, optimizer: optax.GradientTransformation, layout: Layout
) -> TrainState:
    """The state before the first update, on the mesh. It takes the arrays of `params`: a copy would
    stay as long as its caller does."""
    make = functools.partial(init_state, optimizer=optimizer)
    return jax.jit(make, out_shardings=shardings(layout.state), donate_argnums=0)(params)


def shardings(like: Any) -> Any:
    """The shardings of a tree of ShapeDtypeStructs."""
    return jax.tree.map(lambda leaf: leaf.sharding, like)
