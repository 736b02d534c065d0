"""The command line: run an experiment, report on a workdir, use a checkpoint.

jax is imported only once there is something to compute, so that help and errors come at once.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rft_jax.checkpoint.provenance import check_same_config
from rft_jax.commands import plan_options, run_options, typed_options
from rft_jax.commands import verify as scoring
from rft_jax.commands import verify_options as scoring_options
from rft_jax.commands.options import (
    Asking,
    ConvertOptions,
    EvaluateOptions,
    SampleOptions,
    VerifyOptions,
)
from rft_jax.commands.plan_options import PlanOptions
from rft_jax.config import Config
from rft_jax.config import experiment as experiments
from rft_jax.config.experiment import Option, parse_options
from rft_jax.config.serialize import suggest
from rft_jax.errors import ConfigError, UserError
from rft_jax.io.paths import Folder, folder_of, on_disk

if TYPE_CHECKING:
    from rft_jax.checkpoint.policy import Policy
    from rft_jax.commands.ask import Asked

USAGE = """\
usage: rft-jax run EXPERIMENT [--workdir DIR] [--only RUN ...] [--profile steps FIRST..LAST]
                              [--RUN.field value ...]
       rft-jax plan EXPERIMENT [--topology NAME] [--search] [options] [--RUN.field value ...]
       rft-jax report WORKDIR
       rft-jax tokenizer EXPERIMENT [--workdir DIR]
       rft-jax sample CHECKPOINT --questions SOURCE --out FILE.jsonl [options]
       rft-jax evaluate CHECKPOINT --questions SOURCE --out FOLDER [options]
       rft-jax convert CHECKPOINT OUT [options]
       rft-jax verify FILE.jsonl --out VERDICTS.jsonl [options]
       rft-jax --version

  run        carry out the runs of an experiment file, or go on with them, and write the report
  plan       say whether runs fit TPUs or this machine, and how long they take, without running
  report     write the report of a workdir again
  tokenizer  train the experiment's tokenizer
  sample     sample outputs of questions from a finished run or a published model
  evaluate   measure greedy accuracy, pass@k and maj@k of one, with intervals
  convert    write one in the Hugging Face format, for transformers, vLLM and others
  verify     score rows of {"reference": ..., "output": ...}

  --workdir DIR  where everything is written; runs/NAME for an experiment file NAME.py
  --only RUN     carry out these runs only
  --profile steps FIRST..LAST  write a profiler trace of these steps into WORKDIR/RUN/profile
  --lost-after SECONDS     a job of several processes ends when one gives no sign of life so long;
                           60 without
  --stalled-after SECONDS  or when its work stands still so long; 3600 without

