"""The mesh, the layouts made from its one table, and what moves between its devices.

That numbers are equal on every mesh: test_factorisations.py."""

from __future__ import annotations

import functools
import itertools
import math
import re
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AxisType, Mesh, PartitionSpec
from policies import random_policy

from rft_jax.config import MeshConfig
from rft_jax.distributed.collectives import is_main
from rft_jax.distributed.mesh import (
    RULES,
    SETTINGS,
    arranged,
    batch_sharding,
    batch_size_divisor,
    cpu_device_count,
    make_mesh,
    param_shardings,
    replicated,
)
from rft_jax.errors import ConfigError
from rft_jax.keys import Purpose, run_key
from rft_jax.models import transformer
from rft_jax.models.axes import AXES, logical_axes
from rft_jax.rollout import sampler
from rft_jax.training.packing import TrainingSequence, pack
from rft_jax.training.update import Terms, gradients
from rft_jax.types import PackedBatch, Params, Prompts

VOCAB = 24
MODEL = tiny.model(num_heads=8, num_kv_heads=4, mlp_dim=32)


@functools.cache
def policy() -> Params:
    return random_policy(MODEL, VOCAB)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(data=2, fsdp=-1, tensor=2), (2, 2, 2)),
        (MeshConfig(data=1, fsdp=2, tensor=-1), (1, 2, 4)),
        (MeshConfig(data=4, fsdp=2, tensor=1), (4, 2, 1)),
    ],
)
def test_a_mesh_has_all_devices_once(config: MeshConfig, shape: tuple[int, int, int]) -> None:
    mesh = make_mesh(config)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), shape, strict=True))
    assert sorted(device.id for device in mesh.devices.flat) == list(range(8))
    assert batch_size_divisor(mesh) == shape[0] * shape[1]


