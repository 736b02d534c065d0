"""A range of steps of a run, as the command line names it. Loads no jax."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from rft_jax.errors import ConfigError

_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")


class Steps(NamedTuple):
    """Steps of a run, both ends included, counted as in metrics.jsonl: the first update is 1."""

    first: int
    last: int

    def __str__(self) -> str:
        """As they stand on the command line."""
        return f"steps {self.first}..{self.last}"


def parse_steps(values: Sequence[str]) -> Steps:
    """The range that the values of --profile name; ConfigError when they name none."""
    found = " ".join(values)
    match = _RANGE.fullmatch(values[1]) if len(values) == 2 and values[0] == "steps" else None
    if match is None:
        raise ConfigError(
            f"--profile takes `steps FIRST..LAST`, such as `steps 3..5` or `steps 3..3`, found "
            f"{repr(found) if found else 'none'}."
        )
    steps = Steps(int(match[1]), int(match[2]))
    if steps.first < 1:
        raise ConfigError(f"--profile is {found!r}: steps are counted from 1, the first update.")
    if steps.last < steps.first:
        raise ConfigError(
            f"--profile is {found!r}, which names no step: the last one must not be before the "
            "first."
        )
    return steps