`rft-jax run EXPERIMENT --help` lists every field of every run, and `rft-jax COMMAND --help` every
option of plan, sample, evaluate, convert and verify."""

_RUN_USAGE = "rft-jax run EXPERIMENT [--workdir DIR] [--only RUN ...] [options]"
_RUN_DESCRIPTION = """\
Carry out the runs of an experiment file one after another, or go on with them, and write the
report. --workdir DIR: where everything is written. --only RUN ...: carry out these runs only.
--profile steps FIRST..LAST: write a profiler trace of these steps into WORKDIR/RUN/profile.
--lost-after, --stalled-after SECONDS: when a job of several processes ends (docs/launch.md).
The fields below are those of the experiment file, with the values they have there."""

_TYPED: Mapping[str, tuple[type, str]] = {
    "plan": (PlanOptions, "rft-jax plan EXPERIMENT [--RUN.field value ...]"),
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


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command. Returns the exit status: 0; 2 for an error that the user can mend;
    128 + the signal that stopped a run, or SIGPIPE where a reader such as head had enough."""
    args = list(sys.argv[1:] if argv is None else argv)
    _configure_logging()
    try:
        status = _dispatch(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        # What is not written yet would be an error again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(f"rft-jax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        then = "nothing is written" if args[0] in _TYPED else "the same command goes on"
        print(f"rft-jax: interrupted; {then}.", file=sys.stderr)
        return 128 + signal.SIGINT


def _nobody_reads() -> bool:
    """Whether it is stdout whose reader is gone."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


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
    arguments = run_options.read(Path(path), rest, of_run=True)
    experiment = experiments.apply_options(experiment, arguments.rest, run_options.OWN)
    selected = _select(experiment, arguments.only)
    run_options.check_profile(arguments.profile, experiment, selected)
    workdir = arguments.workdir
    _claim(workdir, Path(path))
    for name in selected:
        check_same_config(workdir / name, experiment[name])

    from rft_jax.commands import run as running_command

    return running_command.carry_out(
        Path(path), experiment, selected, arguments, report=_write_report
    )


def _plan(args: list[str]) -> int:
    path, rest = _first(args, "plan", "EXPERIMENT")
    experiment = experiments.load(Path(path))
    options, changes = plan_options.read(rest)
    experiment = experiments.apply_options(experiment, changes)
    selected = {name: experiment[name] for name in _select(experiment, options.only)}
    from rft_jax.commands.plan import keep_to_the_cpu, plan_all
    from rft_jax.distributed.process import split_cpu

    if options.topology or options.device:
        keep_to_the_cpu()
    else:
        configs = selected.values()
        rows = [config.update.rows_per_microbatch for config in configs]
        split_cpu([config.mesh for config in configs], rows)
    plans = plan_all(selected, options)
    return int(not all(plan["memory"]["fits"] for plan in plans))


def _report(args: list[str]) -> int:
    workdir, rest = _first(args, "report", "WORKDIR")
    _nothing_more(parse_options(rest), ())
    _write_report(folder_of(workdir))
    return 0


def _tokenizer(args: list[str]) -> int:
    path, rest = _first(args, "tokenizer", "EXPERIMENT")
    experiment = experiments.load(Path(path))
    arguments = run_options.read(Path(path), rest, of_run=False)
    _nothing_more(arguments.rest, ("--workdir",))
    training = [config for config in experiment.values() if not config.tokenizer.path]
    if not training:
        raise ConfigError(f"{path}: every run loads its tokenizer.path: there is none to train.")
    _claim(arguments.workdir, Path(path))

    from rft_jax.runs.setup import ensure_tokenizer

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
    from rft_jax.commands.sample import sample

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
    from rft_jax.commands.evaluate import evaluate, table

    print(table(evaluate(policy, asked, options)))
    print(f"results: {options.out}")
    return 0


def _ask(target: str, asking: Asking) -> tuple[Policy, Asked]:
    """The checkpoint and what it is asked, all that can be checked before device work; and jax set
    up for them."""
    from rft_jax.checkpoint.policy import find
    from rft_jax.commands.ask import ask

    policy = find(target, asking.compute_dtype)
    asked = ask(asking, policy)
    from rft_jax.distributed.process import keep_programs, split_cpu

    keep_programs()
    split_cpu([asked.mesh], [])
    return policy, asked


def _convert(args: list[str]) -> int:
    target, rest = _first(args, "convert", "CHECKPOINT")
    out, rest = _first(rest, f"convert {target}", "OUT")
    options = typed_options.read(ConvertOptions, parse_options(rest))
    from rft_jax.checkpoint import policy as policies

    policy = policies.find(target)
    from rft_jax.commands.convert import convert

    done = convert(policy, on_disk(out, "OUT"), options)
    print(f"{done.parameters:,} parameters in {done.dtype}: {out}")
    return 0


_COMMANDS: Mapping[str, Callable[[list[str]], int]] = {
    "run": _run,
    "plan": _plan,
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


def _nothing_more(options: Sequence[Option], valid: Sequence[str]) -> None:
    for option in options:
        raise ConfigError(f"unknown option --{option.name}{suggest(f'--{option.name}', valid)}")


def _select(experiment: Mapping[str, Config], only: Sequence[str]) -> list[str]:
    """The runs to carry out, in the experiment's order."""
    for name in only:
        if name not in experiment:
            raise ConfigError(f"--only names {name!r}, which is no run{suggest(name, experiment)}")
    return [name for name in experiment if not only or name in only]


def _claim(workdir: Folder, path: Path) -> None:
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


def _write_report(workdir: Folder) -> None:
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
