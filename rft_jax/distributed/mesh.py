"""The device mesh and the one table that maps logical axes to it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from rft_jax.config import MeshConfig
from rft_jax.errors import ConfigError
from rft_jax.types import Params

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

_ROWS: dict[str, tuple[str | None, ...]] = {"rows": BATCH_AXES, "rows_of_copy": ("data",)}

AXES = (*BATCH_AXES, "tensor")
"""All mesh axes, those that exchange more further back."""

SETTINGS = {
    "embed": "model.d_model",
    "vocab": "the rows of the embedding (model.vocab_size, or else the pieces of the tokenizer)",
    "heads": "model.num_heads",
    "kv_heads": "model.num_kv_heads",
    "mlp": "model.mlp_dim",
}
"""Logical axis -> what a user sets to change its size."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp, tensor) mesh over all devices of the job, or over `devices`, as `arranged`.

    Raises ConfigError when the sizes do not multiply to the number of devices.
    """
    devices = found_devices() if devices is None else devices
    sizes, count = (config.data, config.fsdp, config.tensor), len(devices)
    if not _fits(config, count):
        there_are = "device there is" if count == 1 else "devices there are"
        split = " JAX_NUM_CPU_DEVICES sets how many a CPU is split into."
        raise ConfigError(
            f"mesh is data={config.data} x fsdp={config.fsdp} x tensor={config.tensor}: it must "
            f"make up the {count} {there_are}; leave one axis at -1 to infer it."
            f"{split if devices[0].platform == 'cpu' else ''}"
        )
    left = count // math.prod(size for size in sizes if size != -1)
    data, fsdp, tensor = (left if size == -1 else size for size in sizes)
    return Mesh(
        arranged(devices, (data, fsdp, tensor)), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )


def found_devices() -> Sequence[jax.Device]:
    """The devices of the job. ConfigError when jax has none of the kind that it is to use."""
    try:
        return jax.devices()
    except RuntimeError as error:
        raise ConfigError(f"jax finds no devices: {' '.join(str(error).split())[:300]}") from error


def arranged(devices: Sequence[Any], shape: tuple[int, int, int]) -> np.ndarray:
    """The devices in `shape`, (data, fsdp, tensor), so that those which exchange most are nearest.

    On TPUs the order follows the links between chips, as jax.make_mesh has it, but for shapes that
    split an axis of links, which that takes only on v5e; elsewhere it is that of `devices`, by id
    on GPUs. Slices, which a slower network joins, differ along data, and along fsdp where
    there are more of them than data can take.
    Raises ConfigError when the devices of a tensor axis would be of several slices.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    data, fsdp, tensor = shape
    of_data = math.gcd(data, slices)
    of_fsdp = slices // of_data
    if fsdp % of_fsdp:
        raise ConfigError(
            f"mesh is data={data} x fsdp={fsdp} x tensor={tensor}, and the devices are of {slices} "
            "slices: those of a tensor axis must be of one; let mesh.data be a multiple of "
            f"{slices}."
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // of_data, fsdp // of_fsdp, tensor),
        (of_data, of_fsdp, 1),
        devices,
        allow_split_physical_axes=True,
    )


def cpu_device_count(meshes: Iterable[MeshConfig], rows: Iterable[int], cores: int) -> int:
    """Simulated devices to split a CPU into: a power of two, at most one per core, that every one
    of `meshes` can be made of and that divides every number of `rows`.

    XLA's CPU backend runs many operations, batched matrix products among them, on one thread:
    devices that share out a batch keep all cores at work.
    """
    meshes, rows = tuple(meshes), tuple(rows)

    def fits(count: int) -> bool:
        return all(_fits(mesh, count) for mesh in meshes) and not any(r % count for r in rows)

    # The powers of two up to `cores`.
    return max(filter(fits, (2**power for power in range(cores.bit_length()))), default=1)


def _fits(config: MeshConfig, count: int) -> bool:
    """Whether `count` devices make up such a mesh."""
    sizes = (config.data, config.fsdp, config.tensor)
    known = math.prod(size for size in sizes if size != -1)
    return count % known == 0 if -1 in sizes else count == known


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
    """How activations are split: `rows` by the batch axes, `rows_of_copy` only by data (fsdp being
    free for `embed`), others as RULES say (None: kept whole), mesh axes other than `among` left
    out."""

    def axes(name: str | None) -> tuple[str | None, ...]:
        if name is None:
            return ()
        return _ROWS[name] if name in _ROWS else (RULES[name],)

    return PartitionSpec(*(tuple(axis for axis in axes(n) if axis in among) for n in names))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Arrays whose dimension `axis` is split over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))


def param_shardings(
    mesh: Mesh | AbstractMesh, shapes: Params, axes: Params, *, fsdp: bool = True
) -> dict[str, Any]:
    """The sharding of every parameter.

    Args:
        shapes: a tree of arrays or ShapeDtypeStructs.
        axes: the same tree of logical axis names.
        fsdp: False keeps the "embed" axis whole: the layout of a rollout, whose decode loop must
            not gather weights.

    Raises ConfigError, one for all, when mesh axes do not divide what they should split.
    """
    rules = RULES if fsdp else RULES | {"embed": None}
    misfits: dict[str, dict[str, int]] = {}

    def one(shape: Any, names: tuple[str | None, ...]) -> NamedSharding:
        spec = tuple(None if name is None else rules[name] for name in names)
        for size, name, axis in zip(shape.shape, names, spec, strict=True):
            if name is not None and axis is not None and size % mesh.shape[axis]:
                misfits.setdefault(axis, {})[name] = size
        return NamedSharding(mesh, PartitionSpec(*spec))

    shardings: dict[str, Any] = jax.tree.map(one, shapes, axes)
    if misfits:
        parts = []
        for axis in sorted(misfits, key=AXES.index):
            sizes = ", and ".join(
                f"{SETTINGS[n]}, {misfits[axis][n]}" for n in sorted(misfits[axis])
            )
            parts.append(f"mesh.{axis} is {mesh.shape[axis]}: it must divide {sizes}")
        raise ConfigError("; ".join(parts) + "; choose another mesh or model size.")
    return shardings
