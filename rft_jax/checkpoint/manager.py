"""Saving and restoring the whole state of the loop with Orbax: asynchronous and atomic."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from rft_jax.checkpoint import integrity as health
from rft_jax.checkpoint.clock import kept
from rft_jax.config import CheckpointConfig
from rft_jax.distributed.collectives import is_main
from rft_jax.errors import CheckpointError
from rft_jax.io.paths import Folder
from rft_jax.types import Params, TrainState


class Saved(NamedTuple):
    """What a checkpoint holds. host: JSON facts of the loop (stream position, counters); beside:
    further trees of arrays by their name, which only some methods have."""

    state: TrainState
    host: dict[str, Any]
    beside: Mapping[str, Any] = {}


class Checkpoints(ocp.CheckpointManager):
    """Orbax's manager for one run: it keeps what `config` says, and before a checkpoint counts as
    finished, its record is in it (rft_jax/checkpoint/integrity.py)."""

    def __init__(self, folder: epath.Path, config: CheckpointConfig) -> None:
        self.accuracies = health.accuracies(folder, config.measure)
        """By step; with those of earlier processes, so that the best stay the best."""
        self.writing: tuple[int, float | None] = (0, None)
        """Step and accuracy of the last checkpoint begun."""
        self._folder, self._config = folder, config
        options = ocp.CheckpointManagerOptions(
            create=True,
            cleanup_tmp_directories=True,
            preservation_policy=self,
            # Process 0 calls it when all have written, before the folder gets its final name.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._record),
        )
        super().__init__(folder, options=options)

    def should_preserve(
        self,
        checkpoints: Sequence[Any],
        *,
        context: ocp.checkpoint_managers.PreservationContext,
    ) -> list[bool]:
        """Which checkpoints stay, as Orbax asks a preservation policy."""
        chosen = kept([one.step for one in checkpoints], self.accuracies, self._config)
        return [one.step in chosen for one in checkpoints]

    def _record(self) -> None:
        step, accuracy = self.writing
        unfinished = f"{step}{ocp.path.atomicity.TMP_DIR_SUFFIX}"  # in a bucket, its final name
        (path,) = (
            one
            for one in self._folder.iterdir()
            if one.name == str(step) or one.name.startswith(unfinished)
        )
        health.write_record(path, accuracy, step, self._config.measure)


@contextlib.contextmanager
def open_manager(folder: Folder, config: CheckpointConfig) -> Iterator[Checkpoints]:
    """The checkpoints of one run, in `folder`; leaving the context waits for running saves."""
    # Orbax says each save and restore in several lines; the loop says it once.
    logging.getLogger("absl").setLevel(logging.WARNING)
    manager = Checkpoints(health.absolute(folder), config)
    try:
        yield manager
    finally:
        manager.close()


def save(manager: Checkpoints, step: int, saved: Saved, accuracy: float | None = None) -> None:
    """Start saving; the arrays are copied before this returns, the writing continues behind it.

    Parameters stand apart from the optimizer's state, so that another run can start from them.

    Args:
        step: the updates made so far, the checkpoint's name.
        accuracy: on validation, of these parameters, by checkpoint.measure; None when they were not
            evaluated.
    """
    manager.wait_until_finished()  # with the checkpoint before, whose record is of its own step
    manager.writing = (step, accuracy)
    if accuracy is not None and math.isfinite(accuracy):
        manager.accuracies[step] = accuracy
    begun = manager.save(
        step,
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(saved.state.params),
            training=ocp.args.StandardSave(saved.state._replace(params=None)._asdict()),
            host=ocp.args.JsonSave(saved.host),
            **{name: ocp.args.StandardSave(tree) for name, tree in saved.beside.items()},
        ),
    )
    if not begun:
        raise CheckpointError(
            f"{manager.directory}: step {step} is not saved, since there is a checkpoint of step "
            f"{manager.latest_step()}: remove what is newer than the step to resume from."
        )


@contextlib.contextmanager
def _reading(path: epath.Path) -> Iterator[None]:
    """Makes what Orbax raises for a damaged checkpoint, of many types, one CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise _refusal(path, f"cannot be read ({reason})") from error


