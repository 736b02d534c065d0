"""Checkpoints: whole or not there, with the same bits on any mesh, and clear when damaged."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import programs
import pytest
import tiny
from jax.sharding import Mesh

from rft_jax.checkpoint import integrity as checkpoint_health
from rft_jax.checkpoint import manager as checkpoint
from rft_jax.checkpoint.manager import Saved
from rft_jax.config import CheckpointConfig, MeshConfig, OptimizerConfig
from rft_jax.distributed.mesh import make_mesh, param_shardings, replicated
from rft_jax.distributed.shards import abstract
from rft_jax.errors import CheckpointError
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.state import make_layout
from rft_jax.types import TrainState

CONFIG = CheckpointConfig(keep=2)
HOST = {"position": {"epoch": 1, "index": 7}, "counters": {"seconds": 0.1}}
AXES = {"matrix": ("embed", "mlp"), "scale": (None,)}


def params(width: int = 16) -> dict[str, jax.Array]:
    return {
        "matrix": jnp.arange(width * 8, dtype=jnp.float32).reshape(width, 8) / 7,
        "scale": jnp.ones(3),
    }


def layout(mesh: Mesh) -> TrainState:
    """The shardings of `state`'s leaves."""
    whole, of_params = replicated(mesh), param_shardings(mesh, params(), AXES)
    return TrainState(whole, of_params, jax.tree.map(lambda _: whole, optax.sgd(1.0).init({})))  # type: ignore[arg-type]


def state(step: int = 3, mesh: Mesh | None = None) -> TrainState:
    made = TrainState(jnp.int32(step), params(), optax.sgd(1.0).init({}))
    return jax.device_put(made, layout(mesh or make_mesh(MeshConfig())))


def like(mesh: Mesh | None = None) -> TrainState:
    shapes = jax.eval_shape(lambda: TrainState(jnp.int32(0), params(), optax.sgd(1.0).init({})))
    return abstract(shapes, layout(mesh or make_mesh(MeshConfig())))


def save(folder: Path, *steps: int) -> None:
    """Checkpoints of these steps."""
    with checkpoint.open_manager(folder, CONFIG) as manager:
        for step in steps:
            checkpoint.save(manager, step, Saved(state(step), HOST))


def restore(folder: Path, wanted: TrainState | None = None) -> tuple[int, Saved] | None:
    with checkpoint.open_manager(folder, CONFIG) as manager:
        return checkpoint.restore(manager, like() if wanted is None else wanted)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refusal(folder: Path, wanted: TrainState | None = None) -> str:
    """The one line of the error that restoring from `folder` raises."""
    with pytest.raises(CheckpointError) as error:
        restore(folder, wanted)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_nothing_is_saved_yet(tmp_path: Path) -> None:
    assert restore(tmp_path / "new") is None


def test_a_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    save(tmp_path, 3)
    found = restore(tmp_path)
    assert found is not None
    step, saved = found
    assert step == 3
    assert saved.host == HOST
    assert jax.tree.structure(saved.state) == jax.tree.structure(state())
    for ours, theirs in zip(jax.tree.leaves(saved.state), jax.tree.leaves(state()), strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.sharding == theirs.sharding
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(2, 2, 2), MeshConfig(1, 8, 1)])
def test_another_mesh_goes_on(tmp_path: Path, mesh: MeshConfig) -> None:
    written = make_mesh(MeshConfig(data=4, fsdp=2))
    with checkpoint.open_manager(tmp_path, CONFIG) as manager:
        checkpoint.save(manager, 3, Saved(state(3, written), HOST))
    wanted = like(make_mesh(mesh))
    found = restore(tmp_path, wanted)
    assert found is not None
    restored = found[1].state
    assert restored.params["matrix"].sharding == wanted.params["matrix"].sharding
    np.testing.assert_array_equal(restored.params["matrix"], params()["matrix"])


def test_what_is_saved_may_be_overwritten_at_once(tmp_path: Path) -> None:
    """The update donates its state while the writing goes on."""
    change = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)
    with checkpoint.open_manager(tmp_path, CONFIG) as manager:
        current = state(3)
        checkpoint.save(manager, 3, Saved(current, HOST))
        for _ in range(5):
            current = change(current)
    found = restore(tmp_path)
    assert found is not None
    np.testing.assert_array_equal(found[1].state.params["matrix"], params()["matrix"])


def test_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 5, 9)
    assert names(tmp_path) == {"5", "9"}
    found = restore(tmp_path)
    assert found is not None
    assert found[0] == 9


