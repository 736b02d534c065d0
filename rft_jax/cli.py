"""The command line: run an experiment, report on a workdir, use a checkpoint.

jax is imported only once there is something to compute, so that help and errors come at once.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rft_jax import experiments, scoring, scoring_options, typed_options
from rft_jax.config import Config, ConfigError, MeshConfig
from rft_jax.experiments import Option, parse_options
from rft_jax.fields import suggest
from rft_jax.options import Asking, ConvertOptions, EvaluateOptions, SampleOptions, VerifyOptions
from rft_jax.provenance import check_same_config, write_atomically

if TYPE_CHECKING:
    from rft_jax.asking import Asked
    from rft_jax.policies import Policy

USAGE = """\
usage: rft-jax run EXPERIMENT [--workdir DIR] [--only RUN ...] [--RUN.field value ...]
       rft-jax report WORKDIR
       rft-jax tokenizer EXPERIMENT [--workdir DIR]
       rft-jax sample CHECKPOINT --questions SOURCE --out FILE.jsonl [options]
       rft-jax evaluate CHECKPOINT --questions SOURCE --out FOLDER [options]
       rft-jax convert CHECKPOINT OUT [options]
       rft-jax verify FILE.jsonl --out VERDICTS.jsonl [options]
       rft-jax --version

  run        carry out the runs of an experiment file, or go on with them, and write the report
  report     write the report of a workdir again
  tokenizer  train the experiment's tokenizer
  sample     sample outputs of questions from a finished run or a published model
  evaluate   measure greedy accuracy, pass@k and maj@k of one, with intervals
  convert    write one in the Hugging Face format, for transformers, vLLM and others
  verify     score rows of {"reference": ..., "output": ...}

  --workdir DIR  where everything is written; runs/NAME for an experiment file NAME.py
  --only RUN     carry out these runs only

