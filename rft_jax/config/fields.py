"""What the sections of a config share: checks of their fields, and a mark on some."""

from __future__ import annotations

from rft_jax.errors import ConfigError

MAY_CHANGE = {"may_change": True}
"""Metadata of a field or section that may differ when a run is resumed.

It changes no parameter, or (the mesh) only by rounding. `steps` has no such mark: whether it may
differ depends on the schedule (checkpoint/provenance.py)."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def at_least(least: int, section: object, *names: str) -> None:
    """Require the named fields of a section to be `least` or more."""
    prefix = type(section).__name__.removesuffix("Config").lower()
    bound = "0 or more" if least == 0 else f"at least {least}"
    for name in names:
        value = getattr(section, name)
        require(value >= least, f"{prefix}.{name} is {value}: it must be {bound}.")
