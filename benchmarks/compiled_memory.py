"""The count of memory.py beside what compilers allot, with none of the devices at hand.

    python -m benchmarks.compiled_memory experiments/gsm8k_qwen2.5_0.5b.py --device cpu
    python -m benchmarks.compiled_memory EXPERIMENT --device v5e-4   # needs pip install "jax[tpu]"
    python -m benchmarks.compiled_memory EXPERIMENT --device t4      # jax-cuda12-plugin,
                                                # jax-cuda12-pjrt and nvidia-cuda-nvcc-cu12

The programs of a run's rollout, evaluations and update are compiled ahead of time from shapes
alone, for a TPU slice by libtpu, for a GPU by XLA for CUDA. A program's memory is its arguments,
its temporaries and what it returns besides; counted is the same of memory.py. Attention is splash
on a TPU where it can serve, and XLA's elsewhere: cuDNN's cannot be compiled without cuDNN. A GPU's
products are not tuned, so their work space is a guess.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import memory
from benchmarks.devices import DEVICES, GIB
from benchmarks.memory import Parts, Sampled, Shards
from benchmarks.tpu_programs import placed
from rft_jax import experiments
from rft_jax.batches import PackedBatch, Prompts
from rft_jax.config import Config, ConfigError
from rft_jax.keys import Purpose, run_key
from rft_jax.layout import Layout, make_layout
from rft_jax.models import kernels, transformer
from rft_jax.parallel.mesh import BATCH_AXES, batch_sharding, replicated
from rft_jax.sampling import sampler
from rft_jax.training import update as training
from rft_jax.training.optimizer import make_optimizer

SLICES: dict[str, tuple[str, dict[str, Any]]] = {
    "v5e-1": ("v5e:1x1", {"chips_per_host_bounds": [1, 1, 1]}),
    "v5e-4": ("v5e:2x2", {}),
    "v5e-8": ("v5e:2x4", {}),
    "v5p-8": ("v5p:2x2x1", {}),
    "v5p-16": ("v5p:2x2x2", {}),
}
"""Slices of TPUs by the compiler's names."""


class Gpu(NamedTuple):
    """What XLA asks about a GPU: compute capability, multiprocessors, float32 units and bytes of
    shared memory of each, bytes of cache and of memory, bytes/s of it, GHz."""

    capability: tuple[int, int]
    cores: int
    units: int
    shared: int
    cache: int
    memory: int
    bandwidth: int
    clock: float


GPUS = {
    "t4": Gpu((7, 5), 40, 64, 65_536, 4 << 20, 15_835_660_288, 320 * 10**9, 1.59),
    "a4000": Gpu((8, 6), 48, 128, 101_376, 4 << 20, 16_863_199_232, 448 * 10**9, 1.56),
    "a100-80gb": Gpu((8, 0), 108, 64, 166_912, 40 << 20, 84_987_740_160, 2039 * 10**9, 1.41),
    "h100": Gpu((9, 0), 132, 128, 232_448, 50 << 20, 84_987_740_160, 3350 * 10**9, 1.98),
}


def devices(name: str, count: int) -> list[Any]:
    """Described devices, or this machine's CPU."""
    from jax.experimental import topologies

    if name == "cpu":
        return list(jax.devices("cpu")[:count])
    if name in SLICES:
        topology, options = SLICES[name]
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
        return list(described.devices)
    import jax_cuda12_plugin  # noqa: F401  # it registers the platform

    gpu = GPUS[name.removeprefix("8x")]
    target = f"""
    gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
      shared_memory_per_core: {gpu.shared} threads_per_core_limit: 1024 core_count: {gpu.cores}
      fpus_per_core: {gpu.units} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
      block_dim_limit_z: 65535 memory_bandwidth: {gpu.bandwidth} l2_cache_size: {gpu.cache}
      clock_rate_ghz: {gpu.clock} device_memory_size: {gpu.memory}
      shared_memory_per_block_optin: {gpu.shared}
      cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 8 patch: 0 }}
    runtime_version {{ major: 12 minor: 8 }}
    device_description_str: "{name}"
    """
    described = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=target, topology=f"1x1x{count}"
    )
    return list(described.devices)


