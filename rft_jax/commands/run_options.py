"""What `rft-jax run` and `rft-jax tokenizer` take after EXPERIMENT. Imports no jax."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rft_jax.config import Config
from rft_jax.config.experiment import Option, parse_options
from rft_jax.config.steps import Steps, parse_steps
from rft_jax.distributed.watchdog import Limits
from rft_jax.errors import ConfigError
from rft_jax.io.paths import Folder, folder_of

OWN = ("--workdir", "--only", "--profile", "--lost-after", "--stalled-after")
"""Options of run that are no fields of its runs."""


class RunOptions(NamedTuple):
    """only: runs to carry out, empty for all; profile: steps to trace; limits: of the processes of
    a job; rest: the options that are fields of runs."""

    workdir: Folder
    only: tuple[str, ...]
    profile: Steps | None
    limits: Limits
    rest: tuple[Option, ...]


def read(experiment: Path, args: Sequence[str], *, of_run: bool) -> RunOptions:
    """The options in `args`; ConfigError for values that they do not take.

    of_run: whether all of OWN are among them, or --workdir alone and others are left in `rest`.
    """
    workdir: Folder = Path("runs") / experiment.stem
    selected: tuple[str, ...] = ()
    profile: Steps | None = None
    limits = Limits()
    rest: list[Option] = []
    for option in parse_options(args):
        if option.name == "workdir":
            if len(option.values) != 1 or not option.values[0]:
                found = " ".join(option.values) or "none"
                raise ConfigError(f"--workdir takes one folder, found {found}.")
            workdir = folder_of(option.values[0])
        elif option.name == "only" and of_run:
            if not option.values:
                raise ConfigError("--only takes the names of runs, found none.")
            selected = (*selected, *option.values)
        elif option.name == "profile" and of_run:
            if profile is not None:
                raise ConfigError("--profile is given twice: give it once.")
            profile = parse_steps(option.values)
        elif option.name in ("lost_after", "stalled_after") and of_run:
            limits = replace(limits, **{option.name: _seconds(option)})
        else:
            rest.append(option)
    return RunOptions(workdir, selected, profile, limits, tuple(rest))


def _seconds(option: Option) -> float:
    found = " ".join(option.values)
    if not re.fullmatch(r"[0-9]{1,7}(\.[0-9]+)?", found) or not float(found):
        name = option.name.replace("_", "-")
        raise ConfigError(f"--{name} takes a number of seconds above 0, found {found or 'none'}.")
    return float(found)


def check_profile(
    profile: Steps | None, experiment: Mapping[str, Config], selected: Sequence[str]
) -> None:
    """ConfigError when one of the selected runs has fewer steps than are to be traced."""
    if profile is None:
        return
    for name in selected:
        steps = experiment[name].steps
        if profile.last > steps:
            raise ConfigError(
                f"--profile is {str(profile)!r} and run {name} ends with step {steps}: name steps "
                "that it has, or leave the run out (--only)."
            )
