"""What the sections of a config share: checks of their fields, and a mark on some."""

from __future__ import annotations

from rft_jax.errors import ConfigError

MAY_CHANGE = {"may_change": True}
"""Metadata of a field or section that may differ when a run is resumed.

It changes no parameter, or (the mesh) only by rounding. `steps` has no such mark: the schedule and
the final evaluation depend on it, and a longer run is another run."""


MOST = 2**31 - 1
"""Largest int32, the type of every count and position on devices."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def at_least(least: int, section: object, *names: str) -> None:
    """Require the named fields of a section to be `least` or more, and no more than devices can
    count to."""
    prefix = type(section).__name__.removesuffix("Config").lower()
    bound = "0 or more" if least == 0 else f"at least {least}"
    for name in names:
        value = getattr(section, name)
        require(value >= least, f"{prefix}.{name} is {value}: it must be {bound}.")
        require(value <= MOST, f"{prefix}.{name} is {value}: it must be at most {MOST}.")
