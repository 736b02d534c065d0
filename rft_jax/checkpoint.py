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


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Makes what Orbax raises for a damaged checkpoint, of many types, one CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise CheckpointError(
            f"{path}: this checkpoint cannot be read ({type(error).__name__}: {reason[:200]}); "
            "remove that folder to go on from the one before it, or start over with another "
            "--workdir."
        ) from error


def _check_shapes(path: Path, like: Params) -> None:
    """CheckpointError when the parameters saved in `path` have other names or shapes than `like`.

    Orbax finds this too, but only amid reading, in many words and for the first array alone.
    """
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        tree = handler.metadata(path / "params").tree
    saved, wanted = _shapes(tree), _shapes(like)
    for name in sorted(saved | wanted):
        found, expected = saved.get(name, "missing"), wanted.get(name, "none")
        if found != expected:
            raise CheckpointError(
                f"{path}: parameter {name} is {found} in this checkpoint and {expected} under "
                "model.* and the tokenizer of this run: use the settings it was made with, or "
                "another checkpoint."
            )


def _shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {".".join(str(part.key) for part in path): leaf.shape for path, leaf in leaves}


def restore(manager: ocp.CheckpointManager, like: TrainState) -> tuple[int, Saved] | None:
    """The newest checkpoint and its step, laid out as `like` (arrays or ShapeDtypeStructs with
    shardings); None when there is none.

    Raises CheckpointError when it is damaged or of another shape.
    """
    step = manager.latest_step()
    if step is None:
        return None
    path = Path(manager.directory) / str(step)
    with _reading(path):
        _check_shapes(path, like.params)
        read = manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(like.params),
                training=ocp.args.StandardRestore(like._replace(params=None)._asdict()),
                host=ocp.args.JsonRestore(),
            ),
        )
    state = TrainState(
        step=read["training"]["step"],
        params=read["params"],
        optimizer=read["training"]["optimizer"],
    )
    return step, Saved(state, read["host"])


def restore_params(folder: Path, like: Params) -> Params:
    """The parameters of the newest checkpoint in `folder`, laid out as `like`.

    Changes nothing in `folder`. Raises CheckpointError when there is no checkpoint, or when it is
    damaged or of another shape.
    """
    folder = folder.absolute()
    steps = ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []
    if not steps:
        raise CheckpointError(f"{folder}: no checkpoint here; finish the run that makes it.")
    path = folder / str(max(steps))
    with _reading(path):
        _check_shapes(path, like)
        with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
            return handler.restore(path / "params", args=ocp.args.StandardRestore(like))


def abstract(tree: Any, shardings: Any) -> Any:
    """`tree`'s shapes and types with `shardings`: what restore is told to produce."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )
