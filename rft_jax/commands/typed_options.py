"""A command's options as a frozen dataclass: read from the command line, and listed. No jax.

A field is an option, `--its-name`, with its docstring as the help text. A field that is a dataclass
itself stands for its own fields; one of type bool takes no value; one without a default must be
given.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rft_jax.config.experiment import Option, convert, primitive
from rft_jax.config.serialize import suggest
from rft_jax.errors import ConfigError
from rft_jax.io.paths import on_disk

Options = TypeVar("Options")

_WIDTH = 100
_INDENT = 6


class Declared(NamedTuple):
    """An option as its dataclass declares it. default: dataclasses.MISSING for none."""

    hint: Any
    default: Any
    doc: str


def read(kind: type[Options], given: Sequence[Option]) -> Options:
    """The options that are given as a `kind`; ConfigError for one that is unknown, wrong, given
    twice or missing, and for what the dataclass itself refuses."""
    known = declared(kind)
    values: dict[str, Any] = {}
    for option in given:
        shown = written(option.name)
        if option.name not in known:
            raise ConfigError(f"unknown option {shown}{suggest(shown, map(written, known))}")
        if option.name in values:
            raise ConfigError(f"{shown} is given twice: give it once.")
        values[option.name] = _value(option, known[option.name].hint)
    for name, (_, default, doc) in known.items():
        if default is dataclasses.MISSING and name not in values:
            what = doc.partition(".")[0]
            raise ConfigError(f"{written(name)} is missing: give {what[:1].lower()}{what[1:]}.")
    return _build(kind, values)


def help_text(kind: type, usage: str) -> str:
    """Usage, the dataclass's docstring, and every option with its doc and default."""
    lines = [f"usage: {usage}", "", inspect.getdoc(kind) or "", ""]
    for name, (hint, default, doc) in declared(kind).items():
        lines.append(f"  {written(name)} {_form(hint)}".rstrip())
        text = " ".join([doc, *_shown_default(default)])
        margin = " " * _INDENT
        lines += textwrap.wrap(text, _WIDTH, initial_indent=margin, subsequent_indent=margin)
    return "\n".join(lines)


def declared(kind: type) -> Mapping[str, Declared]:
    """The options of a dataclass by their names: its own, then those of dataclasses within it."""
    hints, docs = typing.get_type_hints(kind), _docs(kind)
    own: dict[str, Declared] = {}
    others: dict[str, Declared] = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            others |= declared(hint)
        else:
            own[field.name] = Declared(_without_none(hint), field.default, docs[field.name])
    return own | others


def written(name: str) -> str:
    """An option as it stands on the command line."""
    return "--" + name.replace("_", "-")


def _docs(kind: type) -> dict[str, str]:
    """The docstring below each field, which Python itself does not keep."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    assert isinstance(tree.body[0], ast.ClassDef)
    body = tree.body[0].body
    return {
        field.target.id: " ".join(ast.literal_eval(below.value).split())
        for field, below in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
    }


def _without_none(hint: Any) -> Any:
    """The type of a given value: None stands for an option that is not given."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    # One with a Literal is of the older kind.
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return kinds[0] if is_union and len(kinds) == 1 else hint


def _value(option: Option, hint: Any) -> Any:
    if hint is bool:
        if option.values:
            raise ConfigError(f"{written(option.name)} takes no value, found {option.values[0]!r}.")
        return True
    if hint is Path and option.values == ("",):
        option = option._replace(values=())
    if hint is Path:
        for value in option.values:
            on_disk(value, written(option.name))
    named = option._replace(name=written(option.name).removeprefix("--"))
    return _fraction(named) if hint is Fraction else convert(named, hint)


def _fraction(option: Option) -> Fraction:
    text = convert(option, str)
    try:
        # A number of thousands of digits takes hours to be one.
        return Fraction(text if len(text) < 40 else "")
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"--{option.name} is {text!r}: a number is expected.") from error


def _build(kind: type[Options], values: Mapping[str, Any]) -> Options:
    arguments = {}
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            arguments[name] = _build(hint, values)
        elif name in values:
            arguments[name] = values[name]
    return kind(**arguments)


def _form(hint: Any) -> str:
    if hint is bool:
        return ""
    return "NUMBER" if hint is Fraction else primitive(hint).metavar


def _shown_default(default: Any) -> list[str]:
    """Where it depends on other things it is None, and the doc says it."""
    if default is dataclasses.MISSING:
        return ["Must be given."]
    return [] if default is None or default is False else [f"Default: {default}."]
