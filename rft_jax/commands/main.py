"""The command line: reads a command, calls what does it, prints, and maps errors to exit statuses.

jax is imported only once there is something to compute, so that help and errors come at once.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import select
import signal
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from rft_jax.commands import args, methods, report, verify
from rft_jax.commands import run as running
from rft_jax.commands.options import (
    RESULTS,
    ConvertOptions,
    EvaluateOptions,
    MethodsOptions,
    PlanCommand,
    ReportOptions,
    RunOptions,
    SampleOptions,
    StudyOptions,
    TokenizerOptions,
    VerifyOptions,
)
from rft_jax.config import experiment as experiments
from rft_jax.config.serialize import suggest
from rft_jax.config.steps import parse_steps
from rft_jax.distributed.watchdog import EXIT_LOST, Limits
from rft_jax.errors import ConfigError, TemporaryError, UserError, out_of_memory
from rft_jax.hub.folder import require_fresh
from rft_jax.io.paths import Folder, check_folder, check_new, folder_of, storing

_HELP = ("-h", "--help")

logger = logging.getLogger(__name__)


class _StderrHandler(logging.Handler):
    """Writes to sys.stderr as it is at each record: a progress bar puts its own there."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one command. Returns the exit status: 0; 1 for a plan that does not fit; 2 for an
    error that the user can fix; 75 for one of the machine, after which it may be tried again; 128 +
    the signal that stopped a run, or SIGPIPE where a reader such as head had enough."""
    words = list(sys.argv[1:] if argv is None else argv)
    _replace_closed_streams()
    with contextlib.redirect_stderr(typing.cast(TextIO, _Stderr(sys.stderr))):
        _configure_logging()
        return _carry_out(words)


def _carry_out(words: list[str]) -> int:
    try:
        status = _dispatch(words)
        _flush()
        return status
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        _drop_stdout()
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(f"rft-jax: error: {error}", file=sys.stderr)
        return EXIT_LOST if isinstance(error, TemporaryError) else 2
    except OSError as error:
        if not error.filename:
            raise
        print(f"rft-jax: error: {error.filename}: {error.strerror}.", file=sys.stderr)
        return 2
    except SystemExit as error:
        print(
            f"rft-jax: error: a module or function of yours called sys.exit({error.code!r}): have "
            "it raise an error that says what is wrong.",
            file=sys.stderr,
        )
        return 2
    except Exception as error:
        module = type(error).__module__.partition(".")[0]
        if module in ("aiohttp", "gcsfs", "google"):
            told: UserError = TemporaryError(
                f"the bucket cannot be reached ({type(error).__name__}: {error}): check its name, "
                "the network and the credentials."
            )
        elif out_of_memory(error):
            told = UserError(
                f"out of memory ({str(error) or type(error).__name__}): lower what is computed at "
                "a time or split it over more devices; `rft-jax plan` counts what a run needs."
            )
        else:
            raise
        print(f"rft-jax: error: {told}", file=sys.stderr)
        return EXIT_LOST if isinstance(told, TemporaryError) else 2
    except KeyboardInterrupt:
        resumes = words[0] in ("run", "study")
        then = "the same command resumes it" if resumes else "nothing is written"
        print(f"rft-jax: interrupted; {then}.", file=sys.stderr)
        return 128 + signal.SIGINT


class _Stderr:
    """A stream to stderr. When nothing reads it any more, since its terminal is closed, its reader
    ended or its disk is full, that stops no work."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def _replace_closed_streams() -> None:
    """Have /dev/null stand in for standard streams that are closed: the next file opened would be
    one of them, and get what is printed."""
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number free
        if getattr(sys, name) is None:
            # Of that number: a new one would take that of the next stream that is closed.
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _flush() -> None:
    """Write out stdout. Raises TemporaryError where that fails, but for a reader that is gone."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop_stdout()
        raise TemporaryError(
            f"stdout cannot be written ({error.strerror}): the command itself is done; send its "
            "output elsewhere."
        ) from error


def _drop_stdout() -> None:
    # What is not written yet would be an error again when the process ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _nobody_reads() -> bool:
    """Whether it is stdout whose reader is gone."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _dispatch(words: Sequence[str]) -> int:
    if not words:
        raise ConfigError(f"no command: one of {', '.join(_COMMANDS)} is expected; see --help.")
    command, *rest = words
    if command in _HELP:
        args.print_help_of_commands({name: kind for name, (kind, _) in _COMMANDS.items()})
        return 0
    if command == "--version":
        print(f"rft-jax {importlib.metadata.version('rft_jax')}")
        return 0
    if command not in _COMMANDS:
        raise ConfigError(f"unknown command {command!r}{suggest(command, _COMMANDS)}")
    kind, carry_out = _COMMANDS[command]
    asked = next((place for place, word in enumerate(rest) if word in _HELP), None)
    if asked is None:
        options: Any
        options, fields = args.read(kind, rest, command)
        with storing(getattr(options, "out", Path())):
            return carry_out(options, fields)
    if command in ("run", "plan") and not rest[0].startswith("-"):
        section = rest[asked + 1] if asked + 1 < len(rest) else ""
        experiment = experiments.load(Path(rest[0]))
        args.print_help_of_runs(kind, command, experiment, "" if section[:1] == "-" else section)
    else:
        args.print_help(kind, command)
    return 0


