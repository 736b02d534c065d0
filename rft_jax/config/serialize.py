"""The fields of a `Config` by dotted name: listing, checking, replacing. Imports no jax.

A dotted name is `steps` or `model.num_layers`. A section that a method leaves out is None and is
listed under its own name, `rollout`.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any, Literal

from rft_jax.config import method
from rft_jax.config.method import Method
from rft_jax.config.run import Config
from rft_jax.errors import ConfigError, suggest


@functools.cache
def section_types() -> Mapping[str, type]:
    """The class of every section of a Config by name, sections that may be None included."""
    sections: dict[str, type] = {}
    for name, hint in typing.get_type_hints(Config).items():
        choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for choice in choices:
            # A method of one's own is a value, not a section of settings.
            if isinstance(choice, type) and is_dataclass(choice) and choice is not Method:
                sections[name] = choice
    return sections


@functools.cache
def field_types() -> Mapping[str, Any]:
    """The declared type of every field of a Config by dotted name, in the order declared."""
    declared: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(Config).items():
        section = section_types().get(name)
        if section is None:
            declared[name] = hint
        else:
            inner = typing.get_type_hints(section)
            declared.update({f"{name}.{field}": inner[field] for field in inner})
    return declared


def flatten(config: Config) -> dict[str, Any]:
    """The values of a Config by dotted name; a section that is None under its own name."""
    values: dict[str, Any] = {}
    for item in fields(Config):
        value = getattr(config, item.name)
        if item.name in section_types() and value is not None:
            values.update({f"{item.name}.{f.name}": getattr(value, f.name) for f in fields(value)})
        else:
            values[item.name] = method.to_json(value) if item.name == "method" else value
    return values


def check_types(config: Config) -> None:
    """ConfigError when a value is not of its declared type (dataclasses do not look)."""
    for name, section in section_types().items():
        value = getattr(config, name)
        if not isinstance(value, section) and not (value is None and _may_be_none(name)):
            raise ConfigError(f"{name} is {value!r}: a {section.__name__} is expected.")
    check_value("method", config.method)
    method.resolve(config.method)
    for name, value in flatten(config).items():
        if name in field_types() and name != "method":
            check_value(name, value)


def check_value(name: str, value: object) -> None:
    """ConfigError when `value` is not of the type declared for the field of this dotted name."""
    hint = field_types()[name]
    if name == "method":
        _expect(isinstance(value, str | Method), name, value, "a name or a Method")
    elif typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        _expect(value in choices, name, value, f"one of {', '.join(choices)}", choices)
    elif typing.get_origin(hint) is tuple:
        strings = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        _expect(strings, name, value, "a tuple of strings")
    elif hint is float:
        _expect(type(value) in (float, int), name, value, "a number")
    else:  # bool is a subclass of int, and no int.
        _expect(type(value) is hint, name, value, f"a value of type {hint.__name__}")


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


def build(values: Mapping[str, Any]) -> Config:
    """A Config of nested plain values such as JSON holds: the inverse of `dataclasses.asdict`.

    A section that may be None may be missing: what was saved before there was such a section is
    without it. Raises ConfigError for a name that is no field, any other field that is missing and
    a wrong type.
    """
    optional = {name: None for name in section_types() if _may_be_none(name)}
    _check_names(optional | dict(values), [item.name for item in fields(Config)], prefix="")
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        section = section_types().get(name)
        if section is None:
            arguments[name] = _plain(name, value)
        elif value is None and _may_be_none(name):
            arguments[name] = None
        elif isinstance(value, Mapping):
            _check_names(value, [item.name for item in fields(section)], prefix=f"{name}.")
            inner = {field: _plain(f"{name}.{field}", item) for field, item in value.items()}
            arguments[name] = section(**inner)
        else:
            raise ConfigError(f"{name} is {value!r}: the fields of a section are expected.")
    return Config(**arguments)


def plain(config: Config) -> dict[str, Any]:
    """The nested plain values of a Config that JSON holds; `build` is the inverse."""
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    nested = {name: asdict(v) if name in section_types() and v else v for name, v in values.items()}
    return nested | {"method": method.to_json(config.method)}


def _plain(name: str, value: Any) -> Any:
    if name == "method" and isinstance(value, Mapping):
        return method.from_json(value)
    restored = tuple(value) if isinstance(value, list) else value
    check_value(name, restored)
    return restored


def _check_names(given: Iterable[str], expected: list[str], *, prefix: str) -> None:
    given = list(given)
    for name in given:
        if name not in expected:
            raise ConfigError(f"{prefix}{name} is not a field{suggest(name, expected)}")
    for name in expected:
        if name not in given:
            raise ConfigError(f"{prefix}{name} is missing: every field is needed.")


def _expect(
    condition: bool, name: str, value: object, expected: str, choices: Iterable[str] = ()
) -> None:
    if not condition:
        raise ConfigError(
            f"{name} is {value!r}: {expected} is expected{suggest(str(value), choices)}"
        )


def _may_be_none(section: str) -> bool:
    return type(None) in typing.get_args(typing.get_type_hints(Config)[section])
