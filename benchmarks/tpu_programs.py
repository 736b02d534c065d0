"""Decoding and the update of DeepSeekMath-7B's shape on a slice of TPUs, from shapes alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.work import Shape
from rft_jax.batches import PackedBatch, Prompts, TrainState
from rft_jax.config import ModelConfig, OptimizerConfig
from rft_jax.keys import Purpose, run_key
from rft_jax.models import transformer
from rft_jax.models.axes import logical_axes
from rft_jax.parallel.mesh import (
    BATCH_AXES,
    batch_sharding,
    batch_size_divisor,
    param_shardings,
    replicated,
)
from rft_jax.sampling import sampler
from rft_jax.training import update as training
from rft_jax.training.optimizer import make_optimizer

SHAPE = Shape(30, 4096, 32, 32, 128, 11008, 102_400)
"""DeepSeekMath-7B; its embedding is not tied (experiments/math_deepseekmath_7b.py)."""
OPTIMIZER = OptimizerConfig(learning_rate=1e-6, schedule="constant", weight_decay=0.0)


class Chip(NamedTuple):
    """Published rates: FLOP/s in bfloat16; bytes/s of memory; bytes of it; bytes/s of all links
    between chips together; cycles/s."""

    flops: float
    bandwidth: float
    memory: float
    links: float
    clock: float


CHIPS = {
    "v5e": Chip(197e12, 819e9, 16e9, 1600e9 / 8, 1.5e9),
    "v5p": Chip(459e12, 2765e9, 95e9, 4800e9 / 8, 1.75e9),
}


@dataclass(frozen=True)
class Program:
    """What is compiled. sizes: (data, fsdp, tensor).

    decode: questions x samples, all with a slot, prompts of `prompt_len` and outputs of
    `new_tokens`. update: `microbatches` of `rows` rows of `row_len`; chunk: tokens whose logits
    exist at a time.
    """

    kind: str
    topology: str
    sizes: tuple[int, int, int]
    questions: int = 0
    samples: int = 64
    prompt_len: int = 512
    new_tokens: int = 1024
    microbatches: int = 8
    rows: int = 0
    row_len: int = 1536
    chunk: int = 0

    @property
    def chip(self) -> Chip:
        """Its rates."""
        return CHIPS[self.topology.partition(":")[0]]


PROGRAMS = (
    Program("decode", "v5p:2x2x2", (8, 1, 1), questions=8),
    Program("decode", "v5e:4x4", (4, 1, 4), questions=4),
    Program("update", "v5p:2x2x2", (1, 8, 1), rows=32, chunk=32 * 384),
    Program("update", "v5e:4x4", (1, 16, 1), rows=16, chunk=16 * 384),
)


def model(layers: int) -> ModelConfig:
    """DeepSeekMath-7B with so many layers."""
    return ModelConfig(
        num_layers=layers, d_model=SHAPE.d_model, num_heads=SHAPE.heads,
        num_kv_heads=SHAPE.kv_heads, head_dim=SHAPE.head_dim, mlp_dim=SHAPE.mlp,
        norm_eps=1e-6, compute_dtype="bfloat16", remat="full", attention="splash",
    )  # fmt: skip


def slice_mesh(program: Program) -> Mesh:
    """The mesh over a described slice. The name of its topology is that of the compiler."""
    from jax.experimental import topologies

    slice_ = topologies.get_topology_desc(platform="tpu", topology_name=program.topology)
    return Mesh(np.array(slice_.devices).reshape(program.sizes), ("data", "fsdp", "tensor"))


def placed(tree: Any, shardings: Any) -> Any:
    """Shapes with shardings."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        shardings,
    )


def decode_arguments(program: Program, mesh: Mesh, config: ModelConfig) -> tuple[Any, ...]:
    """The arguments of `sampler.decode`, the parameters in the rollout's layout."""
    shapes = transformer.abstract_params(config=config, vocab_size=SHAPE.vocab)
    layout = param_shardings(mesh, shapes, logical_axes(shapes), fsdp=False)
    of_block = jax.tree.map(
        lambda where: NamedSharding(mesh, PartitionSpec(*where.spec[1:])), layout["blocks"]
    )
    layout |= {"blocks": (of_block,) * config.num_layers}

    def cast(path: tuple[Any, ...], leaf: Any) -> Any:
        dtype = leaf.dtype if path[-1].key == "scale" else config.compute_dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype)

    shapes = jax.tree_util.tree_map_with_path(cast, shapes)
    params = placed(jax.eval_shape(transformer.unstack, shapes), layout)
    by_rows, everywhere = batch_sharding(mesh), replicated(mesh)

    def number(*shape: int, where: Any = by_rows) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where)

    questions, samples = program.questions, program.samples
    prompts = Prompts(number(questions, program.prompt_len), number(questions), number(questions))
    root = jax.eval_shape(lambda: run_key(seed=0, purpose=Purpose.ROLLOUT))
    started = functools.partial(
        sampler.start,
        mesh=mesh,
        config=config,
        shape=sampler.slots_shape(questions // batch_size_divisor(mesh), samples, 0),
        ring=program.new_tokens,
        max_new_tokens=program.new_tokens,
    )
    step = number(where=everywhere)
    started = jax.eval_shape(started, params, prompts, number(questions, samples), root, step)
    by_heads = NamedSharding(mesh, PartitionSpec(BATCH_AXES, "tensor"))
    store, slots = placed(
        started, jax.tree.map(lambda leaf: by_heads if leaf.ndim == 4 else by_rows, started)
    )
    temperature = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
    return params, store, slots, temperature, step


def update_arguments(program: Program, mesh: Mesh, config: ModelConfig) -> tuple[Any, ...]:
    """The arguments of `update`, its state split over fsdp."""
    shapes = transformer.abstract_params(config=config, vocab_size=SHAPE.vocab)
    layout = param_shardings(mesh, shapes, logical_axes(shapes))
    optimizer, everywhere = make_optimizer(OPTIMIZER, 1), replicated(mesh)
    state = jax.eval_shape(functools.partial(training.init_state, optimizer=optimizer), shapes)
    moments = optax.tree_utils.tree_map_params(
        optimizer, lambda _, where: where, state.optimizer, layout,
        transform_non_params=lambda _: everywhere,
    )  # fmt: skip
    state = placed(state, TrainState(everywhere, layout, moments))  # type: ignore[arg-type]
    rows = (program.microbatches, program.rows, program.row_len)

    def array(dtype: Any, *shape: int, where: Any = everywhere) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    leaves = [
        array(dtype, *rows, where=batch_sharding(mesh, axis=1))
        for dtype in (jnp.int32,) * 4 + (jnp.float32,) * 3
    ]
    batch = PackedBatch(*(*leaves, array(jnp.int32)))
    return state, None, batch, array(jnp.float32)


def decode_settings(program: Program, mesh: Mesh, config: ModelConfig) -> dict[str, Any]:
    """The static arguments of `sampler.decode`."""
    return {
        "mesh": mesh, "config": config, "prompt_width": program.prompt_len, "eos_ids": (2,),
        "greedy": False,
    }  # fmt: skip


def update_settings(program: Program, mesh: Mesh, config: ModelConfig) -> dict[str, Any]:
    """The static arguments of `update`."""
    optimizer = make_optimizer(OPTIMIZER, 1)
    return {
        "config": config, "optimizer": optimizer, "kl_coefficient": 0.0,
        "chunk": program.chunk, "mesh": mesh,
    }  # fmt: skip
