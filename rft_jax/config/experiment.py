"""Experiments: loading their files, checking them, and overriding fields of their runs. No jax.

An experiment file is plain Python with a function `experiment()` that returns a dict of named runs
in the order they are carried out; a run starts from an earlier one by `init_from="run:NAME"`. Or
it has a function `study()`, which returns a Study.
"""

from __future__ import annotations

import contextlib
import keyword
import sys
import traceback
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from rft_jax.config.model import ADAPTER_FIELDS
from rft_jax.config.run import Config, Experiment
from rft_jax.config.serialize import (
    check_types,
    check_value,
    differences,
    field_types,
    flatten,
    replace_fields,
    section_types,
    suggest,
)
from rft_jax.config.study import Study
from rft_jax.errors import ConfigError, suggest_or_list

_LONGEST_NAME = 100
"""Of a run, in bytes: file systems take 255, and names of files have it within them."""
ALL = "all"
"""Stands for every run in the names of options."""


def load(path: str | PathLike[str]) -> dict[str, Config]:
    """Load and check the experiment of a file; that of a study is all of its runs.

    The file's folder is appended to `sys.path`, so that an experiment may import its neighbours
    and name a verifier beside it.
    Raises ConfigError for every error; it names the file and, for what is raised inside it, the
    line.
    """
    path = Path(path)
    experiment = _returned(path, ("experiment", "study"))
    with _named(path):
        if isinstance(experiment, Study):
            experiment = experiment.runs()
        if not isinstance(experiment, Mapping):
            raise ConfigError(
                f"experiment() returned {type(experiment).__name__}: a dict of named Configs is "
                "expected."
            )
        check(experiment)
    return dict(experiment)


def load_study(path: str | PathLike[str]) -> Study:
    """Load and check the study of a file, as `load` does an experiment."""
    path = Path(path)
    study = _returned(path, ("study",))
    with _named(path):
        if not isinstance(study, Study):
            raise ConfigError(f"study() returned {type(study).__name__}: a Study is expected.")
        check(study.runs())
    return study


def _returned(path: Path, functions: Sequence[str]) -> Any:
    """What the first of these functions that the file has returns."""
    if not path.is_file():
        near = suggest(str(path), [str(other) for other in path.parent.glob("*.py")])
        raise ConfigError(f"experiment file {path} does not exist{near}")
    if path.suffix != ".py":
        raise ConfigError(f"{path} is not an experiment: a Python file, NAME.py, is expected.")
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    return _call(path, functions)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors in what a file's function returned name the file."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except Exception as error:  # of values of other types, which may raise at any use
        raise ConfigError(f"{path}: experiment() returned what fails ({_told(error)}).") from error


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


def override(
    experiment: Experiment, values: Mapping[str, Any], mark: str = ""
) -> dict[str, Config]:
    """The experiment with fields of its runs replaced, all at once, and checked again as a whole.

    Args:
        experiment: named runs.
        values: by `RUN.field` or `RUN.section.field`; `all.` in place of a run's name stands for
            every run, of a section's field for those with the section where there are any, and
            what is given for a run itself wins. A section that is None is added
            when all its fields without a default are given. A list stands for a tuple.
        mark: what stands before a name in messages: `--` on the command line.

    Raises ConfigError where a name, a value or the outcome is wrong.
    """
    changes: dict[str, dict[str, tuple[str, Any]]] = {run: {} for run in experiment}
    for name in sorted(values, key=lambda name: not str(name).startswith(f"{ALL}.")):
        if not isinstance(name, str):
            raise ConfigError(f"options name fields as text, such as 'all.steps'; found {name!r}.")
        run, field = locate(experiment, name, mark)
        value = tuple(values[name]) if isinstance(values[name], list) else values[name]
        for each in _having(experiment, field) if run == ALL else (run,):
            changes[each][field] = (name, value)
    changed: dict[str, Config] = {}
    for run, given in changes.items():
        _check_added(run, experiment[run], given, mark)
        try:
            for field, (_, value) in given.items():
                check_value(field, value)
            changed[run] = replace_fields(
                experiment[run], {field: value for field, (_, value) in given.items()}
            )
        except ConfigError as error:
            raise ConfigError(f"{run}: {error}") from error
    check(changed)
    return changed


