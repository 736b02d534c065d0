"""Saving and restoring the whole state of the loop with Orbax: asynchronous, atomic, keep-N."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from rft_jax.batches import Params, TrainState
from rft_jax.config import CheckpointConfig


class CheckpointError(ValueError):
    """A checkpoint is missing or cannot be read; the message names it and the remedy."""


class Saved(NamedTuple):
    """What a checkpoint holds. host: JSON facts of the loop (stream position, counters)."""

    state: TrainState
    host: dict[str, Any]


@contextlib.contextmanager
def open_manager(folder: Path, config: CheckpointConfig) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints of one run, in `folder`; leaving the context waits for running saves."""
    # Orbax says each save and restore in several lines; the loop says it once.
    logging.getLogger("absl").setLevel(logging.WARNING)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=config.keep, create=True, cleanup_tmp_directories=True
    )
    manager = ocp.CheckpointManager(folder.absolute(), options=options)
    try:
        yield manager
    finally:
        manager.close()


def save(manager: ocp.CheckpointManager, step: int, saved: Saved) -> None:
    """Start saving; the arrays are copied before this returns, the writing goes on behind it.

    Parameters stand apart from the optimizer's state, so that another run can start from them.
    """
    manager.save(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(saved.state.params),
            training=ocp.args.StandardSave(saved.state._replace(params=None)._asdict()),
            host=ocp.args.JsonSave(saved.host),
        ),
    )


def _read(folder: Path, step: int, manager: ocp.CheckpointManager, **items: Any) -> Any:
    try:
        return manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax raises many types for damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise CheckpointError(
            f"{folder / str(step)}: this checkpoint cannot be read ({type(error).__name__}: "
            f"{reason[:200]}); remove that folder to go on from the one before it, or start over "
            "with another --workdir."
        ) from error


def restore(manager: ocp.CheckpointManager, like: TrainState) -> tuple[int, Saved] | None:
    """The newest checkpoint and its step, laid out as `like` (arrays or ShapeDtypeStructs with
    shardings); None when there is none.

    Raises CheckpointError when it is damaged or of another shape.
    """
    step = manager.latest_step()
    if step is None:
        return None
    folder = Path(manager.directory)
    read = _read(
        folder,
        step,
        manager,
        params=ocp.args.StandardRestore(like.params),
        training=ocp.args.StandardRestore(like._replace(params=None)._asdict()),
        host=ocp.args.JsonRestore(),
    )
    state = TrainState(
        step=read["training"]["step"],
        params=read["params"],
        optimizer=read["training"]["optimizer"],
    )
    return step, Saved(state, read["host"])


def restore_params(folder: Path, like: Params) -> Params:
    """The parameters of the newest checkpoint in `folder`, laid out as `like`.

    Raises CheckpointError when there is none, or when it is damaged or of another shape.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no checkpoints here; finish the run that makes them.")
    with open_manager(folder, CheckpointConfig(keep=10**6)) as manager:
        step = manager.latest_step()
        if step is None:
            raise CheckpointError(f"{folder}: no checkpoint here; finish the run that makes it.")
        read = _read(folder, step, manager, params=ocp.args.StandardRestore(like))
    return read["params"]


def abstract(tree: Any, shardings: Any) -> Any:
    """`tree`'s shapes and types with `shardings`: what restore is told to produce."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )
