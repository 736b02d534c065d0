"""The command line by tyro: its types read every value, and it lays out every help page. No jax.

tyro.cli itself does not parse: it has no public way to report an error in one line, no option for a
section that is None, and no `--all`. An option is `--name VALUE ...` or `--name=VALUE`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from rft_jax.config import Config
from rft_jax.config.experiment import ALL, locate, override
from rft_jax.config.run import Experiment
from rft_jax.config.serialize import field_types, section_types, suggest
from rft_jax.errors import ConfigError, suggest_or_list
from rft_jax.io.paths import on_disk

Options = TypeVar("Options")

_WIDTH = 100


class Option(NamedTuple):
    """An option as it was given: its name without `--`, and the values up to the next one."""

    name: str
    values: tuple[str, ...]


class Declared(NamedTuple):
    """An option as its dataclass declares it.

    default: dataclasses.MISSING for none; metavar: of the value, empty for that of its type.
    """

    hint: Any
    default: Any
    doc: str
    positional: bool
    metavar: str


def read(kind: type[Options], args: Sequence[str], command: str) -> tuple[Options, list[Option]]:
    """A command's options, and those that are fields of runs: they have a dot in their names.

    Raises ConfigError, in one line, for whatever is unknown, wrong, given twice or missing, and for
    what the dataclass itself refuses.
    """
    known = declared(kind)
    words, options = split(args)
    values: dict[str, Any] = {}
    for name in (name for name, one in known.items() if one.positional):
        if not words:
            done = len(values)
            before = " ".join(["rft-jax", command, *args[:done]])
            after = args[done] if len(args) > done else "nothing"
            raise ConfigError(
                f"{before} is followed by {after}: {name.upper()} is expected; see --help."
            )
        values[name] = _convert(Option(name.upper(), (words.pop(0),)), known[name].hint, "")
    if words:
        raise ConfigError(f"unexpected argument {words[0]!r}: options are written --NAME value.")
    fields = [option for option in options if "." in option.name]
    named = {name for name, one in known.items() if not one.positional}
    given_values: dict[str, tuple[str, ...]] = {}
    for name, texts in options:
        if "." in name:
            continue
        if name not in named:
            if name in field_types() and "experiment" in known:
                raise ConfigError(
                    f"unknown option --{name}: it is a field of runs, --{ALL}.{name} of all or "
                    f"--RUN.{name} of one."
                )
            longer = [f"--{one}" for one in named if one.startswith(name)]
            near = suggest(f"--{name}", longer or [f"--{one}" for one in named])
            raise ConfigError(f"unknown option --{name}{near}")
        many = typing.get_origin(known[name].hint) is tuple
        # A script may name a workdir before its caller does: the last one holds.
        if name in given_values and not many and name != "workdir":
            raise ConfigError(f"--{name} is given twice: give it once.")
        given_values[name] = (*given_values.get(name, ()), *texts) if many else texts
    for name, texts in given_values.items():
        hint = known[name].hint
        values[name] = _flag(name, texts) if hint is bool else _convert(Option(name, texts), hint)
        if values[name] == ():
            raise ConfigError(f"--{name} takes one or more values, found none.")
    for name, one in known.items():
        if one.default is dataclasses.MISSING and name not in values:
            what = one.doc.partition(".")[0]
            raise ConfigError(f"--{name} is missing: give {what[:1].lower()}{what[1:]}.")
    return _build(kind, values), fields


def apply(experiment: Experiment, options: Iterable[Option]) -> dict[str, Config]:
    """The experiment with the fields of runs that options set, all at once.

    Raises ConfigError where a name, a value or the outcome is wrong.
    """
    values: dict[str, Any] = {}
    for option in options:
        _, field = locate(experiment, option.name, "--")
        if option.name in values:
            raise ConfigError(f"--{option.name} is given twice: give it once.")
        values[option.name] = _convert(option, field_types()[field])
    return override(experiment, values, "--")


def text_type(hint: Any) -> Any:
    """The type a value is read as: None stands for what is not given, and of several types it is
    text where that is one of them."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    return str if str in kinds else kinds[0]


def print_help(kind: type, command: str) -> None:
    """Print a command's docstring and options."""
    known = declared(kind)
    about = inspect.getdoc(kind) or ""
    if command in ("run", "plan"):
        about += f"\n\n--RUN.FIELD VALUE sets a field of a run, --{ALL}.FIELD VALUE of every run; "
        about += f"`rft-jax {command} EXPERIMENT --help` lists the fields."
    _show(f"rft-jax {command}", about, known)


