"""The device mesh and the one table that maps logical axes to it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from rft_jax.batches import Params
from rft_jax.config import ConfigError, MeshConfig

RULES: dict[str, str | None] = {
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "layer": None,
}
"""Logical parameter axis -> mesh axis that splits it; None is kept whole."""

BATCH_AXES = ("data", "fsdp")
"""Mesh axes that split a batch."""


def make_mesh(config: MeshConfig) -> Mesh:
    """A (data, fsdp, tensor) mesh over all devices of the job.

    Raises ConfigError when the sizes do not multiply to the number of devices.
    """
    sizes = _sizes(config)
    count = jax.device_count()
    known = math.prod(size for size in sizes if size != -1)
    if count % known or (-1 not in sizes and known != count):
        raise ConfigError(
            f"mesh is data={config.data} x fsdp={config.fsdp} x tensor={config.tensor}: it must "
            f"make up the {count} devices there are; leave one axis at -1 to infer it."
        )
    shape = tuple(count // known if size == -1 else size for size in sizes)
    return Mesh(np.asarray(jax.devices()).reshape(shape), ("data", "fsdp", "tensor"))


def cpu_device_count(meshes: Iterable[MeshConfig], rows: Iterable[int], cores: int) -> int:
    """Simulated devices to split a CPU into: a power of two, at most one per core, that every one
    of `meshes` can be made of and that divides every number of `rows`.

    XLA's CPU backend runs many operations, batched matrix products among them, on one thread:
    devices that share out a batch keep all cores at work.
    """
    meshes, rows = tuple(meshes), tuple(rows)

    def fits(count: int) -> bool:
        known = [math.prod(s for s in _sizes(mesh) if s != -1) for mesh in meshes]
        inferred = all(-1 in _sizes(mesh) for mesh in meshes)
        return inferred and not any(count % k for k in known) and not any(r % count for r in rows)

    counts = [2**power for power in range(cores.bit_length()) if 2**power <= cores]
    return max((count for count in counts if fits(count)), default=1)


def _sizes(config: MeshConfig) -> tuple[int, int, int]:
    return config.data, config.fsdp, config.tensor


def batch_size_divisor(mesh: Mesh | AbstractMesh) -> int:
    """Batches are split this many ways."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def constrain(x: Array, *names: str | None) -> Array:
    """`x` split along its logical axes (see `partition`) by those axes of the mesh in force that no
    enclosing shard_map splits already; unchanged where there are none."""
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.axis_names) - set(mesh.manual_axes)
    if not free:
        return x
    return jax.lax.with_sharding_constraint(x, partition(*names, among=free))


def partition(*names: str | None, among: Collection[str]) -> PartitionSpec:
    """How activations are split: `rows` by the batch axes, others as RULES say (None: kept whole),
    mesh axes other than `among` left out."""

    def axes(name: str | None) -> tuple[str | None, ...]:
        if name is None:
            return ()
        return BATCH_AXES if name == "rows" else (RULES[name],)

    return PartitionSpec(*(tuple(axis for axis in axes(n) if axis in among) for n in names))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Arrays whose dimension `axis` is split over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))


def param_shardings(
    mesh: Mesh, shapes: Params, axes: Params, *, fsdp: bool = True
) -> dict[str, Any]:
    """The sharding of every parameter.

    shapes: a tree of arrays or ShapeDtypeStructs; axes: the same tree of logical axis names.
    fsdp=False keeps the "embed" axis whole: the layout of a rollout, whose decode loop must not
    gather weights.
    Raises ConfigError when a mesh axis does not divide a dimension it should split.
    """
    rules = RULES if fsdp else RULES | {"embed": None}

    def one(path: tuple[Any, ...], shape: Any, names: tuple[str | None, ...]) -> NamedSharding:
        spec = tuple(None if name is None else rules[name] for name in names)
        for size, name, axis in zip(shape.shape, names, spec, strict=True):
            if axis is not None and size % mesh.shape[axis]:
                where = ".".join(str(part.key) for part in path)
                raise ConfigError(
                    f"mesh.{axis} is {mesh.shape[axis]}: it must divide the {name} axis of "
                    f"parameter {where}, {size}; choose another mesh or model size."
                )
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(one, shapes, axes)
