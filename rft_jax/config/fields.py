"""What the sections of a config share: checks of their fields, and a mark on some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from rft_jax.errors import ConfigError

MAY_CHANGE = {"may_change": True}
"""Metadata of a field or section that may differ when a run is resumed.

It changes no parameter, or (the mesh) only by rounding. `steps` has no such mark: whether it may
differ depends on the schedule (checkpoint/provenance.py)."""


FLOAT32_MAX, FLOAT32_TINY = (2 - 2.0**-23) * 2.0**127, 2.0**-126
"""The largest float32, and the smallest that no device takes for 0."""
BELOW_ONE = 1 - 2.0**-24
"""The largest float32 below 1."""

LEAST_TEMPERATURE = 1e-6
"""Logits divided by less overflow."""

METRICS = (
    "greedy",
    "sampled",
    "pass_at",
    "maj_at",
    "calibration",
    "questions",
    "policy",
    "lengths",
)
"""What names of metrics begin with: no set of questions is called so."""

MOST = 2**31 - 1
"""Largest int32, the type of every count and position on devices."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def at_least(least: float, section: object, *names: str) -> None:
    """Require the named fields of a section to be `least` or more, and no more than devices can
    count to."""
    prefix = type(section).__name__.removesuffix("Config").lower()
    bound = "0 or more" if least == 0 else f"at least {least}"
    for name in names:
        value = getattr(section, name)
        require(value >= least, f"{prefix}.{name} is {value}: it must be {bound}.")
        require(value <= MOST, f"{prefix}.{name} is {value}: it must be at most {MOST}.")


def both_or_none(section: object, *names: str) -> None:
    """Require the named fields of a section to be positive, or all of them to be 0."""
    prefix = type(section).__name__.removesuffix("Config").lower()
    values = [getattr(section, name) for name in names]
    require(
        all(value > 0 for value in values) or not any(values),
        f"{' and '.join(f'{prefix}.{name}' for name in names)} are "
        f"{' and '.join(map(str, values))}: give positive numbers, or leave all of them at 0.",
    )


def named_sources(setting: str, values: Sequence[str]) -> dict[str, str]:
    """Sources by name, of values NAME=SOURCE."""
    named: dict[str, str] = {}
    for value in values:
        name, _, named[name] = value.partition("=")
        require(
            name.isidentifier() and bool(named[name]) and name not in METRICS,
            f"{setting} holds {value!r}: NAME=SOURCE is expected, NAME of letters, digits and _, "
            f"and none of {', '.join(METRICS)}.",
        )
    require(len(named) == len(values), f"{setting} names a source twice: give each another name.")
    return named


def check_floats(name: str, section: Any) -> None:
    """ConfigError for a number of a section that float32, in which a run computes, cannot hold."""
    for item in fields(section):
        value = getattr(section, item.name)
        # Not isfinite(): a whole number may be too large even for Python's floats.
        require(
            item.type != "float" or -FLOAT32_MAX <= value <= FLOAT32_MAX,
            f"{name}.{item.name} is {value}: it must be a finite number, of float32.",
        )