def print_help_of_commands(kinds: Mapping[str, type]) -> None:
    """Print every command with its docstring's first sentence."""
    lines = ["usage: rft-jax COMMAND ... | --help | --version", ""]
    lines += ["RFT and Online RFT for language models in JAX (DeepSeekMath, section 5.2).", ""]
    for name, kind in kinds.items():
        words = [one.upper() for one, facts in declared(kind).items() if facts.positional]
        first = " ".join((inspect.getdoc(kind) or "").split()).partition(". ")[0].rstrip(".:")
        lines.append(f"  rft-jax {name} {' '.join(words)}")
        lines += textwrap.wrap(
            f"{first}.", _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    lines += [
        "",
        "`rft-jax COMMAND --help` lists a command's options, and `rft-jax run EXPERIMENT ",
    ]
    lines[-1] += "--help`\nthe fields of its runs."
    print("\n".join(lines))


def print_help_of_runs(kind: type, command: str, experiment: Experiment, section: str) -> None:
    """Print the fields of an experiment's runs that lie in a section, each with its type, its doc
    and the runs' values; without a section a command's own options, the fields outside of sections,
    and which sections there are.

    Raises ConfigError for a section that does not exist.
    """
    sections = section_types()
    if section and section not in sections:
        end = suggest_or_list(section, sections)
        raise ConfigError(f"--help {section}: there is no such section{end}")
    fields = {
        f"RUN.{name}": Declared(text_type(hint), _values(experiment, name), doc, False, "")
        for name, hint, doc in _fields(section)
    }
    about = f"RUN is {', '.join(experiment)}, or {ALL} for each of them."
    if section:
        what = inspect.getdoc(sections[section]) or ""
        _show(f"rft-jax {command} EXPERIMENT", f"{what}\n\n{about}", fields)
        return
    own = {name: one for name, one in declared(kind).items() if not one.positional}
    about = f"{inspect.getdoc(kind)}\n\n{about}"
    _show(f"rft-jax {command} EXPERIMENT", about, own | fields)
    print("\nSections; `--help SECTION` lists the fields of one, --RUN.SECTION.FIELD:")
    for name, one in sections.items():
        first = " ".join((inspect.getdoc(one) or "").split()).partition(". ")[0]
        without = [run for run, config in experiment.items() if getattr(config, name) is None]
        note = f" (not in {', '.join(without)})" if without else ""
        text = f"  {name:<13} {first.rstrip('.')}{note}"
        print(textwrap.fill(text, _WIDTH, subsequent_indent=" " * 16))


def declared(kind: type) -> dict[str, Declared]:
    """The options of a dataclass by name: its own, then those of dataclasses within it."""
    docs = _docs(kind)
    own: dict[str, Declared] = {}
    others: dict[str, Declared] = {}
    plain = typing.get_type_hints(kind)
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if dataclasses.is_dataclass(hint):
            others |= declared(typing.cast(type, hint))
            continue
        marks = getattr(hint, "__metadata__", ())
        metavar = next((mark.metavar for mark in marks if hasattr(mark, "metavar")), "")
        default = getattr(kind, name, dataclasses.MISSING)
        positional = tyro.conf.Positional in marks
        own[name] = Declared(text_type(plain[name]), default, docs[name], positional, metavar)
    positional_first = sorted((own | others).items(), key=lambda item: not item[1].positional)
    return dict(positional_first)


def split(args: Sequence[str]) -> tuple[list[str], list[Option]]:
    """The words before the first option, and the options; a hyphen in a name is an underscore."""
    words: list[str] = []
    options: list[Option] = []
    for arg in args:
        if arg.startswith("--") and len(arg) > 2:
            name, equals, value = arg[2:].partition("=")
            options.append(Option(name.replace("-", "_"), (value,) if equals else ()))
        elif options:
            options[-1] = Option(options[-1].name, (*options[-1].values, arg))
        else:
            words.append(arg)
    return words, options


def _flag(name: str, values: Sequence[str]) -> bool:
    if values:
        raise ConfigError(f"--{name} takes no value, found {values[0]!r}.")
    return True


def _convert(option: Option, hint: Any, mark: str = "--") -> Any:
    """An option's values as the declared type; ConfigError when they are none."""
    name, values = f"{mark}{option.name}", option.values
    if values == ("None",) and type(None) in typing.get_args(hint):
        return None
    hint = text_type(hint)
    if hint is Path and values == ("",):
        values = ()
    spec = _primitive(hint)
    if isinstance(spec.nargs, int) and len(values) != spec.nargs:
        wanted = "one value" if spec.nargs == 1 else f"{spec.nargs} values"
        given = f"{len(values)}: {' '.join(values)}" if values else "none"
        raise ConfigError(f"{name} takes {wanted}, found {given}.")
    if hint is Path:
        on_disk(values[0], name)
    expected = f"{{{','.join(spec.choices)}}}" if spec.choices else spec.metavar
    end = suggest(values[0], spec.choices) if spec.choices else "."
    message = f"{name} is {' '.join(values)!r}: {expected} is expected{end}"
    # tyro takes any text but True for a false bool; the choices decide.
    if spec.choices and values[0] not in spec.choices:
        raise ConfigError(message)
    try:
        return spec.instance_from_str(list(values))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(message) from error


def _primitive(hint: Any) -> PrimitiveConstructorSpec[Any]:
    """How tyro reads a value of a type."""
    if hint is Fraction:
        # A number of thousands of digits takes hours to be one.
        return PrimitiveConstructorSpec(
            nargs=1, metavar="NUMBER", is_instance=lambda value: isinstance(value, Fraction),
            instance_from_str=lambda texts: Fraction(texts[0] if len(texts[0]) < 40 else ""),
            str_from_instance=lambda value: [str(value)],
        )  # fmt: skip
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(hint, set()))
    assert isinstance(spec, PrimitiveConstructorSpec), f"a field of type {hint} has no text form"
    return spec


