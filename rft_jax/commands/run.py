"""`rft-jax run` and `rft_jax.run`: the runs of an experiment one after another, in one process or a
job of several. jax is imported once there is something to compute.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rft_jax.checkpoint.policy import ended_by, is_finished
from rft_jax.checkpoint.provenance import check_same_config
from rft_jax.commands import report as reports
from rft_jax.config import Config
from rft_jax.config import experiment as experiments
from rft_jax.config.run import Experiment
from rft_jax.config.steps import Steps
from rft_jax.distributed.watchdog import Limits
from rft_jax.errors import ConfigError, suggest_or_list
from rft_jax.io.drafts import remove_dead
from rft_jax.io.jsonl import parse
from rft_jax.io.lock import held
from rft_jax.io.paths import (
    Folder,
    folder_of,
    in_bucket,
    make,
    storing,
    write_atomically,
    writing,
)

if TYPE_CHECKING:
    from rft_jax.runs.run import RunResult

UNNAMED = "a mapping"
"""Name of an experiment that is no file."""

logger = logging.getLogger(__name__)


def run(
    experiment: str | PathLike[str] | Experiment,
    workdir: str | PathLike[str],
    only: str | Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    accept_changed: bool = False,
) -> dict[str, RunResult]:
    """Carry out the runs of an experiment, or resume them, and write the report.

    Args:
        experiment: path of an experiment file, or named Configs in their order.
        workdir: folder, or gs://BUCKET/FOLDER, where everything is written.
        only: runs to carry out, empty for all.
        options: values by `RUN.field`, `RUN.section.field` or `all.field` that replace the
            experiment's, such as {"all.steps": 10, "sft.seed": 3}.
        accept_changed: resume on data, a tokenizer, a start or code of other content than before;
            each is recorded.

    Returns: each run's result; a run that a signal stopped is the last, and not finished.

    Raises UserError for whatever a user can fix, before the first step where that can be known.
    """
    if isinstance(experiment, Mapping):
        experiments.check(experiment)
        configs, name = dict(experiment), UNNAMED
    else:
        configs, name = experiments.load(Path(experiment)), Path(experiment).name
    configs = experiments.override(configs, options or {})
    only = (only,) if isinstance(only, str) else only
    workdir = folder_of(workdir)
    return carry_out(configs, name, workdir, only, accept_changed=accept_changed)


def carry_out(
    experiment: Experiment,
    name: str,
    workdir: Folder,
    only: Sequence[str] = (),
    profile: Steps | None = None,
    limits: Limits | None = None,
    show: Callable[[str], None] | None = None,
    accept_changed: bool = False,
) -> dict[str, RunResult]:
    """What `run` does, in a job of one or more processes.

    Args:
        name: of the experiment, which WORKDIR/experiment.json keeps.
        profile: steps to trace.
        limits: of the job's processes; None for the default ones.
        show: given the report's tables by the process that writes it.
        accept_changed: as in `run`.
    """
    chosen = select(experiment, only)
    _check_profile(profile, experiment, chosen)
    _claim(workdir, name)
    for each in chosen:
        check_same_config(workdir / each, experiment[each])

    import_jax()
    from rft_jax.distributed.collectives import by_main
    from rft_jax.distributed.mesh import found_devices, make_mesh
    from rft_jax.distributed.process import joined, keep_programs, split_cpu
    from rft_jax.runs import run as runs
    from rft_jax.runs import setup

    keep_programs()
    split_cpu(
        [experiment[each].mesh for each in chosen],
        [experiment[each].update.rows_per_microbatch for each in chosen],
    )
    results: dict[str, RunResult] = {}
    with (
        joined(limits or Limits()) as at,
        storing(workdir),
        contextlib.ExitStack() as stack,
    ):
        found_devices()
        for each in chosen:  # before the first of them takes its hours
            if not is_finished(workdir / each, experiment[each]):
                setup.check_devices(experiment[each], make_mesh(experiment[each].mesh))
        by_main("the workdir", lambda: stack.enter_context(_own(workdir, experiment, chosen)))
        by_main("experiment.json", lambda: _save_experiment(workdir, name, experiment))
        for each in chosen:
            results[each] = runs.run(
                each, experiment, workdir, profile, at, accept_changed=accept_changed
            )
            if not results[each].finished:
                return results
            if results[each].steps_done == 0:
                alarm = ended_by(workdir / each)
                logger.info("%s: already finished%s", each, alarm and f", by alarm {alarm}")
        by_main("report", lambda: reports.write(workdir, show))
    return results


def import_jax() -> None:
    """ConfigError when jax refuses a variable of the environment."""
    try:
        importlib.import_module("jax")
    except ValueError as error:
        raise ConfigError(f"a variable of the environment is wrong: {error}.") from error


def train_tokenizer(path: Path, experiment: Experiment, workdir: Folder) -> int:
    """Train WORKDIR/tokenizer.model, unless it is there; returns its number of pieces."""
    training = [config for config in experiment.values() if not config.tokenizer.path]
    if not training:
        raise ConfigError(f"{path}: every run loads its tokenizer.path: there is none to train.")
    _claim(workdir, path.name)
    import_jax()
    from rft_jax.runs.setup import ensure_tokenizer

    return ensure_tokenizer(training[0], workdir).vocab_size


def select(experiment: Mapping[str, Config], only: Sequence[str]) -> list[str]:
    """The runs that `only` names, or all, in the experiment's order."""
    for name in only:
        if name not in experiment:
            end = suggest_or_list(name, experiment)
            raise ConfigError(f"only names {name!r}, which is no run{end}")
    return [name for name in experiment if not only or name in only]


