"""The programs of a run, with the shapes, types and places of what they are given.

They are those that a run calls (rft_jax/rollout, rft_jax/training). Nothing is computed, and no
weights, questions or tokenizer are needed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rft_jax.config import Config
from rft_jax.distributed.mesh import BATCH_AXES, batch_sharding, make_mesh, replicated
from rft_jax.distributed.shards import abstract
from rft_jax.keys import Purpose, run_key
from rft_jax.models import kernels, transformer
from rft_jax.planning import memory
from rft_jax.planning.memory import Sampled, Shards
from rft_jax.planning.targets import Target
from rft_jax.rollout import sampler
from rft_jax.rollout.params import of_layer
from rft_jax.training import update as training
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.packing import update_sizes
from rft_jax.training.state import Layout, make_layout, reference_like
from rft_jax.types import PackedBatch, Prompts


class Program(NamedTuple):
    """A jitted function and what it is called with."""

    name: str
    function: Any
    arguments: tuple[Any, ...]
    settings: Mapping[str, Any]

    @property
    def local_bytes(self) -> int:
        """Bytes of a device's share of the arguments, without padding."""
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(self.arguments)
            if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        )


@dataclass(frozen=True)
class Setting:
    """A run on a mesh of described devices. layout: of its arrays."""

    config: Config
    mesh: Mesh
    layout: Layout
    optimizer: optax.GradientTransformation

    @property
    def shards(self) -> Shards:
        """Sizes of the mesh."""
        return Shards(*self.mesh.devices.shape)

    def of_layers(self, layers: int) -> Setting:
        """The same run with `layers` layers."""
        types = self.config.model.layer_types[:layers]
        model = replace(self.config.model, num_layers=layers, layer_types=types)
        return _setting(replace(self.config, model=model), self.mesh)

    def array(self, shape: tuple[int, ...], dtype: Any, axis: int | None = None) -> Any:
        """An argument, its dimension `axis` split over the batch axes, or the same everywhere."""
        where = replicated(self.mesh) if axis is None else batch_sharding(self.mesh, axis)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def setting(config: Config, target: Target) -> Setting:
    """A run on the target's devices, its attention that of their platform. Raises ConfigError when
    its mesh cannot be made of them, or cannot split its parameters."""
    model = config.model
    if target.tpu and model.attention == "auto":  # auto asks for the platform at hand
        attention: Any = kernels.choose(model, config.update.row_length, "tpu")
        config = replace(config, model=replace(model, attention=attention))
    return _setting(config, make_mesh(config.mesh, target.devices))


def _setting(config: Config, mesh: Mesh) -> Setting:
    optimizer = make_optimizer(config.optimizer, config.steps)
    layout = make_layout(config.model, mesh, optimizer, memory.model_of(config).vocab)
    return Setting(config, mesh, layout, optimizer)


def update(of: Setting, *, microbatches: int | None = None) -> Program:
    """The update; its batch has room for `microbatches`, all that a step may need by default."""
    config, sizes = of.config, update_sizes(of.config)
    rows = (microbatches or sizes.microbatches, sizes.rows, sizes.row_length)
    leaves = [of.array(rows, dtype, 1) for dtype in (jnp.int32,) * 4 + (jnp.float32,) * 3]
    arguments = (
        of.layout.state,
        reference_like(of.layout.trained, config.model.compute_dtype)
        if config.objective.kl_loss
        else None,
        PackedBatch(*(*leaves, of.array((), jnp.int32))),
        of.array((), jnp.float32),
        of.layout.base if config.model.lora_rank else {},
        of.array((), jnp.float32) if config.objective.entropy_bonus else None,
    )
    settings = {
        "config": config.model,
        "optimizer": of.optimizer,
        "terms": training.Terms.of(config),
        "chunk": max(1, config.update.logits_at_once // memory.model_of(config).vocab),
        "mesh": of.mesh,
    }
    return Program("update", training.update, arguments, settings)


def rollout_params(of: Setting) -> Any:
    """The parameters as sampling reads them: cast, whole along the width, layer by layer."""
    cast = functools.partial(transformer.cast, dtype=of.config.model.compute_dtype)
    shapes = memory.params(memory.model_of(of.config))[0]
    unstacked = jax.eval_shape(lambda params: transformer.unstack(cast(params)), shapes)
    block = jax.tree.map(of_layer, of.layout.rollout["blocks"])
    blocks = (block,) * of.config.model.num_layers
    return abstract(unstacked, of.layout.rollout | {"blocks": blocks})


def prefill(of: Setting, work: Sampled, ring: int = 0) -> Program:
    """All prompts of a call of the sampler, and its slots with a ring of `ring` columns, the fewest
    by default."""
    config, questions = of.config, (work.questions,)
    number = functools.partial(of.array, dtype=jnp.int32, axis=0)
    prompts = Prompts(
        number((*questions, config.data.max_prompt_tokens)), number(questions), number(questions)
    )
    root = jax.eval_shape(lambda: run_key(seed=0, purpose=Purpose.ROLLOUT))
    arguments = (
        rollout_params(of),
        prompts,
        number((*questions, work.samples)),
        of.array(root.shape, root.dtype),
        of.array((), jnp.int32),
    )
    settings = {
        "mesh": of.mesh,
        "config": config.model,
        "shape": work.grid(of.shards)[1:],
        "ring": ring or memory.rings(config)[0],
        "max_new_tokens": config.data.max_completion_tokens,
    }
    return Program("prefill", sampler.start, arguments, settings)


def _started(of: Setting, work: Sampled, ring: int) -> Any:
    """(store, slots) with a ring of `ring` columns."""
    _, function, arguments, settings = prefill(of, work, ring)
    shapes = jax.eval_shape(functools.partial(function, **settings), *arguments)
    by_batch = batch_sharding(of.mesh)
    by_heads = NamedSharding(of.mesh, PartitionSpec(BATCH_AXES, "tensor"))
    where = jax.tree.map(lambda leaf: by_heads if leaf.ndim == 4 else by_batch, shapes)
    return abstract(shapes, where)


def growth(of: Setting, work: Sampled) -> Program:
    """The last growth of the ring, of those that grow."""
    before, after = memory.rings(of.config)[-2:]
    _, rows, lanes = work.grid(of.shards)
    settings = {
        "mesh": of.mesh,
        "prompt_width": of.config.data.max_prompt_tokens,
        "old": sampler.Layout(rows * lanes, before),
        "new": sampler.Layout(rows * lanes, after),
    }
    return Program("growth", sampler._change, (_started(of, work, before)[1],), settings)


def decode(of: Setting, work: Sampled) -> Program:
    """The decode loop with every slot in use and the ring at its full length."""
    arguments = (
        rollout_params(of),
        *_started(of, work, memory.rings(of.config)[-1]),
        of.array((), jnp.float32),
        of.array((), jnp.int32),
    )
    settings = {
        "mesh": of.mesh,
        "config": of.config.model,
        "prompt_width": of.config.data.max_prompt_tokens,
        "eos_ids": (2,),
        "greedy": False,
    }
    return Program("decode", sampler.decode, arguments, settings)
