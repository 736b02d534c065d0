"""Experiment files: loading, checking, and overriding fields from the command line. Loads no jax.

An experiment file is plain Python with a function `experiment()` that returns a dict of named runs
in the order they are carried out; a run starts from an earlier one by `init_from="run:NAME"`.
"""

from __future__ import annotations

import keyword
import sys
import traceback
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from rft_jax.config.model import ADAPTER_FIELDS
from rft_jax.config.run import Config, Experiment
from rft_jax.config.serialize import (
    check_types,
    differences,
    field_types,
    flatten,
    replace_fields,
    section_types,
    suggest,
)
from rft_jax.errors import ConfigError


class Option(NamedTuple):
    """One option as given: the name without its hyphens, and the values up to the next option."""

    name: str
    values: tuple[str, ...]


def load(path: Path) -> dict[str, Config]:
    """Load and check the experiment of a file.

    The file's folder is appended to `sys.path`, so that an experiment may import its neighbours
    and name a verifier beside it.
    Raises ConfigError for every error; it names the file and, for what is raised inside it, the
    line.
    """
    if not path.is_file():
        near = suggest(str(path), [str(other) for other in path.parent.glob("*.py")])
        raise ConfigError(f"experiment file {path} does not exist{near}")
    if path.suffix != ".py":
        raise ConfigError(f"{path} is not an experiment: a Python file, NAME.py, is expected.")
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    experiment = _call(path)
    try:
        if not isinstance(experiment, Mapping):
            raise ConfigError(
                f"experiment() returned {type(experiment).__name__}: a dict of named Configs is "
                "expected."
            )
        check(experiment)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return dict(experiment)


def check(experiment: Mapping[Any, Any]) -> None:
    """Raise ConfigError for what is wrong with an experiment or with the type of a field."""
    if not experiment:
        raise ConfigError("experiment() returned no run: at least one is expected.")
    for name, config in experiment.items():
        _check_name(name)
        if not isinstance(config, Config):
            raise ConfigError(f"run {name} is of type {type(config).__name__}: Config is expected.")
        try:
            check_types(config)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    _check_starts(experiment)
    _check_tokenizers(experiment)


def override(experiment: Experiment, args: Sequence[str]) -> dict[str, Config]:
    """The experiment with the fields replaced that `args` name: `--RUN.section.field value` or
    `--RUN.section.field=value`; hyphens within a name count as underscores."""
    return apply_options(experiment, parse_options(args))


def parse_options(args: Sequence[str]) -> list[Option]:
    """The options of `args`; ConfigError when the first argument is none."""
    if args and not _is_option(args[0]):
        raise ConfigError(f"unexpected argument {args[0]!r}: options are written --NAME value.")
    found: list[Option] = []
    for arg in args:
        if _is_option(arg):
            name, equals, value = arg[2:].partition("=")
            found.append(Option(name.replace("-", "_"), (value,) if equals else ()))
        else:
            found[-1] = Option(found[-1].name, (*found[-1].values, arg))
    return found


def apply_options(
    experiment: Experiment, options: Sequence[Option], others: Sequence[str] = ()
) -> dict[str, Config]:
    """The experiment with the fields replaced that `options` name, checked again as a whole.

    others: options that the caller took out, which an unknown name may have meant.
    """
    changes: dict[str, dict[str, Any]] = {name: {} for name in experiment}
    for option in options:
        run, field = _find(experiment, option.name, others)
        if field in changes[run]:
            raise ConfigError(f"--{option.name} is given twice: give it once.")
        changes[run][field] = convert(option, field_types()[field])
    changed: dict[str, Config] = {}
    for run, values in changes.items():
        try:
            changed[run] = replace_fields(experiment[run], values)
        except ConfigError as error:
            raise ConfigError(f"{run}: {error}") from error
    check(changed)
    return changed


def print_help(experiment: Experiment, *, usage: str, description: str) -> None:
    """Print every field of every run with its doc and the value it has, by tyro."""
    runs = [(name, Config, config) for name, config in experiment.items()]
    kind = make_dataclass("Experiment", runs, frozen=True)
    markers = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    try:
        tyro.cli(
            kind, prog=usage, description=description, args=["--help"], default=kind(),
            config=markers, use_underscores=True,
        )  # fmt: skip
    except SystemExit:  # tyro leaves the process once the help is printed
        return


def _is_option(arg: str) -> bool:
    return arg.startswith("--") and len(arg) > 2