def _build(kind: type[Options], values: Mapping[str, Any]) -> Options:
    arguments: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            arguments[name] = _build(typing.cast(type, hint), values)
        elif name in values:
            arguments[name] = values[name]
    return kind(**arguments)


def _docs(kind: type) -> dict[str, str]:
    """The docstring below each field, which Python itself does not keep."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    assert isinstance(tree.body[0], ast.ClassDef)
    return {
        field.target.id: " ".join(ast.literal_eval(below.value).split())
        for field, below in itertools.pairwise(tree.body[0].body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(below, ast.Expr)
    }


def _fields(section: str) -> Iterator[tuple[str, Any, str]]:
    """(dotted name, type, doc) of the fields of a section, or of those outside of sections."""
    docs = _docs(section_types()[section] if section else Config)
    for name, hint in field_types().items():
        place, _, field = name.rpartition(".")
        if place == section:
            yield name, hint, docs[field]


def _values(experiment: Experiment, name: str) -> str:
    """What the runs that have a field have in it; where none has its section, the field's default,
    as the help says it."""
    section, _, field = name.rpartition(".")
    by_text: dict[str, list[str]] = {}
    for run, config in experiment.items():
        place = getattr(config, section) if section else config
        if place is not None:
            by_text.setdefault(str(getattr(place, field)) or "empty", []).append(run)
    if not by_text:
        return str(getattr(section_types()[section], field, "none; needed to add the section"))
    if len(by_text) == 1:
        return next(iter(by_text))
    return "; ".join(f"{text} in {', '.join(runs)}" for text, runs in by_text.items())


def _show(prog: str, description: str, options: Mapping[str, Declared]) -> None:
    """Print a help page by tyro. What depends on other things is None, and the doc says it."""
    shown = []
    for number, (name, one) in enumerate(options.items()):
        default = (
            "(required)" if one.default is dataclasses.MISSING else f"(default: {one.default})"
        )
        if one.default in (None, (), "", False):
            default = ""
        metavar = name.upper() if one.positional else _metavar(one)
        facts = tyro.conf.arg(
            name=name, metavar=metavar, help=f"{one.doc} {default}".strip(), help_behavior_hint=""
        )
        hint: Any = Annotated[str, facts, *((tyro.conf.Positional,) if one.positional else ())]
        shown.append((f"option_{number}", hint, ""))
    page = dataclasses.make_dataclass("Page", shown)
    # tyro leaves the process once the help is printed, and wraps no description off a terminal.
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        tyro.cli(page, prog=prog, description=" ", args=["--help"], use_underscores=True)
    _, _, boxes = text.getvalue().partition("\n\n")
    words = [name.upper() for name, one in options.items() if one.positional]
    usage = " ".join(["usage:", prog, *words, "[options]"])
    paragraphs = [textwrap.fill(part, _WIDTH) for part in description.split("\n\n")]
    lines = [line.rstrip() for line in boxes.strip("\n").splitlines()]
    print("\n\n".join([usage, *paragraphs, "\n".join(lines).rstrip()]))


def _metavar(one: Declared) -> str:
    """How a value is written; a flag has none."""
    return (
        ""
        if one.hint is bool and one.default is False
        else one.metavar or _primitive(one.hint).metavar
    )