`rft-jax run EXPERIMENT --help` lists every field of every run, and `rft-jax COMMAND --help` every
option of sample, evaluate, convert and verify."""

_RUN_USAGE = "rft-jax run EXPERIMENT [--workdir DIR] [--only RUN ...]"
_RUN_DESCRIPTION = """\
Carry out the runs of an experiment file one after another, or go on with them, and write the
report. --workdir DIR: where everything is written. --only RUN ...: carry out these runs only.
The fields below are those of the experiment file, with the values they have there."""

CACHE_DIR = "~/.cache/rft_jax/xla"
"""Compiled programs, kept between starts; JAX_COMPILATION_CACHE_DIR names another folder."""
CACHE_MIN_SECONDS = 0.5
"""Shortest compilation that is kept; JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS sets another."""

_TYPED: Mapping[str, tuple[type, str]] = {
    "sample": (SampleOptions, "rft-jax sample CHECKPOINT --questions SOURCE --out FILE.jsonl"),
    "evaluate": (EvaluateOptions, "rft-jax evaluate CHECKPOINT --questions SOURCE --out FOLDER"),
    "convert": (ConvertOptions, "rft-jax convert CHECKPOINT OUT"),
    "verify": (VerifyOptions, "rft-jax verify FILE.jsonl --out VERDICTS.jsonl"),
}
"""Commands whose options are a dataclass: that, and how they are called."""

_HELP = ("-h", "--help")

logger = logging.getLogger(__name__)


class _StderrHandler(logging.Handler):
    """Writes to sys.stderr as it is at each record: a progress bar puts its own there."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class _Arguments(NamedTuple):
    """What follows EXPERIMENT. rest: the options that are fields of runs."""

    workdir: Path
    only: tuple[str, ...]
    rest: tuple[Option, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command. Returns the exit status: 0; 2 for an error that the user can mend;
    128 + the signal that stopped a run."""
    args = list(sys.argv[1:] if argv is None else argv)
    _configure_logging()
    try:
        return _dispatch(args)
    except ValueError as error:
        if not _is_ours(error):
            raise
        print(f"rft-jax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        then = "nothing is written" if args[0] in _TYPED else "the same command goes on"
        print(f"rft-jax: interrupted; {then}.", file=sys.stderr)
        return 128 + signal.SIGINT


def _dispatch(args: list[str]) -> int:
    if not args:
        raise ConfigError(f"no command: one of {', '.join(_COMMANDS)} is expected; see --help.")
    command, *rest = args
    if command in _HELP:
        print(USAGE)
        return 0
    if command == "--version":
        print(f"rft-jax {importlib.metadata.version('rft_jax')}")
        return 0
    if command not in _COMMANDS:
        raise ConfigError(f"unknown command {command!r}{suggest(command, _COMMANDS)}")
    if command in _TYPED and any(arg in _HELP for arg in rest):
        kind, usage = _TYPED[command]
        print(typed_options.help_text(kind, f"{usage} [options]"))
        return 0
    if rest and rest[0] in _HELP:
        print(USAGE)
        return 0
    return _COMMANDS[command](rest)


def _run(args: list[str]) -> int:
    path, rest = _first(args, "run", "EXPERIMENT")
    experiment = experiments.load(Path(path))
    if any(arg in _HELP for arg in rest):
        experiments.print_help(experiment, usage=_RUN_USAGE, description=_RUN_DESCRIPTION)
        return 0
    arguments = _arguments(Path(path), rest, only=True)
    experiment = experiments.apply_options(experiment, arguments.rest, ("--workdir", "--only"))
    selected = _select(experiment, arguments.only)
    workdir = arguments.workdir
    _claim(workdir, Path(path))
    for name in selected:
        check_same_config(workdir / name, experiment[name])
    _save_experiment(workdir, Path(path), experiment)

    from rft_jax.parallel.processes import is_main
    from rft_jax.run import run

    configs = [experiment[name] for name in selected]
    _enable_compilation_cache()
    _split_cpu(
        [config.mesh for config in configs],
        [config.update.rows_per_microbatch for config in configs],
    )
    for name in selected:
        result = run(name, experiment, workdir)
        if not result.finished:
            print(
                f"rft-jax: run {name} is stopped and saved; the same command goes on with it.",
                file=sys.stderr,
            )
            return 128 + (result.stopped_by or signal.SIGINT)
        if result.steps_done == 0:
            logger.info("%s: already finished", name)
    if is_main():
        _write_report(workdir)
    return 0


def _report(args: list[str]) -> int:
    workdir, rest = _first(args, "report", "WORKDIR")
    _nothing_more(parse_options(rest), ())
    _write_report(Path(workdir))
    return 0


def _tokenizer(args: list[str]) -> int:
    path, rest = _first(args, "tokenizer", "EXPERIMENT")
    experiment = experiments.load(Path(path))
    arguments = _arguments(Path(path), rest, only=False)
    _nothing_more(arguments.rest, ("--workdir",))
    training = [config for config in experiment.values() if not config.tokenizer.path]
    if not training:
        raise ConfigError(f"{path}: every run loads its tokenizer.path: there is none to train.")
    _claim(arguments.workdir, Path(path))

    from rft_jax.setup import ensure_tokenizer

    tokenizer = ensure_tokenizer(training[0], arguments.workdir)
    print(f"{arguments.workdir / 'tokenizer.model'}: {tokenizer.vocab_size} pieces")
    return 0


def _verify(args: list[str]) -> int:
    path, rest = _first(args, "verify", "FILE.jsonl")
    options = typed_options.read(VerifyOptions, parse_options(rest))
    spec, limits = scoring_options.judge(options.judging)
    scores = scoring.score_file(Path(path), options.out, spec, limits, skip_bad=options.skip_bad)
    print(scoring.table(scores))
    print(f"comparison: {spec.comparison}\nverdicts: {options.out}")
    return 0


def _sample(args: list[str]) -> int:
    target, rest = _first(args, "sample", "CHECKPOINT")
    options = typed_options.read(SampleOptions, parse_options(rest))
    policy, asked = _ask(target, options.asking)
    from rft_jax.sampling_command import sample

    done = sample(policy, asked, options)
    print(
        f"{done.outputs:,} outputs, {done.tokens:,} tokens, "
        f"{done.truncated:,} outputs truncated: {options.out}"
    )
    return 0


def _evaluate(args: list[str]) -> int:
    target, rest = _first(args, "evaluate", "CHECKPOINT")
    options = typed_options.read(EvaluateOptions, parse_options(rest))
    policy, asked = _ask(target, options.asking)
    from rft_jax.evaluating_command import evaluate, table

    print(table(evaluate(policy, asked, options)))
    print(f"results: {options.out}")
    return 0


def _ask(target: str, asking: Asking) -> tuple[Policy, Asked]:
    """The checkpoint and what it is asked, all that can be checked before device work; and jax set
    up for them."""
    from rft_jax.asking import ask
    from rft_jax.policies import find

    policy = find(target, asking.compute_dtype)
    asked = ask(asking, policy)
    _enable_compilation_cache()
    _split_cpu([asked.mesh], [])
    return policy, asked


def _convert(args: list[str]) -> int:
    target, rest = _first(args, "convert", "CHECKPOINT")
    out, rest = _first(rest, f"convert {target}", "OUT")
    options = typed_options.read(ConvertOptions, parse_options(rest))
    from rft_jax import policies

    policy = policies.find(target)
    from rft_jax.converting_command import convert

    done = convert(policy, Path(out), options)
    print(f"{done.parameters:,} parameters in {done.dtype}: {out}")
    return 0


_COMMANDS: Mapping[str, Callable[[list[str]], int]] = {
    "run": _run,
    "report": _report,
    "tokenizer": _tokenizer,
    "sample": _sample,
    "evaluate": _evaluate,
    "convert": _convert,
    "verify": _verify,
}


def _first(args: list[str], command: str, expected: str) -> tuple[str, list[str]]:
    """The argument that must follow a command, and the rest."""
    if not args or args[0].startswith("-"):
        found = args[0] if args else "nothing"
        raise ConfigError(
            f"rft-jax {command} is followed by {found}: {expected} is expected; see --help."
        )
    return args[0], args[1:]


def _arguments(experiment: Path, args: Sequence[str], *, only: bool) -> _Arguments:
    workdir = Path("runs") / experiment.stem
    selected: tuple[str, ...] = ()
    rest: list[Option] = []
    for option in parse_options(args):
        if option.name == "workdir":
            if len(option.values) != 1 or not option.values[0]:
                found = " ".join(option.values) or "none"
                raise ConfigError(f"--workdir takes one folder, found {found}.")
            workdir = Path(option.values[0])
        elif option.name == "only" and only:
            if not option.values:
                raise ConfigError("--only takes the names of runs, found none.")
            selected = (*selected, *option.values)
        else:
            rest.append(option)
    return _Arguments(workdir, selected, tuple(rest))


def _nothing_more(options: Sequence[Option], valid: Sequence[str]) -> None:
    for option in options:
        raise ConfigError(f"unknown option --{option.name}{suggest(f'--{option.name}', valid)}")


def _select(experiment: Mapping[str, Config], only: Sequence[str]) -> list[str]:
    """The runs to carry out, in the experiment's order."""
    for name in only:
        if name not in experiment:
            raise ConfigError(f"--only names {name!r}, which is no run{suggest(name, experiment)}")
    return [name for name in experiment if not only or name in only]


def _claim(workdir: Path, path: Path) -> None:
    """ConfigError when the workdir cannot be this experiment's."""
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir {workdir} is a file: a folder is expected.")
    saved = workdir / "experiment.json"
    if not saved.exists():
        return
    try:
        name = json.loads(saved.read_text(encoding="utf-8"))["experiment"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{saved} is damaged: remove it or use another --workdir.") from error
    if name != path.name:
        raise ConfigError(
            f"{workdir} holds experiment {name}, not {path.name}: use another --workdir."
        )


def _save_experiment(workdir: Path, path: Path, experiment: Mapping[str, Config]) -> None:
    """WORKDIR/experiment.json: the file's name and the runs in order."""
    content = {"experiment": path.name, "runs": list(experiment)}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(workdir / "experiment.json", json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(
            f"--workdir {workdir}: cannot write here ({error.strerror}): use another --workdir."
        ) from error


def _write_report(workdir: Path) -> None:
    from rft_jax.report.html import write_report
    from rft_jax.report.tables import summary_table

    path = write_report(workdir)
    print(summary_table(workdir))
    print(f"\nreport: {path}")


def _configure_logging() -> None:
    """Standard logging to stderr: this package from INFO, others (absl too) from WARNING."""
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("rft_jax").setLevel(logging.INFO)


def _enable_compilation_cache() -> None:
    """Keep compiled programs between starts, unless the environment says otherwise."""
    import jax

    settings: dict[str, str | float] = {
        "jax_compilation_cache_dir": str(Path(CACHE_DIR).expanduser()),
        "jax_persistent_cache_min_compile_time_secs": CACHE_MIN_SECONDS,
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)


def _split_cpu(meshes: Sequence[MeshConfig], rows: Sequence[int]) -> None:
    """Where there is no accelerator, one simulated device per core, as far as meshes and rows of
    micro-batches allow, unless the environment says how many."""
    import jax

    from rft_jax.parallel.mesh import cpu_device_count

    flags = os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in flags:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", cpu_device_count(meshes, rows, cores or 1))


def _is_ours(error: ValueError) -> bool:
    """True for this package's own errors, whose one line says what to mend; others are bugs."""
    return type(error).__module__.partition(".")[0] == "rft_jax"
