"""The count of memory.py beside what compilers allot, with none of the devices at hand.

    python -m benchmarks.compiled_memory experiments/gsm8k_qwen2.5_0.5b.py --device cpu
    python -m benchmarks.compiled_memory EXPERIMENT --device v5e-4   # needs pip install "jax[tpu]"
    python -m benchmarks.compiled_memory EXPERIMENT --device t4      # jax-cuda12-plugin,
                                                # jax-cuda12-pjrt and nvidia-cuda-nvcc-cu12

The programs of a run's rollout, evaluations and update are compiled ahead of time from shapes
only, for a TPU slice by libtpu, for a GPU by XLA for CUDA. A program's memory is its arguments,
its temporaries and what else it returns; counted is the same of memory.py. Attention is splash
on a TPU where it can serve, and XLA's elsewhere: cuDNN's cannot be compiled without cuDNN. A GPU's
products are not tuned, so their work space is a guess.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from rft_jax.commands import args
from rft_jax.config import Config
from rft_jax.config import experiment as experiments
from rft_jax.errors import ConfigError
from rft_jax.observe.hardware import GIB
from rft_jax.planning import aot, memory, programs, targets
from rft_jax.planning.memory import Sampled
from rft_jax.planning.programs import Setting
from rft_jax.planning.targets import Target

SLICES = {"v5e-1": "v5e:1x1", "v5e-4": "v5e:2x2", "v5e-8": "v5e:2x4", "v5p-8": "v5p:2x2x1",
          "v5p-16": "v5p:2x2x2"}  # fmt: skip
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


def gpus(name: str, count: int) -> list[Any]:
    """Described GPUs."""
    import jax_cuda12_plugin  # noqa: F401  # it registers the platform
    from jax.experimental import topologies

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


def sampling_rows(name: str, of: Setting, work: Sampled, *, tpu: bool) -> Iterator[Row]:
    """The programs of one call of the sampler, for its longest ring."""
    counted = memory.sampling(of.config, of.shards, work, tpu=tpu)

    beside = {"growth": ("rollout weights", "prompts of the queue")}  # no arguments of it
    for moment in ("prefill", "growth", "decode"):
        if moment in counted:
            left_out = beside.get(moment, ())
            parts = (n for part, n in counted[moment].items() if part not in left_out)
            make = functools.partial(getattr(programs, moment), work=work)
            yield Row(f"{name}, {moment}", sum(parts), aot.measure(make, of, 0.0).needed)


def target(name: str) -> Target:
    """Described devices, or one of this machine's CPU."""
    if name == "cpu":
        return Target("cpu", None, 1, 0.0, devices=tuple(jax.devices("cpu")[:1]))
    if name in SLICES:
        return targets.described(SLICES[name])
    known = targets.counted(name)
    return replace(known, devices=tuple(gpus(name, known.count)))


def rows(config: Config, name: str) -> Iterator[Row]:
    """Every program of a run on the device of that name."""
    on = target(name)
    of = programs.setting(config, on)
    config = of.config
    counted = memory.held(config, of.shards) | memory.update(config, of.shards, tpu=on.tpu)
    yield Row("update", sum(counted.values()), aot.measure(programs.update, of, 0.0).needed)
    works = {f"evaluation, {w.samples} each": w for w in memory.evaluations(config, of.shards)}
    if config.rollout is not None:
        works = {"rollout": memory.rollout(config, of.shards)} | works
    for what, work in works.items():
        yield from sampling_rows(what, of, work, tpu=on.tpu)


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
        _, options = args.split(fields)
        config = args.apply(experiments.load(given.experiment), options)[given.only]
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
