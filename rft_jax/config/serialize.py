"""The fields of a `Config` by dotted name: listing, checking, comparing, replacing. Loads no jax.

A dotted name is `steps` or `model.num_layers`. A section that a method leaves out is None and is
listed under its own name, `rollout`.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from typing import Any, Literal

from rft_jax.config import method
from rft_jax.config.fields import MAY_CHANGE
from rft_jax.config.run import Config
from rft_jax.errors import ConfigError, suggest


@functools.cache
def section_types() -> Mapping[str, type]:
    """The class of every section of a Config by name, sections that may be None included."""
    sections: dict[str, type] = {}
    for name, hint in typing.get_type_hints(Config).items():
        kind = next(choice for choice in _choices(hint) if choice is not type(None))
        if isinstance(kind, type) and is_dataclass(kind):
            sections[name] = kind
    return sections


@functools.cache
def field_types() -> Mapping[str, Any]:
    """The declared type of every field of a Config by dotted name, in the order declared."""
    declared: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(Config).items():
        if name in section_types():
            inner = typing.get_type_hints(section_types()[name])
            declared |= {f"{name}.{field}": inner[field] for field in inner}
        else:
            declared[name] = hint
    return declared


@functools.cache
def changeable_fields() -> frozenset[str]:
    """Dotted names of the fields that may differ when a run is resumed: see fields.MAY_CHANGE."""
    whole = {item.name for item in fields(Config) if item.metadata == MAY_CHANGE}
    inner = {
        f"{name}.{item.name}"
        for name, section in section_types().items()
        for item in fields(section)
        if name in whole or item.metadata == MAY_CHANGE
    }
    return frozenset(whole | inner)


def flatten(config: Config) -> dict[str, Any]:
    """The values of a Config by dotted name; a section that is None under its own name."""
    values: dict[str, Any] = {}
    for item in fields(Config):
        value = getattr(config, item.name)
        if item.name in section_types() and value is not None:
            values |= {f"{item.name}.{f.name}": getattr(value, f.name) for f in fields(value)}
        else:
            values[item.name] = _identity(value) if item.name == "method" else value
    return values


def differences(config: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the fields that differ, with both values.

    A section that only one of them has is one difference: None against `given`.
    """
    ours, theirs = flatten(config), flatten(other)
    for flat, one in ((ours, config), (theirs, other)):
        flat["data.prompt_template"] = one.data.template
        flat["objective.denominator"] = one.denominator
    apart: dict[str, tuple[Any, Any]] = {}
    for name in ours | theirs:
        if "." in name and not (name in ours and name in theirs):
            continue  # the section is listed under its own name
        values = ours.get(name, _GIVEN), theirs.get(name, _GIVEN)
        if values[0] != values[1]:
            apart[name] = values
    return apart


def check_types(config: Config) -> None:
    """ConfigError when a value is not of its declared type (dataclasses do not look)."""
    for name, section in section_types().items():
        if not isinstance(getattr(config, name), section):
            _check_type(name, getattr(config, name), typing.get_type_hints(Config)[name])
    for name, value in (flatten(config) | {"method": config.method}).items():
        if name in field_types():
            check_value(name, value)
    method.resolve(config.method)


def check_value(name: str, value: object) -> None:
    """ConfigError when `value` is not of the type declared for the field of this dotted name."""
    _check_type(name, value, field_types()[name])


def replace_fields(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with the fields of these dotted names replaced, all at once.

    Raises ConfigError where the outcome is not valid. A section that is None is made of what is
    given, which must be all that it needs.
    """
    inner: dict[str, dict[str, Any]] = {}
    outer: dict[str, Any] = {}
    for name, value in values.items():
        section, dot, field = name.partition(".")
        if dot:
            inner.setdefault(section, {})[field] = value
        else:
            outer[name] = value
    for section, changes in inner.items():
        before = getattr(config, section)
        outer[section] = (
            replace(before, **changes) if before else section_types()[section](**changes)
        )
    return replace(config, **outer)


def build(values: Mapping[str, Any]) -> tuple[Config, tuple[str, ...]]:
    """A Config of nested plain values such as JSON holds: the inverse of `dataclasses.asdict`.

    Returns: the Config, and the dotted names of the fields and sections that got their defaults
    because `values` lacks them.
    Raises ConfigError for an unknown field, a missing one without a default, and a wrong type.
    """
    defaults: list[str] = []
    config = _build(Config, values, "", defaults)
    return config, tuple(defaults)


def _build(kind: Any, values: Mapping[str, Any], prefix: str, defaults: list[str]) -> Any:
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise ConfigError(f"{prefix}{name} is not a field{suggest(name, hints)}")
    arguments: dict[str, Any] = {}
    for item in fields(kind):
        name = f"{prefix}{item.name}"
        if item.name not in values:
            if item.default is MISSING and item.default_factory is MISSING:
                raise ConfigError(f"{name} is missing, and has no default.")
            defaults.append(name)
            continue
        value = values[item.name]
        if name == "method" and isinstance(value, Mapping):
            value = method.from_json(value)
        elif name in section_types() and isinstance(value, Mapping):
            value = _build(section_types()[name], value, f"{name}.", defaults)
        else:
            value = tuple(value) if isinstance(value, list) else value
            _check_type(name, value, hints[item.name])
        arguments[item.name] = value
    return kind(**arguments)


def _identity(value: str | method.Method) -> Any:
    """What makes a method another one; its words do not."""
    saved = method.to_json(value)
    return saved if isinstance(saved, str) else saved | {"about": ""}


def plain(config: Config) -> dict[str, Any]:
    """The nested plain values of a Config that JSON holds; `build` is the inverse."""
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    values["data"] = replace(config.data, prompt_template=config.data.template)
    values["objective"] = replace(config.objective, denominator=config.denominator)
    nested = {name: asdict(v) if name in section_types() and v else v for name, v in values.items()}
    return nested | {"method": method.to_json(config.method)}


class _Given:
    """Stands for the value of a section that the other config leaves out."""

    def __repr__(self) -> str:
        return "given"


_GIVEN = _Given()


def _choices(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if union else (hint,)


def _check_type(name: str, value: object, hint: Any) -> None:
    """ConfigError when `value` is not of the declared type."""
    if any(_fits(value, choice) for choice in _choices(hint)):
        return
    hint = _choices(hint)[0]
    near = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    if near:
        expected = f"one of {', '.join(near)}"
    elif typing.get_origin(hint) is tuple:
        expected = f"a tuple of {'number' if _inner(hint) is float else 'string'}s"
    elif is_dataclass(hint):
        expected = f"a {hint.__name__}"  # type: ignore[union-attr]
    else:
        expected = "a number" if hint is float else f"a value of type {hint.__name__}"
    raise ConfigError(f"{name} is {value!r}: {expected} is expected{suggest(str(value), near)}")


def _inner(hint: Any) -> Any:
    """The type of a tuple's items."""
    return typing.get_args(hint)[0]


def _fits(value: object, hint: Any) -> bool:
    if typing.get_origin(hint) is Literal:
        return isinstance(value, str) and value in typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, _inner(hint)) for item in value)
    if hint is float:
        return type(value) in (float, int)
    return type(value) is hint  # a bool, though an instance of int, is none
