"""The programs of a run, with the shapes, types and places of what they are given.

They are those that a run calls (rft_jax/sampling, rft_jax/training). Nothing is computed, and no
weights, questions or tokenizer are needed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rft_jax.config import Config
from rft_jax.distributed.mesh import BATCH_AXES, batch_sharding, make_mesh, replicated
from rft_jax.keys import Purpose, run_key
from rft_jax.models import kernels, transformer
from rft_jax.planning import memory
from rft_jax.planning.memory import Sampled, Shards
from rft_jax.planning.targets import Target
from rft_jax.rollout import sampler
from rft_jax.rollout.params import of_layer
from rft_jax.training import update as training
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.state import Layout, make_layout
from rft_jax.types import PackedBatch, Prompts


@dataclass(frozen=True)
class Program:
    """A jitted function and what it is called with. donated: the argument whose memory it takes
    over, if it does."""

    name: str
    function: Any
    arguments: tuple[Any, ...]
    settings: Mapping[str, Any]
    donated: int | None = None


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
        """The same with so many layers."""
        return _setting(
            replace(self.config, model=replace(self.config.model, num_layers=layers)), self.mesh
        )


def setting(config: Config, target: Target) -> Setting:
    """A run on the target's devices, its attention that of their platform. Raises ConfigError when
    its mesh cannot be made of them, or cannot split its parameters."""
    model, slots = config.model, config.update.row_length
    if target.tpu and model.attention == "auto":  # auto asks for the platform at hand
        attention: Any = kernels.choose(model, slots, "tpu")
        config = replace(config, model=replace(model, attention=attention))
    return _setting(config, make_mesh(config.mesh, target.devices))


def _setting(config: Config, mesh: Mesh) -> Setting:
    optimizer = make_optimizer(config.optimizer, config.steps)
    layout = make_layout(config.model, mesh, optimizer, memory.vocabulary(config))
    return Setting(config, mesh, layout, optimizer)


def local_bytes(tree: Any) -> int:
    """Bytes of a device's share of arrays, without padding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    )


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes with shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        shardings,
    )


def _array(shape: tuple[int, ...], dtype: Any, where: NamedSharding) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def update(of: Setting, *, microbatches: int | None = None) -> Program:
    """The update; its batch has room for `microbatches`, all that a step may need by default."""
    config, everywhere = of.config, replicated(of.mesh)
    rows = (
        microbatches or memory.microbatches(config),
        config.update.rows_per_microbatch,
        config.update.row_length,
    )
    by_rows = batch_sharding(of.mesh, axis=1)
    dtypes = (jnp.int32,) * 4 + (jnp.float32,) * 3
    leaves = [_array(rows, dtype, by_rows) for dtype in dtypes]
    batch = PackedBatch(*(*leaves, _array((), jnp.int32, everywhere)))
    settings = {
        "config": config.model,
        "optimizer": of.optimizer,
        "kl_coefficient": config.objective.kl_coefficient,
        "chunk": max(1, config.update.logits_at_once // memory.vocabulary(config)),
        "mesh": of.mesh,
    }
    arguments = (
        of.layout.state,
        of.layout.trained if config.objective.kl_coefficient else None,
        batch,
        _array((), jnp.float32, everywhere),
        of.layout.base if config.model.lora_rank else {},
    )
    return Program("update", training.update, arguments, settings, donated=0)


def rollout_params(of: Setting) -> Any:
    """The parameters as sampling reads them: cast, whole along the width, layer by layer."""
    shapes = memory.policy(of.config).params
    cast = functools.partial(transformer.cast, dtype=of.config.model.compute_dtype)
    unstacked = jax.eval_shape(lambda params: transformer.unstack(cast(params)), shapes)
    of_block = jax.tree.map(of_layer, of.layout.rollout["blocks"])
    blocks = (of_block,) * of.config.model.num_layers
    return placed(unstacked, of.layout.rollout | {"blocks": blocks})


def rings(config: Config) -> list[int]:
    """Columns of the slots' own cache, as they grow."""
    longest = config.data.max_completion_tokens
    return sorted({layout.ring for layout in sampler.layouts(1, longest, fewer=2)})


def _shape(of: Setting, work: Sampled) -> tuple[int, int]:
    batch = of.shards.batch
    return sampler.slots_shape(work.questions // batch, work.samples, -(-work.slots // batch))


def prefill(of: Setting, work: Sampled, ring: int) -> Program:
    """All prompts of a call of the sampler, and its slots with a ring of so many columns."""
    config, everywhere, by_batch = of.config, replicated(of.mesh), batch_sharding(of.mesh)
    number = functools.partial(_array, dtype=jnp.int32, where=by_batch)
    width = config.data.max_prompt_tokens
    prompts = Prompts(
        number((work.questions, width)), number((work.questions,)), number((work.questions,))
    )
    root = jax.eval_shape(lambda: run_key(seed=0, purpose=Purpose.ROLLOUT))
    arguments = (
        rollout_params(of),
        prompts,
        number((work.questions, work.samples)),
        _array(root.shape, root.dtype, everywhere),
        _array((), jnp.int32, everywhere),
    )
    settings = {
        "mesh": of.mesh,
        "config": config.model,
        "shape": _shape(of, work),
        "ring": ring,
        "max_new_tokens": config.data.max_completion_tokens,
    }
    return Program("prefill", sampler.start, arguments, settings)


def _started(of: Setting, work: Sampled, ring: int) -> Any:
    """(store, slots) with a ring of so many columns."""
    program = prefill(of, work, ring)
    start = functools.partial(program.function, **program.settings)
    shapes = jax.eval_shape(start, *program.arguments)
    by_batch = batch_sharding(of.mesh)
    by_heads = NamedSharding(of.mesh, PartitionSpec(BATCH_AXES, "tensor"))
    where = jax.tree.map(lambda leaf: by_heads if leaf.ndim == 4 else by_batch, shapes)
    return placed(shapes, where)


def growth(of: Setting, work: Sampled) -> Program | None:
    """The last growth of the ring, if it grows at all."""
    sizes = rings(of.config)
    if len(sizes) == 1:
        return None
    rows, lanes = _shape(of, work)
    _, slots = _started(of, work, sizes[-2])
    settings = {
        "mesh": of.mesh,
        "prompt_width": of.config.data.max_prompt_tokens,
        "old": sampler.Layout(rows * lanes, sizes[-2]),
        "new": sampler.Layout(rows * lanes, sizes[-1]),
    }
    return Program("growth", sampler._change, (slots,), settings)


def decode(of: Setting, work: Sampled) -> Program:
    """The decode loop with every slot in use and the ring at its full length."""
    everywhere = replicated(of.mesh)
    arguments = (
        rollout_params(of),
        *_started(of, work, rings(of.config)[-1]),
        _array((), jnp.float32, everywhere),
        _array((), jnp.int32, everywhere),
    )
    settings = {
        "mesh": of.mesh,
        "config": of.config.model,
        "prompt_width": of.config.data.max_prompt_tokens,
        "eos_ids": (2,),
        "greedy": False,
    }
    return Program("decode", sampler.decode, arguments, settings, donated=2)
