"""Which process a row of a batch belongs to, and the way of arrays between host and devices.

Rows are split over the batch axes of the mesh. Of the devices that hold the same rows, which
tensor parallelism may put into several processes, the first one's process owns them: it decodes,
verifies and logs what is sampled there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from rft_jax.distributed.mesh import BATCH_AXES, batch_sharding, replicated


def rows_by_process(mesh: Mesh, rows: int) -> list[Int[np.ndarray, "R"]]:
    """The rows of a batch of `rows`, by the process that owns them; every process has an entry."""
    owned: dict[int, list[Int[np.ndarray, "R"]]] = {}
    seen = set[int]()
    places: dict[Any, Any] = dict(batch_sharding(mesh).devices_indices_map((rows,)))
    for device, (index, *_) in places.items():
        first, last, _ = index.indices(rows)
        if first not in seen:
            seen.add(first)
            owned.setdefault(device.process_index, []).append(np.arange(first, last))
    none = np.zeros(0, np.int64)
    processes = range(1 + max(device.process_index for device in mesh.devices.flat))
    return [np.sort(np.concatenate([none, *owned.get(process, [])])) for process in processes]


def addressed_rows(mesh: Mesh, rows: int) -> list[int]:
    """The rows of a batch of `rows` that lie on devices of this process, owned or not."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return sorted({row for index in indices if index for row in range(*index[0].indices(rows))})


def mesh_of(array: Any) -> Mesh | None:
    """The mesh that an array lies on, if it lies on one."""
    where = getattr(array, "sharding", None)
    return where.mesh if isinstance(where, NamedSharding) else None  # type: ignore[return-value]


def on_shards(function: Callable[..., Any], mesh: Mesh | None, split: tuple[bool, ...]) -> Any:
    """`function` on each shard of the batch by itself. split: which arguments are per shard."""
    if mesh is None or mesh.size == 1:
        return function
    batch = PartitionSpec(BATCH_AXES)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=tuple(batch if of_shard else PartitionSpec() for of_shard in split),
        out_specs=batch,
        axis_names=set(BATCH_AXES),
        check_vma=False,
    )


class Part(NamedTuple):
    """Consecutive rows of arrays, from row `first` on; numpy."""

    first: int
    rows: Any


def owned_parts(tree: Any) -> Iterator[Part]:
    """The parts of a batch's arrays that this process owns, each once, copied to the host.

    Args:
        tree: arrays of equally many rows, split alike over the batch axes and by nothing else; or
            of no mesh, which are one part.
    """
    leaves, structure = jax.tree.flatten(tree)
    first = leaves[0]
    if first.is_fully_addressable:
        yield Part(0, jax.device_get(tree))
        return
    mesh = mesh_of(first)
    assert mesh is not None
    mine = set(rows_by_process(mesh, first.shape[0])[jax.process_index()].tolist())
    here = [{shard.device: shard.data for shard in leaf.addressable_shards} for leaf in leaves]
    for shard in first.addressable_shards:
        start, _, _ = shard.index[0].indices(first.shape[0])
        if start in mine:
            mine.discard(start)
            rows = jax.device_get([by_device[shard.device] for by_device in here])
            yield Part(start, jax.tree.unflatten(structure, rows))


def put(tree: Any, shardings: Any) -> Any:
    """Numpy arrays on devices: each process takes what is its own from its copy.

    Args:
        tree: a process may have anything in rows that lie elsewhere. Keys of random numbers may be
            among the arrays if they are replicated.
        shardings: one (None for the default device), or a tree of them.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def one(array: Any, sharding: Any) -> Any:
        if jax.dtypes.issubdtype(getattr(array, "dtype", None), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(array), sharding))
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(one, tree, shardings)


def read(array: Array) -> np.ndarray:
    """An array on the host, wherever it lies. Every process must call it."""
    mesh = mesh_of(array)
    if mesh is not None and not array.is_fully_addressable:
        array = _everywhere(array, mesh)
    return np.asarray(array)


@functools.partial(jax.jit, static_argnums=1)
def _everywhere(array: Array, mesh: Mesh) -> Array:
    return jax.lax.with_sharding_constraint(array, replicated(mesh))


def abstract(tree: Any, shardings: Any) -> Any:
    """`tree`'s shapes and types with `shardings`: what restore is told to produce."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )
