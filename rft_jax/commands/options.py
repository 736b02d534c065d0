"""What each command takes: a dataclass each, which args.py reads and lists. No jax.

A field is the option `--its_name` with its docstring as help; one marked Positional stands without
a name; a field that is a dataclass itself stands for its own fields.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from rft_jax.config.serialize import suggest
from rft_jax.errors import ConfigError
from rft_jax.verification.rules import BUILT_IN, RANDOM

ComputeDtype = Literal["float32", "bfloat16"]
RESULTS = ("metrics.json", "questions.jsonl", "outputs.jsonl")
"""Files of an evaluation."""


def _at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value}: it must be at least {least}.")


def _positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}: it must be a positive number.")


@dataclass(frozen=True)
class RunOptions:
    """Carry out the runs of an experiment file one after another, or resume them, and write the
    report."""

    experiment: Positional[Path]
    """The experiment: a Python file, NAME.py."""
    workdir: str | None = None
    """Where everything is written: a folder or gs://BUCKET/FOLDER. Default: runs/NAME."""
    only: Annotated[tuple[str, ...], arg(metavar="RUN ...")] = ()
    """Carry out only these runs. Default: all."""
    profile: Annotated[tuple[str, ...], arg(metavar="steps FIRST..LAST")] = ()
    """Write a profiler trace of these steps into WORKDIR/RUN/profile. Default: none."""
    accept_changed: bool = False
    """Resume on data, a tokenizer, a start or code of other content than when the run began, which
    is refused otherwise; the report shows what was accepted at which step."""
    lost_after: float = 60.0
    """A job of several processes ends when one gives no sign of life for this many seconds."""
    stalled_after: float = 3600.0
    """It also ends when its work stands still for this many seconds."""

    def __post_init__(self) -> None:
        _positive(lost_after=self.lost_after, stalled_after=self.stalled_after)


