"""The rates of the device in use: matrix products and memory traffic, measured with jax.

A worker like the contenders (protocol.py): one call measures each rate once, so that a contest
samples the machine in every round, beside the contenders.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.protocol import Call, serve
from benchmarks.work import Task

REPEATS = 3
"""Of each measurement in a call; the best counts, as a rate is what the machine can do."""


def device() -> str:
    """The kind of device, as jax names it."""
    return jax.devices()[0].device_kind


def _best(function: Callable[[], Any]) -> float:
    """Seconds of the fastest of REPEATS calls."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - began)
    return min(times)


def prepare(task: Task) -> Call:
    """Rates with task.work.dtype; options: `matrix` (side) and `mebibytes` of a stream."""
    jax.config.update("jax_num_cpu_devices", task.cores)  # says nothing on a GPU
    mesh = Mesh(np.asarray(jax.devices()), ("all",))
    split, whole = NamedSharding(mesh, PartitionSpec("all")), NamedSharding(mesh, PartitionSpec())
    side, dtype = int(task.options["matrix"]), task.work.dtype
    side -= side % mesh.size
    numbers = (int(task.options["mebibytes"]) << 20) // 4
    numbers -= numbers % mesh.size

    def random(shape: tuple[int, ...], where: NamedSharding) -> jax.Array:
        draw = functools.partial(jax.random.normal, shape=shape, dtype=dtype)
        return jax.jit(draw, out_shardings=where)(jax.random.key(0))

    left, right = random((side, side), split), random((side, side), whole)
    product = jax.jit(jnp.matmul, out_shardings=split)
    # In place, so that no time goes to pages that the system has to find first.
    triad = jax.jit(lambda a, b: a + 3.0 * b, donate_argnums=0, out_shardings=split)
    streams = [
        jax.device_put(jnp.ones((numbers,), jnp.float32), split),
        jax.device_put(jnp.ones((numbers,), jnp.float32), split),
    ]

    def stream() -> jax.Array:
        streams[0] = triad(streams[0], streams[1])
        return streams[0]

    jax.block_until_ready((product(left, right), stream()))

    def call(number: int) -> dict[str, Any]:
        return {
            "flops": 2.0 * side**3 / _best(lambda: product(left, right)),
            "bytes": 3.0 * 4 * numbers / _best(stream),
            "tokens": 0,
        }

    return call


if __name__ == "__main__":
    serve(prepare, packages=("jax", "jaxlib"), device=device)