def test_the_best_are_kept_too(tmp_path: Path) -> None:
    """Also by a process that was not there when they were saved."""
    config = CheckpointConfig(keep=1, keep_best=2)
    measured = {1: 0.5, 2: 0.7, 3: None, 4: 0.25, 5: 0.7, 6: 0.5, 7: float("nan")}
    found = []
    for step, accuracy in measured.items():
        with checkpoint.open_manager(tmp_path, config) as manager:
            checkpoint.save(manager, step, Saved(state(step), HOST), accuracy)
        found.append(checkpoint_health.steps(tmp_path))
    assert found == [[1], [1, 2], [1, 2, 3], [1, 2, 4], [2, 5], [2, 5, 6], [2, 5, 7]]
    assert checkpoint_health.accuracies(tmp_path) == {2: 0.7, 5: 0.7}
    assert checkpoint_health.best(tmp_path) == 5


def test_a_step_that_has_a_checkpoint_is_not_saved_in_silence(tmp_path: Path) -> None:
    save(tmp_path, 2, 4)
    for step in (3, 4):
        with pytest.raises(CheckpointError, match=f"step {step} is not saved, since there is a"):
            save(tmp_path, step)


def test_half_written_checkpoints_are_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 2)
    half = "4.orbax-checkpoint-tmp-1234"
    shutil.copytree(tmp_path / "2", tmp_path / half)
    (tmp_path / half / "params/_METADATA").unlink()
    found = restore(tmp_path)
    assert found is not None
    assert found[0] == 2
    save(tmp_path, 4)
    assert names(tmp_path) == {"2", "4"}  # what the killed attempt left is cleared away


def test_starting_from_a_run_changes_nothing_there(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "3.orbax-checkpoint-tmp-1234").mkdir()
    before = names(tmp_path)
    read = checkpoint.restore_params(tmp_path, like().params)
    np.testing.assert_array_equal(read["matrix"], params()["matrix"])
    assert names(tmp_path) == before


@pytest.mark.parametrize("item", ["params", "training", "host"])
def test_a_missing_part_is_named(tmp_path: Path, item: str) -> None:
    save(tmp_path, 2, 4)
    shutil.rmtree(tmp_path / "4" / item)
    assert re.fullmatch(
        rf"{tmp_path}/4: this checkpoint is damaged \({item}/.+ is missing\); remove that folder "
        "to resume from the one before it, or start over with another --workdir.",
        refusal(tmp_path),
    )
    shutil.rmtree(tmp_path / "4")
    found = restore(tmp_path)
    assert found is not None
    assert found[0] == 2


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 2)
    (tmp_path / "4").mkdir()
    said = f"{tmp_path}/4: this checkpoint is damaged (files.json is missing: it is half written)"
    assert refusal(tmp_path).startswith(said)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        checkpoint.restore_params(tmp_path, like().params)


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    save(tmp_path, 2)
    files = [file for file in (tmp_path / "2/params").rglob("d/*") if file.is_file()]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:-9])
    assert refusal(tmp_path).startswith(f"{tmp_path}/2: this checkpoint is damaged (params/")
    # What Orbax itself cannot read, whatever the record says, is one line as well.
    checkpoint_health.write_record(tmp_path / "2", None)
    assert refusal(tmp_path).startswith(f"{tmp_path}/2: this checkpoint cannot be read (")


def with_params(change: Any) -> TrainState:
    wanted = like()
    return wanted._replace(params=change(dict(wanted.params)))


def test_one_is_named_by_its_step(tmp_path: Path) -> None:
    with checkpoint.open_manager(tmp_path, CONFIG) as manager:
        for step, factor in ((2, 1), (4, 3)):
            scaled = jax.tree.map(lambda leaf, by=factor: leaf * by, params())
            saved = state(step)._replace(params=scaled)
            checkpoint.save(manager, step, Saved(saved, HOST | {"step": step}))
    for step, factor in ((2, 1), (4, 3), (None, 3)):
        read = checkpoint.restore_params(tmp_path, like().params, step)
        np.testing.assert_array_equal(read["matrix"], params()["matrix"] * factor)
    with checkpoint.open_manager(tmp_path, CONFIG) as manager:
        found = checkpoint.restore(manager, like(), 2)
    assert found is not None
    assert (found[0], found[1].host["step"]) == (2, 2)
    np.testing.assert_array_equal(found[1].state.params["matrix"], params()["matrix"])
    with pytest.raises(CheckpointError) as error:
        checkpoint.restore_params(tmp_path, like().params, 3)
    assert str(error.value) == (
        f"{tmp_path}: no checkpoint of step 3 is kept here, but 2, 4: name another, or have the "
        "run keep more (checkpoint.keep, checkpoint.keep_best)."
    )


