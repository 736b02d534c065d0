"""Values of config.json by their keys, each of the type it must have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rft_jax.errors import ModelError

Raw = Mapping[str, Any]
"""config.json, or an object in it."""


def whole(raw: Raw, key: str) -> int:
    """A whole number. Raises ModelError when it is missing or something else."""
    value = number(raw, key)
    if value != int(value):
        raise refusal(key, value, "a whole number")
    return int(value)


def number(raw: Raw, key: str) -> float:
    """A number. Raises ModelError when it is missing or something else."""
    value = raw.get(key)
    if value is None:
        raise ModelError(
            f"config.json: {key} is missing, and a number is expected: copy or download it again."
        )
    # bool is a subclass of int in Python.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise refusal(key, value, "a number")
    if not abs(value) < float("inf"):
        raise refusal(key, value, "a finite number")
    return value


def truth(raw: Raw, key: str) -> bool:
    """True or false. Raises ModelError for anything else."""
    value = raw.get(key)
    if not isinstance(value, bool):
        raise refusal(key, value, "true or false")
    return value


def one_of(raw: Raw, key: str, known: Mapping[str, Any]) -> Any:
    """What `known` has for a word. Raises ModelError for a word that it lacks."""
    value = raw.get(key)
    if not isinstance(value, str) or value not in known:
        raise refusal(key, value, " or ".join(map(repr, known)))
    return known[value]


def refusal(key: str, found: object, expected: str) -> ModelError:
    """The error for a value that cannot be served."""
    shown = repr(found)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return ModelError(
        f"config.json: {key} is {shown}, and {expected} is expected: no other can be served; "
        "choose another model."
    )