def test_a_cpu_has_its_devices_in_their_order() -> None:
    """Axes are Auto: the partitioner places what the program does not."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert list(mesh.devices.flat) == jax.devices()
    assert set(mesh.axis_types) == {AxisType.Auto}
    part = make_mesh(MeshConfig(tensor=2), jax.devices()[:4])
    assert list(part.devices.flat) == jax.devices()[:4]


@dataclass(frozen=True)
class Chip:
    """What jax says of a TPU chip or a GPU; coords: its place among the links of its slice."""

    id: int
    device_kind: str
    coords: tuple[int, int, int] = (0, 0, 0)
    slice_index: int = 0
    platform: str = "tpu"
    core_on_chip: int = 0


def chips(kind: str, x: int, y: int, z: int, slices: int = 1) -> list[Any]:
    places = itertools.product(range(slices), range(z), range(y), range(x))
    return [Chip(n, kind, (a, b, c), of) for n, (of, c, b, a) in enumerate(places)]


def _distance(one: Chip, other: Chip) -> int:
    return sum(abs(a - b) for a, b in zip(one.coords, other.coords, strict=True))


@pytest.mark.parametrize(
    ("kind", "size"),
    [("TPU v5 lite", (4, 4, 1)), ("TPU v6 lite", (4, 4, 1)), ("TPU v5", (2, 2, 4))],
)
def test_a_slice_is_in_the_order_of_its_links_whatever_the_mesh(
    kind: str, size: tuple[int, int, int]
) -> None:
    """jax.make_mesh refuses (2, 4, 2) on a v6e of 4 x 4, and (2, 2, 4) on a v5p of 2 x 2 x 4."""
    devices = chips(kind, *size)
    for data, fsdp in itertools.product((1, 2, 4, 8, 16), repeat=2):
        if data * fsdp <= 16:
            shape = (data, fsdp, 16 // data // fsdp)
            found = arranged(devices, shape)
            assert found.shape == shape
            assert {device.id for device in found.flat} == set(range(16))
    # Tensor-parallel neighbours are linked.
    for pair in arranged(devices, (2, 4, 2)).reshape(-1, 2):
        assert _distance(*pair) == 1


def test_a_ring_of_chips() -> None:
    around = list(arranged(chips("TPU v5 lite", 4, 4, 1), (1, 16, 1)).flat)
    assert all(_distance(a, b) == 1 for a, b in zip(around, [*around[1:], around[0]], strict=True))


@pytest.mark.parametrize("shape", [(2, 4, 4), (8, 2, 2), (1, 8, 4), (2, 16, 1)], ids=str)
def test_slices_differ_along_the_batch(shape: tuple[int, int, int]) -> None:
    """First along data; what tensor parallelism exchanges stays within a slice."""
    found = arranged(chips("TPU v5 lite", 4, 4, 1, slices=2), shape)
    assert found.shape == shape
    assert len({device.id for device in found.flat}) == 32
    of = np.vectorize(lambda device: device.slice_index)(found)
    assert (of == of[..., :1]).all()
    if shape[0] > 1:
        assert (of == of[:, :1]).all()
        assert of[:, 0, 0].tolist() == [0] * (shape[0] // 2) + [1] * (shape[0] // 2)


def test_a_tensor_axis_over_slices_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        arranged(chips("TPU v5 lite", 2, 2, 1, slices=4), (2, 1, 8))
    assert str(error.value) == (
        "mesh is data=2 x fsdp=1 x tensor=8, and the devices are of 4 slices: those of a tensor "
        "axis must be of one; let mesh.data be a multiple of 4."
    )


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (MeshConfig(data=-1, fsdp=3), "data=-1 x fsdp=3 x tensor=1"),
        (MeshConfig(data=2, fsdp=2, tensor=1), "data=2 x fsdp=2 x tensor=1"),
        (MeshConfig(data=16), "data=16 x fsdp=1 x tensor=1"),
    ],
    ids=["does not divide", "too few", "too many"],
)
def test_sizes_that_do_not_make_up_the_devices_are_an_error(config: MeshConfig, sizes: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_mesh(config)
    assert str(error.value) == (
        f"mesh is {sizes}: it must make up the 8 devices there are; leave one axis at -1 to infer "
        "it. JAX_NUM_CPU_DEVICES sets how many a CPU is split into."
    )


@pytest.mark.parametrize(
    ("meshes", "rows", "cores", "count"),
    [
        ([MeshConfig()], [4], 2, 2),
        ([MeshConfig()], [16, 24], 64, 8),
        ([MeshConfig()], [3], 8, 1),
        ([MeshConfig(), MeshConfig(data=-1, fsdp=2)], [8], 7, 4),
        ([MeshConfig(data=1, fsdp=1, tensor=1)], [8], 8, 1),
        ([MeshConfig(data=2, fsdp=1, tensor=2)], [8], 8, 4),
        ([MeshConfig(data=2), MeshConfig(data=-1, fsdp=2)], [8], 8, 2),
        ([MeshConfig(data=2), MeshConfig(data=4)], [8], 8, 1),
    ],
)
def test_a_cpu_is_split_into_devices_that_the_settings_allow(
    meshes: list[MeshConfig], rows: list[int], cores: int, count: int
) -> None:
    assert cpu_device_count(meshes, rows, cores) == count


def test_shardings_of_batches() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert replicated(mesh).spec == PartitionSpec()
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
    assert batch_sharding(mesh, axis=1).spec == PartitionSpec(None, ("data", "fsdp"))
    assert is_main()


def _specs(tree: Any) -> dict[tuple[str, ...], tuple[Any, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(part.key for part in path): tuple(leaf.spec) for path, leaf in leaves}


def test_parameters_are_split_by_width_and_by_heads_mlp_and_vocabulary() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    axes = logical_axes(policy())
    training = _specs(param_shardings(mesh, policy(), axes))
    expected = {
        "embed": "fsdp",
        "vocab": "tensor",
        "heads": "tensor",
        "kv_heads": "tensor",
        "mlp": "tensor",
    }
    assert training == {path: tuple(expected.get(name) for name in AXES[path]) for path in training}
    # While sampling the width is whole and everything else as before.
    rollout = _specs(param_shardings(mesh, policy(), axes, fsdp=False))
    assert rollout == {
        path: tuple(None if axis == "fsdp" else axis for axis in spec)
        for path, spec in training.items()
    }


@pytest.mark.parametrize(
    ("sizes", "model", "vocab_size", "message"),
    [
        (
            (2, 1, 4),
            tiny.model(num_heads=4, num_kv_heads=2),
            VOCAB,
            "mesh.tensor is 4: it must divide model.num_kv_heads, 2; choose another mesh or model "
            "size.",
        ),
        (
            (1, 8, 1),
            tiny.model(d_model=12),
            VOCAB,
            "mesh.fsdp is 8: it must divide model.d_model, 12; choose another mesh or model size.",
        ),
        (
            (4, 1, 2),
            tiny.model(num_heads=4, num_kv_heads=2),
            21,
            "mesh.tensor is 2: it must divide the rows of the embedding (model.vocab_size, or else "
            "the pieces of the tokenizer), 21; choose another mesh or model size.",
        ),
        (
            (1, 2, 4),
            tiny.model(d_model=13, num_heads=6, num_kv_heads=3, mlp_dim=22),
            VOCAB,
            "mesh.fsdp is 2: it must divide model.d_model, 13; mesh.tensor is 4: it must divide "
            "model.num_heads, 6, and model.num_kv_heads, 3, and model.mlp_dim, 22; choose another "
            "mesh or model size.",
        ),
    ],
    ids=["heads", "width", "vocabulary", "all at once"],
)
def test_dimensions_that_cannot_be_split_are_one_error(
    sizes: tuple[int, int, int], model: Any, vocab_size: int, message: str
) -> None:
    shapes = transformer.abstract_params(config=model, vocab_size=vocab_size)
    with pytest.raises(ConfigError) as error:
        param_shardings(make_mesh(MeshConfig(*sizes)), shapes, logical_axes(shapes))
    assert str(error.value) == message


def test_every_axis_that_is_split_has_a_setting() -> None:
    assert set(SETTINGS) == {name for name, axis in RULES.items() if axis is not None}
    assert {name for axes in AXES.values() for name in axes if name} == set(RULES)


@functools.cache
def _batch() -> PackedBatch:
    """Two micro-batches of packed rows, and one of padding."""
    generator = np.random.default_rng(0)
    sequences = [
        TrainingSequence(
            generator.integers(VOCAB, size=generator.integers(1, 9)).tolist(),
            generator.integers(VOCAB, size=generator.integers(1, 9)).tolist(),
            weight=float(generator.uniform(0.2, 1.0)),
            kl_weight=0.1,
        )
        for _ in range(20)
    ]
    batch = pack(sequences, row_length=16, rows_per_microbatch=8, max_microbatches=3)
    assert batch.num_microbatches == 2
    return batch


def _gradients(
    params: Params, reference: Params, batch: PackedBatch, mesh: Mesh | None = None
) -> Any:
    return gradients(
        params, reference, batch, jnp.float32(0.9),
        config=MODEL, terms=Terms(kl_coefficient=0.1), chunk=48, mesh=mesh,
    )  # fmt: skip


@pytest.mark.slow
def test_data_parallel_gradients_meet_once() -> None:
    """After the loop over micro-batches: in none of its steps does a device wait for another."""
    mesh = make_mesh(MeshConfig(data=8))
    rows = batch_sharding(mesh, axis=1)
    batch = PackedBatch(
        *(jax.device_put(leaf, rows if np.ndim(leaf) else replicated(mesh)) for leaf in _batch())
    )
    params = jax.device_put(policy(), replicated(mesh))
    lowered = jax.jit(functools.partial(_gradients, mesh=mesh)).lower(params, params, batch)
    program = lowered.compile().as_text()
    main = program[program.index("\nENTRY ") :]
    assert re.search(r" all-reduce(-start)?\(", main)
    assert len(re.findall(r" all-reduce(?:-start)?\(", program)) == len(
        re.findall(r" all-reduce(?:-start)?\(", main)
    )


@pytest.mark.slow
def test_fsdp_gathers_weights_and_leaves_activations_where_they_are() -> None:
    """What moves is the size of a layer's weights, of an embedding, or a sum of scalars."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    layout = param_shardings(mesh, policy(), logical_axes(policy()))
    params = jax.device_put(policy(), layout)
    rows = batch_sharding(mesh, axis=1)
    batch = PackedBatch(
        *(jax.device_put(leaf, rows if np.ndim(leaf) else replicated(mesh)) for leaf in _batch())
    )
    lowered = jax.jit(functools.partial(_gradients, mesh=mesh)).lower(params, params, batch)
    program = lowered.compile().as_text()
    exchanges = r"= \(?f32\[([\d,]*)\]\S* (?:all-|reduce-scatter|collective-permute)"
    shapes = re.findall(exchanges, program)
    sizes = {math.prod(int(size) for size in shape.split(",") if size) for shape in shapes}
    weights = {leaf.size // MODEL.num_layers for leaf in jax.tree.leaves(policy()["blocks"])}
    weights |= {policy()[name].size for name in ("embedding", "unembedding")}
    assert len(sizes) > 2
    assert sizes <= weights | {1}


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 8, 1), (2, 4, 1)], ids=str)
def test_no_device_is_brought_activations_of_all_rows(sizes: tuple[int, int, int]) -> None:
    """Looking up tokens in a table split both ways, above all: the rows of others stay there."""
    model = tiny.model(d_model=64, num_heads=8, num_kv_heads=4, head_dim=16, mlp_dim=160)
    mesh, vocab_size, rows, slots = make_mesh(MeshConfig(*sizes)), 4096, 16, 32
    shapes = transformer.abstract_params(config=model, vocab_size=vocab_size)
    layout = param_shardings(mesh, shapes, logical_axes(shapes))

    def array(shape: tuple[int, ...], dtype: Any, where: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    params = jax.tree.map(lambda leaf, at: array(leaf.shape, leaf.dtype, at), shapes, layout)
    types = [*[jnp.int32] * 4, *[jnp.float32] * 3]
    split, whole = batch_sharding(mesh, axis=1), replicated(mesh)
    batch = PackedBatch(
        *(array((2, rows, slots), dtype, split) for dtype in types), array((), jnp.int32, whole)
    )
    found = jax.jit(
        functools.partial(gradients, config=model, terms=Terms(), chunk=64, mesh=mesh)
    ).lower(params, None, batch, array((), jnp.float32, whole))
    program = found.compile().as_text()
    moving = r"= (.*?) (?:all-|reduce-scatter|collective-permute)[a-z-]*\("
    results = [re.findall(r"f32\[([\d,]*)\]", line) for line in re.findall(moving, program)]
    sizes_moved = {
        math.prod(int(size) for size in shape.split(",") if size)
        for shapes_moved in results
        for shape in shapes_moved
    }
    # Weights are gathered, and their gradients summed, at most whole but for the tensor axis.
    weights = {leaf.size // model.num_layers for leaf in jax.tree.leaves(shapes["blocks"])}
    weights |= {vocab_size * model.d_model}
    weights |= {
        size // part for size in weights for part in (sizes[1], sizes[2], sizes[1] * sizes[2])
    }
    own = rows * slots // batch_size_divisor(mesh) * model.d_model
    assert max(sizes_moved) > own
    assert all(size in weights or size <= own for size in sizes_moved), sizes_moved - weights


@functools.cache
def _compiled_decode(sizes: tuple[int, int, int], *, fsdp: bool, num_slots: int = 0) -> str:
    """The decode loop of 8 questions, 3 samples each and 7 new tokens, as each device runs it."""
    mesh = make_mesh(MeshConfig(*sizes))
    layout = param_shardings(mesh, policy(), logical_axes(policy()), fsdp=fsdp)
    params = sampler._unstack(jax.device_put(policy(), layout))
    prompts = jax.device_put(
        Prompts(jnp.ones((8, 5), jnp.int32), jnp.full((8,), 5), jnp.arange(8)),
        batch_sharding(mesh),
    )
    root, step, temperature = jax.device_put(
        (run_key(seed=0, purpose=Purpose.ROLLOUT), np.int32(0), np.float32(1)), replicated(mesh)
    )
    limits = jax.device_put(np.full((8, 3), 7, np.int32), batch_sharding(mesh))
    shape = sampler.slots_shape(8 // batch_size_divisor(mesh), 3, num_slots)
    store, slots = sampler.start(
        params, prompts, limits, root, step,
        mesh=mesh, config=MODEL, shape=shape, ring=7, max_new_tokens=7,
    )  # fmt: skip
    lowered = sampler.decode.lower(
        params, store, slots, temperature, step,
        mesh=mesh, config=MODEL, prompt_width=5, eos_ids=(2,), greedy=False,
    )  # fmt: skip
    return lowered.compile().as_text()


def _moved(program: str) -> list[int]:
    """Elements each collective brings to a device, sums of partial results left out."""
    moving = r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)(?:-start)?\("
    shapes = re.findall(moving, program)
    return [math.prod(int(size) for size in shape.split(",") if size) for shape in shapes]


@pytest.mark.slow
@pytest.mark.parametrize("num_slots", [0, 4])
@pytest.mark.parametrize("sizes", [(2, 4, 1), (2, 2, 2)], ids=lambda s: "x".join(map(str, s)))
def test_decoding_moves_no_weights_in_the_layout_of_a_rollout(
    sizes: tuple[int, int, int], num_slots: int
) -> None:
    """Promise 7. Tensor parallelism sums activations, and picks tokens from the devices' parts."""
    program = _compiled_decode(sizes, fsdp=False, num_slots=num_slots)
    data, tensor = sizes[0] * sizes[1], sizes[2]
    slots = min(num_slots or 24, 24 // data)
    # Of each slot at most the sums of 8 parts of the vocabulary, and one part's block of tokens.
    assert all(moved <= slots * 8 * tensor for moved in _moved(program)), _moved(program)
    if tensor == 1:
        assert not _moved(program)
    # In the layout of training far more would move: the search above does find it.
    smallest = min(leaf.size for leaf in jax.tree.leaves(policy()["blocks"]) if leaf.ndim > 2)
    trained = _moved(_compiled_decode(sizes, fsdp=True, num_slots=num_slots))
    assert max(trained) >= smallest // MODEL.num_layers // tensor


@pytest.mark.slow
@pytest.mark.parametrize(("num_slots", "slots"), [(0, 6), (3, 3)])
def test_each_device_has_its_own_slots_and_heads_and_writes_them_in_place(
    num_slots: int, slots: int
) -> None:
    program = _compiled_decode((2, 2, 2), fsdp=False, num_slots=num_slots)
    # [slots, K, H, T] of the shard: 2 heads of 4, and all 6 slots or 3 that are refilled.
    cache = f"f32[{slots},2,8,7]"
    assert cache in program
    for whole in (f"f32[{4 * slots},4,8,7]", f"f32[{slots},4,8,7]"):
        assert whole not in program
    assert "input_output_alias" in program
    copies = re.findall(rf"= {re.escape(cache)}\S* copy\(", program)
    assert not copies, copies