def locate(experiment: Experiment, name: str, mark: str = "") -> tuple[str, str]:
    """(run or `all`, dotted field) of an option's name; ConfigError when there is no such field."""
    run, _, field = name.partition(".")
    known = run in experiment or run == ALL
    if known and field in field_types():
        return run, field
    if known and field in section_types():
        first = next(iter(typing.get_type_hints(section_types()[field])))
        raise ConfigError(
            f"{mark}{name} is a section: name one of its fields, such as {mark}{name}.{first}."
        )
    # Fields of sections that a run leaves out are no suggestion.
    valid = [f"{mark}{ALL}.{field}" for field in field_types()] if run == ALL else []
    valid += [
        f"{mark}{run}.{field}"
        for run, config in experiment.items()
        for field in flatten(config)
        if field in field_types()
    ]
    raise ConfigError(f"unknown option {mark}{name}{suggest(f'{mark}{name}', valid)}")


def _having(experiment: Experiment, field: str) -> list[str]:
    """The runs that have the field's section, or all where none has."""
    section, dot, _ = field.partition(".")
    having = [run for run, config in experiment.items() if dot and getattr(config, section)]
    return having or list(experiment)


def _check_added(run: str, config: Config, given: Mapping[str, tuple[str, Any]], mark: str) -> None:
    """ConfigError where fields are given of a section that is None, and not all that it needs."""
    for field, (name, _) in given.items():
        section, dot, _ = field.partition(".")
        if not dot or getattr(config, section) is not None:
            continue
        kind = section_types()[section]
        needed = [f"{section}.{one.name}" for one in fields(kind) if _has_no_default(one)]
        lacking = [f"{mark}{run}.{one}" for one in needed if one not in given]
        if lacking:
            raise ConfigError(
                f"{mark}{name}: run {run} (method {config.row.name}) has no section {section}: "
                f"give {' and '.join(lacking)} too to add it, or leave the option out."
            )


def _has_no_default(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _call(path: Path, functions: Sequence[str]) -> Any:
    try:
        # Compiled here, because the import system may take a file just rewritten for its old
        # bytecode.
        code = compile(path.read_bytes(), str(path), "exec")
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno or 1}: {error.msg} (syntax error).") from error
    except (OSError, ValueError, RecursionError, MemoryError) as error:  # a NUL, 5,000 brackets
        raise ConfigError(f"{path}: cannot be read as Python ({_told(error)}).") from error
    module = types.ModuleType(f"experiment_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up there
    try:
        exec(code, module.__dict__)
        for name in functions:
            if callable(function := getattr(module, name, None)):
                return function()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a file may also call sys.exit
        said = _text(error) if isinstance(error, ConfigError) else _told(error)
        raise ConfigError(f"{_last_line(path, error)}: {said}") from error
    what = {"experiment": "the named runs", "study": "a Study"}[functions[0]]
    raise ConfigError(f"{path} has no function {functions[0]}(): define it to return {what}.")


def _last_line(path: Path, error: BaseException) -> str:
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
    if len(name.encode()) > _LONGEST_NAME:
        raise ConfigError(
            f"run name {name[:20]}... has {len(name)} letters: it names files, so at most "
            f"{_LONGEST_NAME} are expected."
        )
    if name == "plots":
        raise ConfigError("run name plots is the report's folder of figures: choose another.")
    if name == ALL:
        raise ConfigError(f"run name {ALL} stands for every run in options: choose another.")


def _check_starts(experiment: Experiment) -> None:
    earlier: dict[str, Config] = {}
    for name, config in experiment.items():
        kind, _, target = config.init_from.partition(":")
        start, at, which = target.partition("@")
        if kind == "run":
            if start not in earlier:
                raise ConfigError(
                    f"{name}: init_from is {config.init_from!r}, which names no earlier run"
                    f"{suggest_or_list(start, earlier)}"
                )
            _check_same_policy(name, config, start, earlier[start])
            if at:
                _check_step(name, config.init_from, which, earlier[start])
        earlier[name] = config


def _check_step(name: str, init_from: str, which: str, start_config: Config) -> None:
    steps, evaluated = start_config.steps, start_config.evaluation.every_steps
    if which == "best":
        problem = "" if evaluated else "and that run evaluates no step (evaluation.every_steps)"
    else:
        problem = "" if which.isdecimal() and int(which) <= steps else f"and it has {steps} steps"
    if problem:
        raise ConfigError(
            f"{name}: init_from is {init_from!r} {problem}: run:NAME, run:NAME@STEP or "
            "run:NAME@best is expected."
        )


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


def _told(error: BaseException) -> str:
    """The error's type and what it says, if anything."""
    text = _text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _text(error: BaseException) -> str:
    """What an error says, nothing where that is an error of its own."""
    try:
        return " ".join(str(error).split())
    except Exception:
        return ""
