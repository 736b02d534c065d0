"""The options of `rft-jax verify`, read and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from rft_jax.config import ConfigError
from rft_jax.experiments import Option
from rft_jax.fields import suggest
from rft_jax.verification import symbolic
from rft_jax.verification.limits import Limits
from rft_jax.verification.rules import BUILT_IN, Comparison, VerifierSpec

_NAMES = ("out", "rule", "comparison", "checks", "tolerance", "workers", "timeout", "skip_bad")


class Settings(NamedTuple):
    """What to verify with, and where the verdicts go."""

    out: Path
    spec: VerifierSpec
    limits: Limits
    skip_bad: bool


def read(options: Sequence[Option]) -> Settings:
    """The settings that options state; ConfigError for one that is unknown, wrong or missing."""
    given: dict[str, tuple[str, ...]] = {}
    for option in options:
        if option.name not in _NAMES:
            shown = option.name.replace("_", "-")
            raise ConfigError(f"unknown option --{shown}{suggest(shown, _NAMES)}")
        if option.name in given:
            raise ConfigError(f"--{option.name} is given twice: give it once.")
        given[option.name] = option.values
    out = _one(given, "out", "")
    if not out:
        raise ConfigError("--out is missing: name the file that the verdicts are written to.")
    rule = _one(given, "rule", "auto")
    if rule not in BUILT_IN and ":" not in rule:
        raise ConfigError(f"--rule is {rule!r}, which is no rule{suggest(rule, BUILT_IN)}")
    if given.get("skip_bad"):
        raise ConfigError(f"--skip-bad takes no value, found {given['skip_bad'][0]!r}.")
    spec = VerifierSpec(
        name=rule,
        comparison=_comparison(_one(given, "comparison", "")),
        checks=given.get("checks", ()),
        tolerance=Fraction(_number(given, "tolerance", "0", least=Fraction(0))),
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = _number(given, "workers", str(cores or 1), least=Fraction(1))
    if workers.denominator != 1:
        raise ConfigError(f"--workers is {workers}: a whole number is expected.")
    seconds = _number(given, "timeout", "10", least=Fraction(1, 1000))
    return Settings(Path(out), spec, Limits(int(workers), float(seconds)), "skip_bad" in given)


def _comparison(text: str) -> Comparison:
    if not text:
        return "math" if symbolic.available() else "exact"
    if text == "math":
        return "math"
    if text == "exact":
        return "exact"
    raise ConfigError(f"--comparison is {text!r}: it must be exact or math.")


def _one(given: Mapping[str, tuple[str, ...]], name: str, default: str) -> str:
    values = given.get(name, (default,))
    if len(values) != 1 or (name in given and not values[0]):
        raise ConfigError(f"--{name} takes one value, found {' '.join(values) or 'none'}.")
    return values[0]


def _number(
    given: Mapping[str, tuple[str, ...]], name: str, default: str, *, least: Fraction
) -> Fraction:
    text = _one(given, name, default)
    try:
        value = Fraction(text) if len(text) < 40 else None
    except (ValueError, ZeroDivisionError):
        value = None
    if value is None or value < least:
        raise ConfigError(f"--{name} is {text!r}: a number of at least {float(least):g} is needed.")
    return value
