"""Checkpoints: whole or not there, with the same bits on any mesh, and clear when damaged."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from rft_jax import checkpoint
from rft_jax.batches import TrainState
from rft_jax.checkpoint import CheckpointError, Saved
from rft_jax.config import CheckpointConfig, MeshConfig
from rft_jax.parallel.mesh import make_mesh, param_shardings, replicated

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
    return checkpoint.abstract(shapes, layout(mesh or make_mesh(MeshConfig())))


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
        rf"{tmp_path}/4: this checkpoint cannot be read \(.+\); remove that folder to go on from "
        "the one before it, or start over with another --workdir.",
        refusal(tmp_path),
    )
    shutil.rmtree(tmp_path / "4")
    found = restore(tmp_path)
    assert found is not None
    assert found[0] == 2


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 2)
    (tmp_path / "4").mkdir()
    assert refusal(tmp_path).startswith(f"{tmp_path}/4: this checkpoint cannot be read (")
    with pytest.raises(CheckpointError, match=f"{tmp_path}/4: this checkpoint cannot be read"):
        checkpoint.restore_params(tmp_path, like().params)


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    save(tmp_path, 2)
    files = [file for file in (tmp_path / "2/params").rglob("d/*") if file.is_file()]
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:-9])
    assert refusal(tmp_path).startswith(f"{tmp_path}/2: this checkpoint cannot be read (")


def with_params(change: Any) -> TrainState:
    wanted = like()
    return wanted._replace(params=change(dict(wanted.params)))


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