def _check_profile(profile: Steps | None, experiment: Experiment, chosen: Sequence[str]) -> None:
    """ConfigError when one of the chosen runs has fewer steps than are to be traced."""
    for name in chosen if profile else ():
        assert profile is not None
        steps = experiment[name].steps
        if profile.last > steps:
            raise ConfigError(
                f"profile is {str(profile)!r} and run {name} ends with step {steps}: name steps "
                "that it has, or leave the run out (--only)."
            )


def _claim(workdir: Folder, name: str) -> None:
    """ConfigError when the workdir cannot be this experiment's."""
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir {workdir} is a file: a folder is expected.")
    saved = workdir / "experiment.json"
    if not saved.exists():
        return
    try:
        held = parse(saved.read_bytes())["experiment"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{saved} is damaged: remove it or use another --workdir.") from error
    if held != name:
        raise ConfigError(f"{workdir} holds experiment {held}, not {name}: use another --workdir.")


@contextlib.contextmanager
def _own(workdir: Folder, experiment: Experiment, chosen: Sequence[str]) -> Iterator[None]:
    """Hold the runs that are not finished, and remove what killed processes left. What all runs
    share appears whole, so jobs with other runs may work beside this one."""
    locks = [
        workdir / f"{run}.lock"
        for run in chosen
        # The lock of a finished one is a killed job's, which went on to others, or is in use.
        if not is_finished(workdir / run, experiment[run]) or (workdir / f"{run}.lock").exists()
    ]
    with contextlib.ExitStack() as stack:
        with writing(workdir):
            make(workdir)
            stack.enter_context(held(locks, logger.warning))
        if not in_bucket(workdir):
            for folder in (workdir, workdir / "plots"):
                remove_dead(Path(folder))
            for each in chosen:
                remove_dead(Path(workdir / each), "**/*.tmp")
        yield


def _save_experiment(workdir: Folder, name: str, experiment: Experiment) -> None:
    """WORKDIR/experiment.json: the experiment's name and the runs in order."""
    content = {"experiment": name, "runs": list(experiment)}
    with writing(workdir):
        write_atomically(workdir / "experiment.json", json.dumps(content, indent=2) + "\n")
