"""Rows of a batch by owner, and arrays there and back: what holds in one process.

That real processes agree: test_jobs.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rft_jax.config import MeshConfig
from rft_jax.distributed.mesh import AXES, batch_sharding, batch_size_divisor, make_mesh, replicated
from rft_jax.distributed.shards import (
    addressed_rows,
    mesh_of,
    on_shards,
    owned_parts,
    put,
    read,
    rows_by_process,
)

Shape = tuple[int, int, int]
SHAPES: list[Shape] = [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4), (1, 1, 8)]
ROWS = 16


@dataclass(frozen=True)
class Device:
    """One of a process that is not here."""

    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "made up"


def mesh_of_processes(shape: Shape, processes: list[int]) -> Mesh:
    """A mesh of devices of these processes."""
    devices = np.array([Device(n, process) for n, process in enumerate(processes)], object)
    return Mesh(devices.reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_here(shape: Shape) -> Mesh:
    return make_mesh(MeshConfig(*shape))


@pytest.mark.parametrize(
    ("shape", "owned"),
    [
        ((8, 1, 1), [4, 4, 4, 4]),
        ((2, 2, 2), [4, 4, 4, 4]),
        ((1, 2, 4), [8, 0, 8, 0]),  # two processes hold the same rows: the first owns them
        ((1, 1, 8), [16, 0, 0, 0]),
    ],
)
def test_rows_of_four_processes(shape: Shape, owned: list[int]) -> None:
    found = rows_by_process(mesh_of_processes(shape, [n // 2 for n in range(8)]), ROWS)
    assert [len(rows) for rows in found] == owned
    assert np.concatenate(found).tolist() == list(range(ROWS))


def test_rows_of_processes_that_take_turns() -> None:
    found = rows_by_process(mesh_of_processes((8, 1, 1), [0, 1] * 4), ROWS)
    assert [rows.tolist() for rows in found] == [
        [0, 1, 4, 5, 8, 9, 12, 13],
        [2, 3, 6, 7, 10, 11, 14, 15],
    ]


@given(st.sampled_from(SHAPES), st.permutations([0, 0, 1, 1, 2, 2, 3, 3]), st.integers(1, 3))
def test_every_row_has_one_owner(shape: Shape, processes: list[int], times: int) -> None:
    mesh = mesh_of_processes(shape, processes)
    rows = times * batch_size_divisor(mesh)
    found = rows_by_process(mesh, rows)
    assert len(found) == 4
    assert sorted(np.concatenate(found).tolist()) == list(range(rows))
    for process, owned in enumerate(found):
        assert (np.diff(owned) > 0).all()
        devices = mesh.devices.reshape(-1, shape[2])
        holders = {int(row) * len(devices) // rows for row in owned}
        assert all(process in [d.process_index for d in devices[part]] for part in holders)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_alone_all_rows_are_here(shape: Shape) -> None:
    mesh = mesh_here(shape)
    assert [rows.tolist() for rows in rows_by_process(mesh, ROWS)] == [list(range(ROWS))]
    assert addressed_rows(mesh, ROWS) == list(range(ROWS))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_there_and_back(shape: Shape) -> None:
    mesh = mesh_here(shape)
    values = np.random.default_rng(1).normal(size=(ROWS, 3)).astype(np.float32)
    tree = {"rows": values, "count": np.int32(7)}
    placed = put(tree, {"rows": batch_sharding(mesh), "count": replicated(mesh)})
    assert placed["rows"].sharding == batch_sharding(mesh)
    assert mesh_of(placed["rows"]) == mesh
    assert read(placed["rows"]).tobytes() == values.tobytes()
    assert int(read(placed["count"])) == 7


def test_one_sharding_for_a_whole_tree_and_none() -> None:
    mesh = mesh_here((2, 2, 2))
    values = np.arange(4, dtype=np.int32)
    both = put((values, values + 1), replicated(mesh))
    assert all(one.sharding == replicated(mesh) for one in both)
    default = put(values, None)
    assert mesh_of(default) is None
    assert mesh_of(values) is None
    assert read(default).tolist() == values.tolist()


@pytest.mark.parametrize("several", [False, True])
def test_keys_are_put_as_they_are(monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
    """The way of several processes makes the same arrays as that of one."""
    if several:
        monkeypatch.setattr(jax, "process_count", lambda: 2)
    mesh = mesh_here((2, 2, 2))
    key, values = jax.random.key(5), np.arange(ROWS * 2.0, dtype=np.float32).reshape(ROWS, 2)
    placed, rows = put((key, values), (replicated(mesh), batch_sharding(mesh)))
    assert (jax.random.key_data(placed) == jax.random.key_data(key)).all()
    assert rows.sharding == batch_sharding(mesh)
    assert np.asarray(rows).tobytes() == values.tobytes()


def test_parts_of_arrays_that_are_all_here() -> None:
    mesh = mesh_here((2, 2, 2))
    values = np.arange(ROWS, dtype=np.int32)
    tree = {"a": values, "b": np.stack([values, -values], axis=1)}
    for placed in (put(tree, batch_sharding(mesh)), put(tree, None)):
        (part,) = owned_parts(placed)
        assert part.first == 0
        assert {name: rows.tolist() for name, rows in part.rows.items()} == {
            name: rows.tolist() for name, rows in tree.items()
        }
        assert all(type(rows) is np.ndarray for rows in part.rows.values())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_shard_by_itself(shape: Shape) -> None:
    mesh = mesh_here(shape)
    rows = put(np.arange(ROWS, dtype=np.int32), batch_sharding(mesh))

    def from_the_last(rows: jax.Array, scale: jax.Array) -> jax.Array:
        return (rows - rows[-1]) * scale

    function = jax.jit(on_shards(from_the_last, mesh, (True, False)))
    size = ROWS // batch_size_divisor(mesh)
    expected = (np.arange(ROWS) % size - size + 1) * 2
    assert np.asarray(function(rows, jnp.int32(2))).tolist() == expected.tolist()


def test_without_a_mesh_the_batch_is_one_shard() -> None:
    def function(rows: Any) -> Any:
        return rows

    assert on_shards(function, None, (True,)) is function
    assert on_shards(
        function, Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES), (True,)
    ) is (function)


def test_a_sharding_of_another_kind_has_its_mesh() -> None:
    mesh = mesh_here((2, 2, 2))
    split = NamedSharding(mesh, PartitionSpec("tensor"))
    assert mesh_of(put(np.arange(8, dtype=np.int32), split)) == mesh
