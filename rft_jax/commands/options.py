"""The options of the commands that work on checkpoints and on files of outputs. No jax.

Each command has one dataclass, which rft_jax/commands/typed_options.py reads from the command line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

from rft_jax.config.serialize import suggest
from rft_jax.errors import ConfigError
from rft_jax.verification.rules import BUILT_IN, RANDOM


def _at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} is {value}: it must be at least {least}.")


def _check_temperature(temperature: float | None) -> None:
    if temperature is not None and not 0 < temperature < math.inf:
        raise ConfigError(
            f"--temperature is {temperature}: it must be a positive number; greedy outputs have "
            "none."
        )


@dataclass(frozen=True)
class Asking:
    """What a checkpoint is asked, and how it is computed."""

    questions: str
    """The source of the questions: jsonl:PATH or tfds:NAME/SPLIT, with a slice such as [:100] if
    wanted."""
    data_dir: str | None = None
    """Folder of prepared TFDS data. Default: the run's, or TFDS's own."""
    prompt_format: Literal["text", "chat"] | None = None
    """text: the model goes on from the prompt; chat: the prompt is the user's message in the chat
    template. Default: the run's; for a published model chat, if it has a template, else text."""
    prompt_template: str | None = None
    """Text of the prompt, in which {question} stands for the question. Default: the run's; else
    {question}, and in the format text a newline after it."""
    system: str | None = None
    """System message of a chat. Default: the run's, or none."""
    date: str | None = None
    """Date that a chat template which asks for it is told, YYYY-MM-DD. Default: the run's, or
    none."""
    max_prompt_tokens: int | None = None
    """Longest prompt in tokens. Default: what the longest question needs."""
    max_new_tokens: int | None = None
    """Longest output in tokens, EOS included. Default: the run's, or 512."""
    seed: int | None = None
    """Fixes every sampled token, with a question's id and the sample's index. Default: the run's,
    or 0."""
    questions_per_batch: int | None = None
    """Questions whose outputs are decoded at a time; the prompts of 16 times as many are kept on
    the device. Changes speed and memory alone. Default: the run's, or 64."""
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    """Type that weights and activations are computed in. Default: the run's; for a published
    model that of its weights, if it is one of these, else float32."""
    mesh: tuple[int, int, int] | None = None
    """Sizes of the mesh of devices: data, fsdp and tensor, as in the settings of a run; one may be
    -1: what the other two leave. Default: the run's, or -1 1 1."""

    def __post_init__(self) -> None:
        _at_least(
            1,
            max_prompt_tokens=self.max_prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            questions_per_batch=self.questions_per_batch,
        )
        if self.seed is not None and not 0 <= self.seed < 2**31:
            raise ConfigError(f"--seed is {self.seed}: it must lie between 0 and 2147483647.")


@dataclass(frozen=True)
class Judging:
    """The verifier. What is not given is None: the command has its own default."""

    rule: str | None = None
    """auto, hash, boxed, tagged, lenient_last_number or module:function. Default: auto."""
    comparison: str | None = None
    """exact or math. Default: math where math-verify is installed, else exact."""
    checks: tuple[str, ...] | None = None
    """What a correct output must pass besides: equations, ends_with_answer or module:function.
    Default: nothing."""
    tolerance: Fraction | None = None
    """Largest relative difference of two numbers, such as 0.001. Default: 0."""
    workers: int | None = None
    """Processes that judge. Default: one a core."""
    timeout: Fraction | None = None
    """Seconds that one output may take; past them it is undecided. Default: 10."""

    def __post_init__(self) -> None:
        if self.rule is not None and self.rule not in BUILT_IN and ":" not in self.rule:
            raise ConfigError(
                f"--rule is {self.rule!r}, which is no rule{suggest(self.rule, BUILT_IN)}"
            )
        if self.comparison not in (None, "exact", "math"):
            raise ConfigError(f"--comparison is {self.comparison!r}: it must be exact or math.")
        least = {"tolerance": Fraction(0), "workers": Fraction(1), "timeout": Fraction(1, 1000)}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ConfigError(
                    f"--{name} is {str(value)!r}: a number of at least {float(bound):g} is needed."
                )