def _run(options: RunOptions, fields: Sequence[args.Option]) -> int:
    experiment = args.apply(experiments.load(options.experiment), fields)
    results = running.carry_out(
        experiment,
        options.experiment.name,
        _workdir(options, options.experiment),
        options.only,
        parse_steps(options.profile) if options.profile else None,
        Limits(options.lost_after, options.stalled_after),
        print,
        options.accept_changed,
    )
    name, last = list(results.items())[-1]
    return 0 if last.finished else _stopped(name, last.stopped_by)


def _stopped(name: str, number: int) -> int:
    """Say that a run is stopped; the exit status."""
    from rft_jax.distributed.collectives import is_main

    if is_main():
        print(
            f"rft-jax: run {name} is stopped and saved; the same command resumes it.",
            file=sys.stderr,
        )
    return 128 + (number or signal.SIGINT)


def _study(options: StudyOptions, fields: Sequence[args.Option]) -> int:
    from rft_jax.commands import study as studies  # which imports numpy

    path = options.study
    if path.suffix == ".json":
        if fields or options != StudyOptions(path):
            raise ConfigError(f"{path} holds results, which are drawn: no option acts.")
        studies.draw(path)
        return 0
    study = experiments.load_study(path)
    changed = args.apply({**study.starts, **study.arms}, fields)
    study = replace(
        study,
        starts={name: changed[name] for name in study.starts},
        arms={name: changed[name] for name in study.arms},
        seeds=options.seeds or study.seeds,
    )
    workdir = _workdir(options, path)
    if options.only:
        results = running.carry_out(study.runs(), path.name, workdir, options.only)
        name, last = list(results.items())[-1]
        return 0 if last.finished else _stopped(name, last.stopped_by)
    given = [word for option in fields for word in (f"--{option.name}", *option.values)]
    command = [sys.executable, "-m", "rft_jax", "study", str(path), "--workdir", str(workdir)]
    stopped = studies.carry_out(
        study,
        path.name,
        workdir,
        command=[*command, "--seeds", str(study.seeds), *given],
        at_once=options.at_once,
        report_only=options.report_only,
    )
    return _stopped(*stopped) if stopped else 0


def _plan(options: PlanCommand, fields: Sequence[args.Option]) -> int:
    experiment = args.apply(experiments.load(options.experiment), fields)
    planning = options.planning
    selected = {name: experiment[name] for name in running.select(experiment, planning.only)}
    running.import_jax()
    from rft_jax.commands.plan import keep_to_the_cpu, plan_all
    from rft_jax.distributed.process import split_cpu

    if planning.topology or planning.device:
        keep_to_the_cpu()
    else:
        configs = selected.values()
        rows = [config.update.rows_per_microbatch for config in configs]
        split_cpu([config.mesh for config in configs], rows)
    plans = plan_all(selected, planning)
    return int(not all(plan["memory"]["fits"] for plan in plans))


def _report(options: ReportOptions, fields: Sequence[args.Option]) -> int:
    _no_fields(fields)
    report.write(folder_of(options.workdir), print)
    return 0


