"""What is settled about jax before it looks for devices."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import jax

from rft_jax.config import MeshConfig
from rft_jax.distributed.mesh import cpu_device_count

CACHE_DIR = "~/.cache/rft_jax/xla"
"""Compiled programs, kept between starts; JAX_COMPILATION_CACHE_DIR names another folder."""
CACHE_MIN_SECONDS = 0.5
"""Shortest compilation that is kept; JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS sets another."""


def keep_programs() -> None:
    """Keep compiled programs between starts, unless the environment says otherwise."""
    settings: dict[str, str | float] = {
        "jax_compilation_cache_dir": str(Path(CACHE_DIR).expanduser()),
        "jax_persistent_cache_min_compile_time_secs": CACHE_MIN_SECONDS,
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def split_cpu(meshes: Sequence[MeshConfig], rows: Sequence[int]) -> None:
    """Where there is no accelerator, one simulated device per core, as far as meshes and rows of
    micro-batches allow, unless the environment says how many or devices are in use already."""
    flags = os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in flags:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # RuntimeError: devices are in use, of an earlier run in the same process.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cpu_device_count(meshes, rows, cores or 1))