@dataclass(frozen=True)
class VerifyOptions:
    """Score a file whose rows are {"reference": ..., "output": ...}; further fields are carried
    through. One row out for each row in, in order, with `verdict` (correct, incorrect, undecided)
    and `reason` added, and a table of reasons. A reference is a bare answer (18, \\frac{1}{2}) or a
    solution that ends in `#### 18`."""

    out: Path
    """The file that the verdicts are written to."""
    judging: Judging
    skip_bad: bool = False
    """Leave malformed rows out instead of stopping at the first."""


@dataclass(frozen=True)
class SampleOptions:
    """Sample outputs of questions from CHECKPOINT: the folder of a finished run (WORKDIR/RUN, with
    @STEP or @best for a kept checkpoint that is not the last), a folder in the Hugging Face format,
    or hf:ORG/NAME[@REVISION] of the hub. A row for each output, in order: question_id, question,
    reference, sample_index, output, finished, num_tokens and log_prob (the sum over its tokens
    under the distribution it was drawn from, in nats; of greedy outputs at temperature 1).
    `rft-jax verify` scores the file."""

    out: Path
    """The new JSONL file for the outputs."""
    asking: Asking
    samples: int = 1
    """Outputs of each question."""
    temperature: float | None = None
    """Divides the logits. Default: that of the run's evaluations, or 1."""
    greedy: bool = False
    """The most probable token at each place, in place of sampling."""

    def __post_init__(self) -> None:
        _at_least(1, samples=self.samples)
        _check_temperature(self.temperature)
        if self.greedy and self.temperature is not None:
            raise ConfigError("--temperature does nothing beside --greedy: leave one of them out.")
        if self.greedy and self.samples > 1:
            raise ConfigError(
                f"--samples is {self.samples} beside --greedy, which gives each question the same "
                "output every time: leave one of them out."
            )


@dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate CHECKPOINT on questions: greedy accuracy and, with samples, pass@k and maj@k for
    k = 1, 2, 4, ..., each with a 95 % interval over questions. CHECKPOINT is the folder of a
    finished run (WORKDIR/RUN, with @STEP or @best for a kept checkpoint that is not the last), a
    folder in the Hugging Face format, or hf:ORG/NAME[@REVISION] of the hub. The verifier is that of
    the run's evaluations, but for what is given here; the defaults below are those for a model that
    is no run's. A table is printed, and FOLDER gets metrics.json, questions.jsonl (a row for each
    question) and outputs.jsonl (a row for each output)."""

    out: Path
    """The folder for the results."""
    asking: Asking
    judging: Judging
    samples: int | None = None
    """Outputs of each question for pass@k and maj@k, 0 for the greedy one alone. Default: as many
    as in the run's test, or 0."""
    temperature: float | None = None
    """Of those samples. Default: that of the run's evaluations, or 1."""

    def __post_init__(self) -> None:
        _at_least(0, samples=self.samples)
        _check_temperature(self.temperature)
        if self.judging.rule == RANDOM:
            raise ConfigError("--rule is random: an evaluation by lot says nothing; name a rule.")


@dataclass(frozen=True)
class ConvertOptions:
    """Write CHECKPOINT as a model in the Hugging Face format into the new folder OUT, for
    transformers, vLLM and others: config.json, safetensors, tokenizer, generation_config.json and a
    model card. CHECKPOINT is the folder of a finished run (WORKDIR/RUN, with @STEP or @best for
    a kept checkpoint that is not the last), a folder in the Hugging Face format, or
    hf:ORG/NAME[@REVISION] of the hub. Adapters are merged into the weights."""

    format: Literal["safetensors"] = "safetensors"
    """How weights are written."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the weights. Default: bfloat16 where the checkpoint is computed in it, else
    float32."""
    max_shard_gb: float = 4.0
    """Largest file of weights, in 10^9 bytes; as much is on the host at a time."""

    def __post_init__(self) -> None:
        if not 0 < self.max_shard_gb < math.inf:
            raise ConfigError(f"--max-shard-gb is {self.max_shard_gb}: it must be positive.")