def _refusal(path: epath.Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: this checkpoint {what}; remove that folder to resume from the one before it, or "
        "start over with another --workdir."
    )


def _check_whole(path: epath.Path, part: str = "") -> None:
    """CheckpointError for a damaged checkpoint; one process reads its files for all."""
    reason = health.problem(path, part, contents=is_main())
    if reason is not None:
        raise _refusal(path, f"is damaged ({reason})")


def _check_shapes(path: epath.Path, like: Params) -> None:
    """CheckpointError when the parameters saved in `path` have other names or shapes than `like`.

    Orbax finds this too, but only amid reading, in many words and only for the first array.
    """
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        tree = handler.metadata(path / "params").tree
    saved, wanted = _shapes(tree), _shapes(like)
    for name in sorted(saved | wanted):
        shape, expected = saved.get(name, "missing"), wanted.get(name, "none")
        if shape != expected:
            raise CheckpointError(
                f"{path}: parameter {name} is {shape} in this checkpoint and {expected} under "
                "model.* and the tokenizer of this run: use the settings it was made with, or "
                "another checkpoint."
            )


def _shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {".".join(str(part.key) for part in path): leaf.shape for path, leaf in leaves}


def restore(
    manager: Checkpoints,
    like: TrainState,
    step: int | None = None,
    beside: Mapping[str, Any] | None = None,
) -> tuple[int, Saved] | None:
    """A checkpoint and its step; None when there is none.

    Args:
        like: arrays or ShapeDtypeStructs with shardings, on any mesh, that say how it is laid out.
        step: one that integrity.recover found whole, the same in every process; None for the
            newest, which is checked.
        beside: likewise, of what else the checkpoint holds.

    Raises CheckpointError when it is damaged or of another shape.
    """
    newest = manager.latest_step() if step is None else step
    if newest is None:
        return None
    path, beside = health.absolute(manager.directory) / str(newest), beside or {}
    if step is None:
        _check_whole(path)
    with _reading(path):
        _check_shapes(path, like.params)
        read = manager.restore(
            newest,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(like.params),
                training=ocp.args.StandardRestore(like._replace(params=None)._asdict()),
                host=ocp.args.JsonRestore(),
                **{name: ocp.args.StandardRestore(tree) for name, tree in beside.items()},
            ),
        )
    state = TrainState(**read["training"] | {"params": read["params"]})
    return newest, Saved(state, read["host"], {name: read[name] for name in beside})


def restore_params(folder: Folder, like: Params, step: int | None = None) -> Params:
    """The parameters of a checkpoint. Changes nothing in `folder`.

    Args:
        like: ShapeDtypeStructs with shardings, on any mesh: the layout, and the types to round to.
        step: of the checkpoint, None for the newest.

    Raises CheckpointError when there is no such checkpoint, when it is damaged or of another shape
    (another one never takes its place), or when the run at work there deletes it meanwhile.
    """
    folder = health.absolute(folder)
    if step is None:
        step = max(health.steps(folder), default=0)
    path = folder / str(step)
    _check_kept(path)
    try:
        _check_whole(path, "params")
        with _reading(path):
            _check_shapes(path, like)
            with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
                return handler.restore(path / "params", args=ocp.args.StandardRestore(like))
    except CheckpointError:
        # One that a newer one stands beside may be amid its deletion, file by file.
        for _ in range(10):
            if step != max(_check_kept(path)):
                time.sleep(0.1)
        raise


def _check_kept(path: epath.Path) -> list[int]:
    """The steps that have a checkpoint beside `path`; CheckpointError where it is none of them."""
    steps, step = health.steps(path.parent), int(path.name)
    if not steps:
        raise CheckpointError(f"{path.parent}: no checkpoint here; finish the run that makes it.")
    if step not in steps:
        kept = ", ".join(map(str, steps))
        raise CheckpointError(
            f"{path.parent}: no checkpoint of step {step} is kept here, but {kept}: name another, "
            "or have the run keep more (checkpoint.keep, checkpoint.keep_best)."
        )
    return steps