@dataclass(frozen=True)
class PlanOptions:
    """Plan the runs of an experiment file without running them: memory, exchanges between devices
    and seconds of their programs, compiled from shapes only. The exit status is 1 if a run does
    not fit."""

    topology: str | None = None
    """Plan for a slice of TPUs by its compiler's name, such as v5e:4x4, with none at hand (needs
    libtpu). Default: the devices of this machine."""
    device: str | None = None
    """Plan for a number of chips, such as 8xh100 or t4, by counting. Default: this machine's."""
    counted: bool = False
    """With --topology: only count, and compile nothing."""
    search: bool = False
    """Rank all meshes over the devices by the count, and plan for the best."""
    compile: int = 1
    """With --search: how many of the best meshes are planned for."""
    whole: bool = False
    """Compile sampling's programs with all of their layers (minutes each), not with two."""
    only: Annotated[tuple[str, ...], arg(metavar="RUN ...")] = ()
    """Plan for these runs only. Default: all."""
    json: Path | None = None
    """File that is given the plans as JSON. Default: none."""
    mean_prompt_tokens: float | None = None
    """Mean length of prompts. Default: a third of the longest."""
    mean_output_tokens: float | None = None
    """Mean length of outputs. Default: half of the longest."""
    pass_rate: float = 0.5
    """Share of outputs that is accepted."""
    validation_questions: int = 256
    """Questions of one evaluation."""
    test_questions: int = 1319
    """Questions of the test."""

    def __post_init__(self) -> None:
        if self.topology and self.device:
            raise ConfigError(
                f"--topology is {self.topology} and --device is {self.device}: give one of them."
            )
        if self.counted and not self.topology:
            raise ConfigError("--counted says how a --topology is planned for: name one.")
        if not 0 <= self.pass_rate <= 1:
            raise ConfigError(f"--pass_rate is {self.pass_rate}: it must lie in [0, 1].")
        if self.compile < 1:
            raise ConfigError(f"--compile is {self.compile}: it must be at least 1.")
        for name in ("mean_prompt_tokens", "mean_output_tokens"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                raise ConfigError(f"--{name} is {value}: it must be at least 1.")


@dataclass(frozen=True)
class PlanCommand:
    __doc__ = PlanOptions.__doc__

    experiment: Positional[Path]
    """The experiment: a Python file, NAME.py."""
    planning: PlanOptions


@dataclass(frozen=True)
class ReportOptions:
    """Write the report of a workdir again: tables, plots and report.html."""

    workdir: Positional[str]
    """The workdir of an experiment: a folder or gs://BUCKET/FOLDER."""


@dataclass(frozen=True)
class StudyOptions:
    """Carry out a study or resume it: arms over seeds, their settings chosen on validation
    questions, then study.json, a table and a figure with intervals (docs/studies.md)."""

    study: Positional[Path]
    """The study: a Python file, NAME.py, with a function study(); or the study.json of one, whose
    table and figure are made again."""
    workdir: str | None = None
    """Where everything is written: a folder or gs://BUCKET/FOLDER. Default: runs/NAME."""
    seeds: int | None = None
    """How many seeds are compared; more may be asked for later. Default: the study's."""
    at_once: int = 1
    """Runs that are carried out at a time, each in a process of one CPU core."""
    report_only: bool = False
    """Make the results of the seeds that are finished, and carry out nothing."""
    only: Annotated[tuple[str, ...], arg(metavar="RUN ...")] = ()
    """Carry out only these runs, and make no results. Default: all that are needed."""

    def __post_init__(self) -> None:
        _at_least(1, seeds=self.seeds, at_once=self.at_once)
        if self.report_only and (self.only or self.at_once > 1):
            raise ConfigError("--report_only carries out nothing: leave --only and --at_once out.")


@dataclass(frozen=True)
class MethodsOptions:
    """Show the table of methods, in which two of them differ, or draw all."""

    differences: Annotated[tuple[str, ...], arg(metavar="METHOD METHOD")] = ()
    """Two methods: what each gives a correct and a wrong output, by the question's pass rate."""
    group: int | None = None
    """Outputs of a question that --differences and --picture count with (G). Default: 8."""
    picture: Annotated[Path | None, arg(metavar="FILE.svg")] = None
    """Draw what every row gives a correct and a wrong output, by the question's pass rate."""


@dataclass(frozen=True)
class TokenizerOptions:
    """Train the experiment's tokenizer."""

    experiment: Positional[Path]
    """The experiment: a Python file, NAME.py."""
    workdir: str | None = None
    """Where tokenizer.model is written: a folder or gs://BUCKET/FOLDER. Default: runs/NAME."""


@dataclass(frozen=True)
class Opening:
    """Which checkpoint is used, and its type."""

    checkpoint: Positional[str]
    """The folder of a run (WORKDIR/RUN, finished or not, for its newest checkpoint; with @STEP or
    @best for another that is kept), a folder in the Hugging Face format, or
    hf:ORG/NAME[@REVISION] of the hub."""
    compute_dtype: ComputeDtype | None = None
    """Type that weights and activations are computed in. Default: the run's; for a published
    model that of its weights, if it is one of these, else float32."""


@dataclass(frozen=True)
class Asking:
    """What a checkpoint is asked, and on which devices."""

    questions: str
    """The source of the questions: jsonl:PATH or tfds:NAME/SPLIT, with a slice such as [:100] if
    wanted."""
    data_dir: str | None = None
    """Folder of prepared TFDS data. Default: the run's, or TFDS's own."""
    prompt_format: Literal["text", "chat"] | None = None
    """text: the model continues the prompt; chat: the prompt is the user's message in the chat
    template. Default: the run's, also of an export; for another published model chat, if it has a
    template, else text."""
    prompt_template: str | None = None
    """Text of the prompt, in which {question} stands for the question. Default: the run's; else
    {question}, and in the format text a newline after it."""
    system: str | None = None
    """System message of a chat. Default: the run's, or none."""
    date: str | None = None
    """Date that a chat template which asks for it is told, YYYY-MM-DD. Default: the run's, or
    none."""
    template_variables: tuple[str, ...] | None = None
    """Variables of the chat template, each NAME=VALUE, such as enable_thinking=false. Default: the
    run's, or none."""
    stop_tokens: tuple[str, ...] | None = None
    """Tokens, by their names, that end an output beside EOS and a chat's end of turn. Default: the
    run's, or none."""
    max_prompt_tokens: int | None = None
    """Longest prompt in tokens. Default: what the longest question needs."""
    max_completion_tokens: int | None = None
    """Longest output in tokens, EOS included. Default: the run's, or 512."""
    seed: int | None = None
    """Fixes every sampled token, with a question's id and the sample's index. Default: the run's,
    or 0."""
    questions_per_batch: int | None = None
    """Questions whose outputs are decoded at a time; the prompts of 16 times as many are kept on
    the device. Changes only speed and memory. Default: the run's, or 64."""
    mesh: tuple[int, int, int] | None = None
    """Sizes of the mesh of devices: data, fsdp and tensor, as in the config of a run; one may be
    -1: what the other two leave. Default: the run's, or -1 1 1."""

    def __post_init__(self) -> None:
        _at_least(
            1,
            max_prompt_tokens=self.max_prompt_tokens,
            max_completion_tokens=self.max_completion_tokens,
            questions_per_batch=self.questions_per_batch,
        )
        if self.seed is not None and not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed is {self.seed}: it must lie between 0 and 2147483647.")


@dataclass(frozen=True)
class Drawing:
    """How outputs are sampled."""

    samples_per_question: int = 1
    """Outputs sampled per question."""
    temperature: float | None = None
    """Divides the logits. Default: that of the run's evaluations, or 1."""
    greedy: bool = False
    """Take the most probable token at each place instead of sampling."""

    def __post_init__(self) -> None:
        _at_least(1, samples_per_question=self.samples_per_question)
        _positive(temperature=self.temperature)
        if self.greedy and self.temperature is not None:
            raise ConfigError("temperature does nothing beside greedy: leave one of them out.")
        if self.greedy and self.samples_per_question > 1:
            raise ConfigError(
                f"samples_per_question is {self.samples_per_question} beside greedy, which gives "
                "each question the same output every time: leave one of them out."
            )


@dataclass(frozen=True)
class Judging:
    """The verifier. What is not given is None: the command has its own default."""

    verifier: str | None = None
    """auto, hash, boxed, tagged, lenient_last_number or module:function. Default: auto; to
    evaluate a run, its own."""
    comparison: Literal["exact", "math"] | None = None
    """How answers are compared. Default: math where math-verify is installed, else exact; to
    evaluate a run, its own."""
    checks: tuple[str, ...] | None = None
    """What a correct output must also pass: equations, ends_with_answer or module:function.
    Default: nothing; to evaluate a run, its own."""
    tolerance: Fraction | None = None
    """Largest relative difference of two numbers, such as 0.001. Default: 0."""
    workers: int | None = None
    """Verifier processes. Default: one a core; to evaluate a run, its own."""
    timeout_seconds: float | None = None
    """Time one output may take; past it the verdict is undecided. Default: 10; to evaluate a run,
    its own."""

    @classmethod
    def of(cls, **values: Any) -> Judging:
        """With tolerance as any number or its text, and checks as any sequence of names."""
        if values.get("checks") is not None:
            checks = values["checks"]
            values["checks"] = (checks,) if isinstance(checks, str) else tuple(checks)
        if values.get("tolerance") is not None:
            try:
                values["tolerance"] = Fraction(str(values["tolerance"]))
            except ValueError as error:
                raise ConfigError(
                    f"tolerance is {values['tolerance']!r}: a number is expected."
                ) from error
        return cls(**values)

    def __post_init__(self) -> None:
        name = self.verifier
        if name is not None and name not in BUILT_IN and ":" not in name:
            raise ConfigError(f"verifier is {name!r}, which is no rule{suggest(name, BUILT_IN)}")
        if self.comparison not in (None, "exact", "math"):
            raise ConfigError(f"comparison is {self.comparison!r}: it must be exact or math.")
        _at_least(1, workers=self.workers)
        _positive(timeout_seconds=self.timeout_seconds)
        if self.tolerance is not None and self.tolerance < 0:
            raise ConfigError(f"tolerance is {str(self.tolerance)!r}: it must be at least 0.")


@dataclass(frozen=True)
class Measuring:
    """How a policy is evaluated."""

    judging: Judging
    samples_per_question: int | None = None
    """Outputs per question for pass@k and maj@k; 0 for only the greedy one. Default: as many as in
    the run's test, or 0."""
    temperature: float | None = None
    """Temperature of those samples. Default: that of the run's evaluations, or 1."""

    def __post_init__(self) -> None:
        _at_least(0, samples_per_question=self.samples_per_question)
        _positive(temperature=self.temperature)
        if self.judging.verifier == RANDOM:
            raise ConfigError(
                "verifier is 'random': random verdicts evaluate nothing; name a rule."
            )


@dataclass(frozen=True)
class SampleOptions:
    """Sample outputs of questions from a run or a published model. A row for each output,
    in order: question_id, question, reference, sample_index, output, finished, num_tokens and
    log_prob (the sum over its tokens under the distribution it was drawn from, in nats; of greedy
    outputs at temperature 1). `rft-jax verify` scores the file."""

    opening: Opening
    out: Path
    """The new JSONL file for the outputs, or a pipe."""
    asking: Asking
    drawing: Drawing


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure greedy accuracy and, with samples, pass@k and maj@k for k = 1, 2, 4, ..., each with
    a 95 % interval over questions, of a run or a published model. A table is printed, and
    OUT gets metrics.json, questions.jsonl (a row for each question) and outputs.jsonl (a row for
    each output)."""

    opening: Opening
    out: Path
    """The folder for the results."""
    asking: Asking
    measuring: Measuring


@dataclass(frozen=True)
class ConvertOptions:
    """Write a run or a published model in the Hugging Face format, for transformers, vLLM
    and others: config.json, safetensors, tokenizer, generation_config.json and a model card.
    Adapters are merged into the weights."""

    checkpoint: Positional[str]
    """The folder of a run (WORKDIR/RUN, finished or not, for its newest checkpoint; with @STEP or
    @best for another that is kept), a folder in the Hugging Face format, or
    hf:ORG/NAME[@REVISION] of the hub."""
    out: Positional[Path]
    """The new folder for the model."""
    dtype: ComputeDtype | None = None
    """Type of the weights. Default: bfloat16 where the checkpoint is computed in it, else
    float32."""
    max_shard_gb: float = 4.0
    """Largest file of weights, in 10^9 bytes; as much is on the host at a time."""
    average: Annotated[tuple[str, ...], arg(metavar="CHECKPOINT=WEIGHT ...")] = ()
    """Average the parameters with those of other checkpoints of the same model, in float32, each by
    its weight; what the weights leave of 1 is that of the first. Default: none."""

    def __post_init__(self) -> None:
        _positive(max_shard_gb=self.max_shard_gb)
        if self.average and not sum(self.averaged.values()) < 1:
            raise ConfigError(
                f"average is {' '.join(self.average)}: the weights must add up to less than 1, so "
                "that something is left for the first checkpoint."
            )

    @property
    def averaged(self) -> dict[str, float]:
        """The weights of other checkpoints, by their names."""
        found: dict[str, float] = {}
        for one in self.average:
            name, _, weight = one.rpartition("=")
            if name in found:
                raise ConfigError(f"average names {name} twice: give it one weight.")
            try:
                found[name] = float(weight)
            except ValueError:
                name = ""
            if not name or not 0 < found[name] < 1:
                raise ConfigError(
                    f"average is {one}: CHECKPOINT=WEIGHT is expected, a weight between 0 and 1."
                )
        return found


@dataclass(frozen=True)
class VerifyOptions:
    """Score rows of {"reference": ..., "output": ...}; further fields are carried through. One row
    out for each row in, in order, with `verdict` (correct, incorrect, undecided) and `reason`
    added, and a table of reasons. A reference is a bare answer (18, \\frac{1}{2}) or a solution
    that ends in `#### 18`."""

    file: Positional[Path]
    """The JSONL file of rows."""
    out: Path
    """The file that the verdicts are written to; it appears whole, in place of one there is. A pipe
    or device is written through."""
    judging: Judging
    skip_bad: bool = False
    """Leave malformed rows out instead of stopping at the first."""