def _methods(options: MethodsOptions, fields: Sequence[args.Option]) -> int:
    _no_fields(fields)
    given, group = options.differences, 8 if options.group is None else options.group
    if not given and options.picture is None and options.group is not None:
        raise ConfigError(
            "--group does nothing without --differences or --picture: name two methods or a file."
        )
    if options.picture is not None:
        from rft_jax.commands import methods_picture

        methods_picture.draw(options.picture, group)
    if given or options.picture is None:
        print(methods.differences(given, group) if given else methods.table())
    return 0


def _tokenizer(options: TokenizerOptions, fields: Sequence[args.Option]) -> int:
    _no_fields(fields)
    experiment = experiments.load(options.experiment)
    workdir = _workdir(options, options.experiment)
    pieces = running.train_tokenizer(options.experiment, experiment, workdir)
    print(f"{workdir / 'tokenizer.model'}: {pieces} pieces")
    return 0


def _verify(options: VerifyOptions, fields: Sequence[args.Option]) -> int:
    _no_fields(fields)
    spec, limits = verify.judge(options.judging)
    scores = verify.score_file(options.file, options.out, spec, limits, skip_bad=options.skip_bad)
    print(verify.table(scores))
    print(f"comparison: {spec.comparison}\nverdicts: {options.out}")
    return 0


def _sample(options: SampleOptions, fields: Sequence[args.Option]) -> int:
    _no_fields(fields)
    check_new(options.out)
    from rft_jax.commands.policy import open_policy, prepare

    policy = open_policy(options.opening.checkpoint, options.opening.compute_dtype).policy
    asked = prepare(options.asking, policy)
    running.import_jax()
    from rft_jax.commands.sample import sample

    done = sample(policy, asked, options.drawing, options.out)
    print(
        f"{done.outputs:,} outputs, {done.tokens:,} tokens, "
        f"{done.truncated:,} outputs truncated: {options.out}"
    )
    return 0


def _evaluate(options: EvaluateOptions, fields: Sequence[args.Option]) -> int:
    _no_fields(fields)
    check_folder(options.out, RESULTS)
    from rft_jax.commands.policy import open_policy, prepare

    policy = open_policy(options.opening.checkpoint, options.opening.compute_dtype).policy
    asked = prepare(options.asking, policy, judging=options.measuring.judging)
    running.import_jax()
    from rft_jax.commands.evaluate import write

    print(write(policy, asked, options.measuring, options.out))
    print(f"results: {options.out}")
    return 0


def _convert(options: ConvertOptions, fields: Sequence[args.Option]) -> int:
    _no_fields(fields)
    require_fresh(options.out)
    from rft_jax.commands.policy import open_policy

    policy = open_policy(options.checkpoint).policy
    others = [(open_policy(name).policy, weight) for name, weight in options.averaged.items()]
    running.import_jax()
    from rft_jax.commands.convert import convert

    done = convert(policy, options, others)
    print(f"{done.parameters:,} parameters in {done.dtype}: {options.out}")
    return 0


_COMMANDS: Mapping[str, tuple[type, Callable[[Any, Sequence[args.Option]], int]]] = {
    "run": (RunOptions, _run),
    "study": (StudyOptions, _study),
    "plan": (PlanCommand, _plan),
    "report": (ReportOptions, _report),
    "methods": (MethodsOptions, _methods),
    "tokenizer": (TokenizerOptions, _tokenizer),
    "sample": (SampleOptions, _sample),
    "evaluate": (EvaluateOptions, _evaluate),
    "convert": (ConvertOptions, _convert),
    "verify": (VerifyOptions, _verify),
}
"""What each command takes, and what does it with that and the options that are fields of runs."""


def _no_fields(fields: Sequence[args.Option]) -> None:
    for option in fields:
        raise ConfigError(f"unknown option --{option.name}.")


def _workdir(options: RunOptions | TokenizerOptions | StudyOptions, path: Path) -> Folder:
    if options.workdir == "":
        raise ConfigError("--workdir takes one folder, found none.")
    return folder_of(options.workdir or Path("runs") / path.stem)


def _configure_logging() -> None:
    """Standard logging to stderr: this package from INFO, others (absl too) from WARNING."""
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("rft_jax").setLevel(logging.INFO)