def test_no_other_checkpoint_is_started_from(tmp_path: Path) -> None:
    """Nor does damage beside the parameters matter there."""
    save(tmp_path, 2, 4)
    shutil.rmtree(tmp_path / "4/training")
    checkpoint.restore_params(tmp_path, like().params)
    shutil.rmtree(tmp_path / "4/params/d")
    with pytest.raises(CheckpointError, match=f"^{tmp_path}/4: this checkpoint is damaged"):
        checkpoint.restore_params(tmp_path, like().params)
    assert names(tmp_path) == {"2", "4"}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_are_read_in_another_type(tmp_path: Path, dtype: Any) -> None:
    save(tmp_path, 2)
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding), like().params
    )
    read = checkpoint.restore_params(tmp_path, wanted)
    for name, leaf in params().items():
        assert read[name].dtype == dtype
        np.testing.assert_array_equal(read[name], leaf.astype(dtype))


def mesh_of(data: int, fsdp: int, tensor: int) -> Mesh:
    """Over the first devices, as few as it takes."""
    devices = np.asarray(jax.devices()[: data * fsdp * tensor])
    return Mesh(devices.reshape(data, fsdp, tensor), ("data", "fsdp", "tensor"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved_on", "read_on"),
    [
        ((8, 1, 1), (1, 1, 1)),
        ((1, 1, 1), (2, 2, 2)),
        ((2, 2, 2), (1, 4, 2)),
        ((1, 4, 2), (2, 1, 1)),
        ((2, 1, 2), (8, 1, 1)),
    ],
)
def test_the_whole_state_goes_on_anywhere(
    tmp_path: Path, saved_on: tuple[int, int, int], read_on: tuple[int, int, int]
) -> None:
    """With more devices or fewer, and the optimizer's moments as they were."""
    optimizer = make_optimizer(OptimizerConfig(first_moment_dtype="bfloat16"), 4)
    model = tiny.model(num_kv_heads=2)
    layouts = [make_layout(model, mesh_of(*sizes), optimizer, 16) for sizes in (saved_on, read_on)]
    rng = np.random.default_rng(0)

    def filled(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(rng.normal(size=leaf.shape).astype(leaf.dtype), leaf.sharding)

    made = jax.tree.map(filled, layouts[0].state)
    with checkpoint.open_manager(tmp_path, CONFIG) as manager:
        checkpoint.save(manager, 3, Saved(made, HOST))
    found = restore(tmp_path, layouts[1].state)
    assert found is not None
    assert jax.tree.structure(found[1].state) == jax.tree.structure(made)
    for ours, theirs, wanted in zip(
        *map(jax.tree.leaves, (found[1].state, made, layouts[1].state)), strict=True
    ):
        assert ours.sharding == wanted.sharding
        assert ours.dtype == theirs.dtype
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_other_shapes_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 2)
    whole = replicated(make_mesh(MeshConfig()))
    other = jax.ShapeDtypeStruct((24, 8), jnp.float32, sharding=whole)
    assert refusal(tmp_path, with_params(lambda tree: tree | {"matrix": other})) == (
        f"{tmp_path}/2: parameter matrix is (16, 8) in this checkpoint and (24, 8) under model.* "
        "and the tokenizer of this run: use the settings it was made with, or another checkpoint."
    )


def test_other_parameters_are_refused(tmp_path: Path) -> None:
    save(tmp_path, 2)
    more = with_params(lambda tree: tree | {"more": tree["scale"]})
    assert "parameter more is missing in this checkpoint and (3,) under" in refusal(tmp_path, more)
    fewer = with_params(lambda tree: {"matrix": tree["matrix"]})
    assert "parameter scale is (3,) in this checkpoint and none" in refusal(tmp_path, fewer)


def test_there_is_nothing_to_start_from(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError) as error:
            checkpoint.restore_params(folder, like().params)
        assert str(error.value) == f"{folder}: no checkpoint here; finish the run that makes it."


def test_orbax_is_quiet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    level = logging.getLogger("absl").level
    with caplog.at_level(logging.INFO):
        save(tmp_path, 1)
        restore(tmp_path)
        checkpoint.restore_params(tmp_path, like().params)
    logging.getLogger("absl").setLevel(level)
    assert caplog.messages == []


@pytest.mark.slow
def test_two_processes_go_on_alike(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    script = Path(__file__).parents[1] / "checkpoints_of_two_processes.py"
    environment = os.environ | {
        "XLA_FLAGS": programs.xla_flags(2),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    running = [
        subprocess.Popen(
            [sys.executable, script, address, str(number), tmp_path / "checkpoints"],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=240)[1] for process in running]
    finally:  # one that failed leaves the other waiting
        for process in running:
            process.kill()
            process.communicate()
    assert [process.returncode for process in running] == [0, 0], said
    assert names(tmp_path / "checkpoints") == {"2", "4", "damaged-4"}
    assert checkpoint_health.problem(tmp_path / "checkpoints/4") is None