class Row(NamedTuple):
    """A program, and its bytes on a device as counted and as compiled."""

    program: str
    counted: float
    compiled: float


def _bytes(compiled: Any) -> float:
    found = compiled.memory_analysis()
    returned = found.output_size_in_bytes - found.alias_size_in_bytes
    return float(found.argument_size_in_bytes + found.temp_size_in_bytes + returned)


def _array(shape: tuple[int, ...], dtype: Any, where: NamedSharding) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def update_row(config: Config, mesh: Mesh, layout: Layout, of: Shards, *, tpu: bool) -> Row:
    """The update, the state among its arguments."""
    everywhere, by_rows = replicated(mesh), batch_sharding(mesh, axis=1)
    rows = (
        memory.microbatches(config),
        config.update.rows_per_microbatch,
        config.update.row_length,
    )
    dtypes = (jnp.int32,) * 4 + (jnp.float32,) * 3
    leaves = [_array(rows, dtype, by_rows) for dtype in dtypes]
    batch = PackedBatch(*(*leaves, _array((), jnp.int32, everywhere)))
    compiled = training.update.lower(
        layout.state,
        None,
        batch,
        _array((), jnp.float32, everywhere),
        layout.base if config.model.lora_rank else {},
        config=config.model,
        optimizer=make_optimizer(config.optimizer, config.steps),
        kl_coefficient=0.0,
        chunk=max(1, config.update.logits_at_once // memory.vocabulary(config)),
        mesh=mesh,
    ).compile()
    counted = memory.held(config, of) | memory.update(config, of, tpu=tpu)
    return Row("update", sum(counted.values()), _bytes(compiled))


def sampling_rows(
    name: str, config: Config, mesh: Mesh, layout: Layout, work: Sampled, *, tpu: bool
) -> Iterator[Row]:
    """The programs of one call of the sampler, for its longest ring."""
    of, model, data = Shards(*mesh.devices.shape), config.model, config.data
    counted = memory.sampling(config, of, work, tpu=tpu)
    everywhere, by_batch = replicated(mesh), batch_sharding(mesh)
    params = _rollout_params(config, layout)
    width, longest = data.max_prompt_tokens, data.max_completion_tokens
    number = functools.partial(_array, dtype=jnp.int32, where=by_batch)
    prompts = Prompts(
        number((work.questions, width)), number((work.questions,)), number((work.questions,))
    )
    root = jax.eval_shape(lambda: run_key(seed=0, purpose=Purpose.ROLLOUT))
    root = _array(root.shape, root.dtype, everywhere)
    step, temperature = _array((), jnp.int32, everywhere), _array((), jnp.float32, everywhere)
    given = (params, prompts, number((work.questions, work.samples)), root, step)
    shape = sampler.slots_shape(
        work.questions // of.batch, work.samples, -(-work.slots // of.batch)
    )
    size = shape[0] * shape[1]
    rings = sorted({layout.ring for layout in sampler.layouts(1, longest, fewer=2)})
    start = functools.partial(
        sampler.start, mesh=mesh, config=model, shape=shape, max_new_tokens=longest
    )
    by_heads = NamedSharding(mesh, PartitionSpec(BATCH_AXES, "tensor"))

    def started(ring: int) -> Any:
        shapes = jax.eval_shape(functools.partial(start, ring=ring), *given)
        where = jax.tree.map(lambda leaf: by_heads if leaf.ndim == 4 else by_batch, shapes)
        return placed(shapes, where)

    def row(moment: str, compiled: Any, besides: Sequence[str], also: float = 0.0) -> Row:
        """besides: parts that are no argument of the program; also: bytes that should be."""
        parts: Parts = {part: n for part, n in counted[moment].items() if part not in besides}
        return Row(f"{name}, {moment}", sum(parts.values()), _bytes(compiled) + also)

    # The prefill does not read an output projection of its own.
    unread = 0.0
    if not model.tie_embeddings:
        table = {"unembedding": memory.policy(config).params["unembedding"]}
        unread = memory.tree_bytes(table, of, memory.as_computed(model), fsdp=False)
    copy = ("rollout weights",)
    lowered = sampler.start.lower(
        *given, mesh=mesh, config=model, shape=shape, max_new_tokens=longest, ring=rings[0]
    )
    yield row("prefill", lowered.compile(), copy, unread)
    if len(rings) > 1:
        lowered = sampler._change.lower(
            started(rings[-2])[1], mesh=mesh, prompt_width=width,
            old=sampler.Layout(size, rings[-2]), new=sampler.Layout(size, rings[-1]),
        )  # fmt: skip
        besides = (*copy, "the same by layer", "prompts of the queue")
        yield row("growth", lowered.compile(), besides)
    lowered = sampler.decode.lower(
        params, *started(rings[-1]), temperature, step,
        mesh=mesh, config=model, prompt_width=width, eos_ids=(2,), greedy=False,
    )  # fmt: skip
    yield row("decode", lowered.compile(), copy)


def _rollout_params(config: Config, layout: Layout) -> Any:
    """The parameters as decoding reads them."""
    shapes = memory.policy(config).params
    cast = functools.partial(transformer.cast, dtype=config.model.compute_dtype)
    unstacked = jax.eval_shape(lambda params: transformer.unstack(cast(params)), shapes)
    of_block = jax.tree.map(
        lambda where: NamedSharding(where.mesh, PartitionSpec(*where.spec[1:])),
        layout.rollout["blocks"],
    )
    return placed(unstacked, layout.rollout | {"blocks": (of_block,) * config.model.num_layers})


def rows(config: Config, name: str) -> Iterator[Row]:
    """Every program of a run on the device of that name, `cpu` or one of DEVICES."""
    tpu = name in SLICES
    count = 1 if name == "cpu" else DEVICES[name].count
    of = memory.shards(config.mesh, count)
    if tpu and not kernels.cannot("splash", config.model, config.update.row_length, "tpu"):
        config = replace(config, model=replace(config.model, attention="splash"))
    mesh = Mesh(np.array(devices(name, count)).reshape(of), ("data", "fsdp", "tensor"))
    optimizer = make_optimizer(config.optimizer, config.steps)
    layout = make_layout(config.model, mesh, optimizer, memory.vocabulary(config))
    yield update_row(config, mesh, layout, of, tpu=tpu)
    works = {f"evaluation, {w.samples} each": w for w in memory.evaluations(config, of)}
    if config.rollout is not None:
        works = {"rollout": memory.rollout(config, of)} | works
    for what, work in works.items():
        yield from sampling_rows(what, config, mesh, layout, work, tpu=tpu)


def main() -> None:
    """Compile the programs of an experiment's runs and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--device", required=True, choices=["cpu", *SLICES, *GPUS, "8xh100"])
    parser.add_argument("--only", required=True, help="the run")
    given, fields = parser.parse_known_args()
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server to ask
    if given.device not in ("cpu", *SLICES):  # tuning needs the GPU itself
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"
    try:
        config = experiments.override(experiments.load(given.experiment), fields)[given.only]
    except ConfigError as error:
        sys.exit(f"compiled_memory: error: {error}")
    print("| program | counted, GiB | compiled, GiB | counted / compiled |")
    print("| --- | --- | --- | --- |")
    for row in rows(config, given.device):
        ratio = row.counted / row.compiled
        print(
            f"| {row.program} | {row.counted / GIB:.2f} | {row.compiled / GIB:.2f} | {ratio:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
