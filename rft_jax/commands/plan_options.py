"""What `rft-jax plan` takes after EXPERIMENT. Imports no jax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rft_jax.commands import typed_options
from rft_jax.config.experiment import Option, parse_options
from rft_jax.errors import ConfigError


@dataclass(frozen=True)
class PlanOptions:
    """Plan the runs of an experiment file without running them: memory, exchanges between devices
    and seconds of their programs, compiled from shapes only. Further options are fields of runs,
    as for rft-jax run: --RUN.section.field VALUE. The exit status is 1 if a run does not fit."""

    topology: str | None = None
    """Plan for a slice of TPUs by its compiler's name, such as v5e:4x4, with none at hand (needs
    libtpu). Default: the devices of this machine."""
    device: str | None = None
    """Plan for a number of chips, such as 8xh100 or t4, by counting only."""
    counted: bool = False
    """With --topology: count only, and compile nothing."""
    search: bool = False
    """Rank all meshes over the devices by the count, and plan for the best."""
    compile: int = 1
    """With --search: how many of the best meshes are planned for."""
    whole: bool = False
    """Compile sampling's programs with all of their layers (minutes each), not with two."""
    only: tuple[str, ...] = ()
    """Plan for these runs only."""
    json: Path | None = None
    """File that is given the plans as JSON."""
    mean_prompt_tokens: float | None = None
    """Mean length of prompts. Default: a third of the longest."""
    mean_output_tokens: float | None = None
    """Mean length of outputs. Default: half of the longest."""
    pass_rate: float = 0.5
    """Share of outputs that is accepted."""
    validation_questions: int = 256
    """Questions of one evaluation."""
    test_questions: int = 1319
    """Questions of the test."""

    def __post_init__(self) -> None:
        if self.topology and self.device:
            raise ConfigError(
                f"--topology is {self.topology} and --device is {self.device}: give one of them."
            )
        if self.counted and not self.topology:
            raise ConfigError("--counted says how a --topology is planned for: name one.")
        if not 0 <= self.pass_rate <= 1:
            raise ConfigError(f"--pass-rate is {self.pass_rate}: it must lie in [0, 1].")
        if self.compile < 1:
            raise ConfigError(f"--compile is {self.compile}: it must be at least 1.")
        for name in ("mean_prompt_tokens", "mean_output_tokens"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ConfigError(
                    f"{typed_options.written(name)} is {value}: it must be at least 1."
                )


def read(args: Sequence[str]) -> tuple[PlanOptions, list[Option]]:
    """The options of plan, and those that are fields of runs. Raises ConfigError."""
    options = parse_options(args)
    fields = [option for option in options if "." in option.name]
    own = [option for option in options if "." not in option.name]
    return typed_options.read(PlanOptions, own), fields