def _call(path: Path) -> Any:
    """What the file's `experiment()` returns."""
    try:
        # Compiled here, because the import system may take a file just rewritten for its old
        # bytecode.
        code = compile(path.read_bytes(), str(path), "exec")
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno or 1}: {error.msg} (syntax error).") from error
    module = types.ModuleType(f"experiment_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    try:
        exec(code, module.__dict__)
        function = getattr(module, "experiment", None)
        if callable(function):
            return function()
    except Exception as error:
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        text = " ".join(str(error).split())
        raise ConfigError(f"{_last_line(path, error)}: {kind}{text}") from error
    raise ConfigError(f"{path} has no function experiment(): define it to return the named runs.")


def _last_line(path: Path, error: Exception) -> str:
    """`FILE:LINE` of the last line of `path` that led to the error, or `FILE`."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _check_name(name: object) -> None:
    # A run's name is a folder of the workdir and the first part of an option.
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ConfigError(
            f"run name {name!r} is not an identifier: letters, digits and _ are expected."
        )
    if name == "plots":
        raise ConfigError("run name plots is the report's folder of figures: choose another.")


def _check_starts(experiment: Experiment) -> None:
    earlier: dict[str, Config] = {}
    for name, config in experiment.items():
        kind, _, start = config.init_from.partition(":")
        if kind == "run":
            if start not in earlier:
                raise ConfigError(
                    f"{name}: init_from is {config.init_from!r}, which names no earlier run"
                    f"{suggest(start, earlier)}"
                )
            _check_same_policy(name, config, start, earlier[start])
        earlier[name] = config


def _check_same_policy(name: str, config: Config, start: str, start_config: Config) -> None:
    """A run reads the parameters and the tokens of the run it starts from.

    Adapters may be added to a model, trained further, or merged into it, but not replaced.
    """
    free = () if config.model.lora_rank and start_config.model.lora_rank else ADAPTER_FIELDS
    model = set(config.model.differences(start_config.model)) - set(free)
    for field, (ours, theirs) in differences(config, start_config).items():
        section, _, inner = field.partition(".")
        if section == "tokenizer" or (section == "model" and inner in model):
            raise ConfigError(
                f"{name}: {field} is {ours!r} but {theirs!r} in run {start}, which it starts from: "
                "set both alike."
            )


def _check_tokenizers(experiment: Experiment) -> None:
    """The runs that train a tokenizer share WORKDIR/tokenizer.model, so they train the same."""
    training = [(run, config) for run, config in experiment.items() if not config.tokenizer.path]
    for name, config in training[1:]:
        first_name, first = training[0]
        same = replace(config, tokenizer=first.tokenizer)
        for field, (ours, theirs) in differences(config, same).items():
            raise ConfigError(
                f"{name}: {field} is {ours!r} but {theirs!r} in run {first_name}: an experiment "
                "trains one tokenizer; set both alike."
            )


def _find(experiment: Experiment, name: str, others: Sequence[str]) -> tuple[str, str]:
    """(run, dotted field) of an option's name."""
    run, _, field = name.partition(".")
    if run in experiment and field in field_types():
        section = field.partition(".")[0]
        if "." in field and getattr(experiment[run], section) is None:
            raise ConfigError(
                f"--{name} does nothing: run {run} (method {experiment[run].method}) has no "
                f"section {section}."
            )
        return run, field
    if run in experiment and field in section_types():
        raise ConfigError(
            f"--{name} is a section: name one of its fields, such as "
            f"--{name}.{next(iter(typing.get_type_hints(section_types()[field])))}."
        )
    # Fields of sections that a run leaves out are no suggestion.
    valid = [f"--{r}.{field}" for r, config in experiment.items() for field in _settable(config)]
    raise ConfigError(f"unknown option --{name}{suggest(f'--{name}', [*others, *valid])}")


def _settable(config: Config) -> list[str]:
    return [name for name in flatten(config) if name in field_types()]


def convert(option: Option, hint: Any) -> Any:
    """The option's values as the declared type, by tyro's rules; ConfigError when they are none."""
    spec = primitive(hint)
    values = option.values
    if isinstance(spec.nargs, int) and len(values) != spec.nargs:
        wanted = "one value" if spec.nargs == 1 else f"{spec.nargs} values"
        found = f"{len(values)}: {' '.join(values)}" if values else "none"
        raise ConfigError(f"--{option.name} takes {wanted}, found {found}.")
    expected = f"{{{','.join(spec.choices)}}}" if spec.choices else spec.metavar
    end = suggest(values[0], spec.choices) if spec.choices else "."
    message = f"--{option.name} is {' '.join(values)!r}: {expected} is expected{end}"
    # tyro takes any text but True for a false bool; the choices decide.
    if spec.choices and values[0] not in spec.choices:
        raise ConfigError(message)
    try:
        return spec.instance_from_str(list(values))
    except ValueError as error:
        raise ConfigError(message) from error


def primitive(hint: Any) -> PrimitiveConstructorSpec[Any]:
    """How tyro writes and reads a value of a type."""
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(hint, set()))
    assert isinstance(spec, PrimitiveConstructorSpec), f"a field of type {hint} has no text form"
    return spec
