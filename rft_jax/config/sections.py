"""The sections of a run's settings, each checked by itself (rft_jax/config/run.py joins them)."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from typing import Literal

from rft_jax.errors import ConfigError

Denominator = Literal["sampled", "accepted", "accepted_per_question"]


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def at_least(least: int, section: object, *names: str) -> None:
    """Require the named fields of a section to be `least` or more."""
    prefix = type(section).__name__.removesuffix("Config").lower()
    bound = "0 or more" if least == 0 else f"at least {least}"
    for name in names:
        value = getattr(section, name)
        require(value >= least, f"{prefix}.{name} is {value}: it must be {bound}.")


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


@dataclass(frozen=True)
class DataConfig:
    """Where questions come from. A source is `tfds:NAME/SPLIT` or `jsonl:PATH`, either with an
    optional slice of rows such as `[:7000]` or `[7000:]`."""

    train: str
    """Questions to train on; for SFT they must carry solutions (demonstrations)."""
    validation: str
    """Questions evaluated while training; choose settings on these."""
    test: str = ""
    """Questions evaluated once, when the run ends; empty for none. Never tune on these."""
    data_dir: str = ""
    """Folder of prepared TFDS data; empty for TFDS's own default (~/tensorflow_datasets)."""
    prompt_format: Literal["text", "chat"] = "text"
    """text: the model goes on from the prompt; chat: the prompt is the user's message, and the
    chat template of the tokenizer's folder asks for the answer."""
    prompt_template: str = "{question}\n"
    """Text of the prompt; `{question}` is replaced by the question. In a chat, whose template ends
    the message, `{question}` alone will do."""
    system: str = ""
    """System message of a chat; empty for none."""
    date: str = ""
    """Date that a chat template which asks for it is told, YYYY-MM-DD; of other templates nothing
    is changed by it."""
    max_prompt_tokens: int = 128
    """Longest prompt in tokens; a longer one is an error before any work is done."""
    max_completion_tokens: int = 128
    """Longest output in tokens, EOS included; sampling stops there."""

    def __post_init__(self) -> None:
        require(
            self.prompt_template.count("{question}") == 1,
            f"data.prompt_template is {self.prompt_template!r}: it must hold {{question}} once.",
        )
        require(
            self.prompt_format == "chat" or not self.system,
            f"data.system does nothing under data.prompt_format={self.prompt_format}: remove it or "
            "set data.prompt_format to chat.",
        )
        require(
            self.prompt_format == "chat" or not self.date,
            f"data.date does nothing under data.prompt_format={self.prompt_format}: remove it or "
            "set data.prompt_format to chat.",
        )
        require(
            not self.date or _is_date(self.date),
            f"data.date is {self.date!r}: a date is expected, YYYY-MM-DD.",
        )
        at_least(1, self, "max_prompt_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class TokenizerConfig:
    """A published model's tokenizer, or a SentencePiece model, loaded or trained on the
    experiment's demonstrations."""

    path: str = ""
    """A Hugging Face folder, `hf:PATH` or `hf:ORG/NAME[@REVISION]` of the hub, or a SentencePiece
    `.model` file; empty: WORKDIR/tokenizer.model, trained when it is missing."""
    corpus: str = ""
    """Source the tokenizer is trained on (questions and solutions); only with an empty path."""
    vocab_size: int = 0
    """Pieces to train, special and byte pieces included; only with an empty path."""

    def __post_init__(self) -> None:
        require(
            self.path != "hf:",
            "tokenizer.path is 'hf:': a folder or ORG/NAME must follow it.",
        )
        if self.path:
            require(
                not self.corpus and not self.vocab_size,
                "tokenizer.corpus and tokenizer.vocab_size train a new tokenizer and do nothing "
                "beside tokenizer.path: remove them or the path.",
            )
        else:
            require(
                bool(self.corpus),
                "tokenizer.path and tokenizer.corpus are both empty: name a tokenizer or a source "
                "to train one on.",
            )
            require(
                self.vocab_size > 260,
                f"tokenizer.vocab_size is {self.vocab_size}: it must exceed 260 (256 byte pieces "
                "and 4 special ones).",
            )


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh's axes; at most one is -1: what the other two leave."""

    data: int = -1
    """Copies of the parameters that split the batch."""
    fsdp: int = 1
    """Devices that split the batch and, by the model width, the parameters."""
    tensor: int = 1
    """Devices that split heads, MLP and vocabulary."""

    def __post_init__(self) -> None:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            require(
                size == -1 or size >= 1,
                f"mesh.{name} is {size}: it must be a positive size, or -1 to be inferred.",
            )
        inferred = [name for name, size in sizes.items() if size == -1]
        require(
            len(inferred) <= 1,
            f"mesh.{' and mesh.'.join(inferred)} are {'both' if len(inferred) == 2 else 'all'} -1: "
            "only one axis can be inferred.",
        )


@dataclass(frozen=True)
class RolloutConfig:
    """One sampling phase: questions x samples from a policy (RFT and Online RFT)."""

    questions_per_step: int = 32
    """Questions of one rollout (Q)."""
    samples_per_question: int = 8
    """Outputs sampled per question (G)."""
    temperature: float = 1.0
    """Divides the logits; 1 samples from pi_theta itself."""
    slots: int = 0
    """Outputs decoded at a time, over all devices; one that ends makes room for the next. 0 for all
    outputs of a step at once."""

    def __post_init__(self) -> None:
        at_least(1, self, "questions_per_step", "samples_per_question")
        at_least(0, self, "slots")
        require(
            self.temperature > 0 and math.isfinite(self.temperature),
            f"rollout.temperature is {self.temperature}: training samples need a positive, finite "
            "temperature (greedy outputs explore nothing).",
        )


@dataclass(frozen=True)
class PoolConfig:
    """The fixed pool of RFT: rollouts of the frozen start, or the log of earlier runs."""

    rollout_steps: int = 0
    """Rollouts that fill the pool, each of rollout.questions_per_step questions."""
    from_rollouts: tuple[str, ...] = ()
    """Folders `WORKDIR/RUN/rollouts` of earlier runs, united, in place of sampling."""

    def __post_init__(self) -> None:
        require(
            (self.rollout_steps >= 1) != bool(self.from_rollouts),
            f"pool.rollout_steps is {self.rollout_steps} and pool.from_rollouts is "
            f"{list(self.from_rollouts)}: give exactly one of them.",
        )


@dataclass(frozen=True)
class SelectionConfig:
    """Which accepted outputs are trained on."""

    dedupe: Literal["none", "text", "equations"] = "none"
    """Keep one output of each question's outputs with equal text, or with equal equation lists."""
    max_per_question: int = 0
    """Keep at most this many outputs of a question; 0 for all."""

    def __post_init__(self) -> None:
        require(
            self.max_per_question >= 0,
            f"selection.max_per_question is {self.max_per_question}: 0 (no cap) or more is needed.",
        )


@dataclass(frozen=True)
class RefillConfig:
    """A step of Online RFT samples until enough outputs are kept (training/batch_filling.py)."""

    accepted: int
    """Kept outputs a step trains on (N); it samples rounds of the rollout until it has them."""
    max_sampled: int
    """Most outputs a step samples, whole rounds; then it trains on fewer than `accepted`."""
    max_staleness: int = 0
    """Updates an output kept beyond `accepted` may wait for one; 0 drops it at once, so that
    every output is of the policy that it trains."""

    def __post_init__(self) -> None:
        at_least(1, self, "accepted", "max_sampled")
        at_least(0, self, "max_staleness")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The denominator of the objective and its optional KL term (rft_jax/training/objective.py)."""

    denominator: Denominator = "sampled"
    """What the sum over kept outputs is divided by: every sampled output (eq. 11, unbiased), the
    kept ones, or each question's kept ones and then the number of questions."""
    kl_coefficient: float = 0.0
    """Weight of the k3 estimate of KL(pi_theta || pi_ref), pi_ref being the run's start."""

    def __post_init__(self) -> None:
        require(
            self.kl_coefficient >= 0 and math.isfinite(self.kl_coefficient),
            f"objective.kl_coefficient is {self.kl_coefficient}: 0 or more is needed.",
        )


@dataclass(frozen=True)
class UpdateConfig:
    """Static shapes of the update: packed rows, micro-batches and log-prob chunks."""

    row_length: int = 256
    """Tokens of one packed row; holds at least one longest prompt and output."""
    rows_per_microbatch: int = 16
    """Rows of one gradient-accumulation step; a multiple of the mesh's data x fsdp size."""
    sequences_per_step: int = 0
    """Outputs per update (SFT and RFT); 0 for Online RFT, whose rollout decides it."""
    logits_at_once: int = 2**24
    """Logits (tokens x vocabulary) that exist at a time: memory that does not grow with the
    vocabulary. More of them read and write the vocabulary's gradient less often."""

    def __post_init__(self) -> None:
        at_least(1, self, "row_length", "rows_per_microbatch", "logits_at_once")
        at_least(0, self, "sequences_per_step")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with clipping and a learning-rate schedule."""

    learning_rate: float = 1e-4
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Shape after warm-up; cosine and linear end at final_fraction of the peak."""
    warmup_steps: int = 0
    """Updates of linear warm-up from 0."""
    final_fraction: float = 0.0
    """Last learning rate as a share of the peak (cosine and linear only)."""
    b1: float = 0.9
    """Decay of the first moment."""
    b2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; norms and biases are exempt."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0 for no clipping."""
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the first moment is kept in; bfloat16 halves its memory. The second stays float32, as
    its decay is too slow for bfloat16's steps."""

    def __post_init__(self) -> None:
        require(
            self.learning_rate > 0 and math.isfinite(self.learning_rate),
            f"optimizer.learning_rate is {self.learning_rate}: it must be a positive number.",
        )
        require(
            self.schedule != "constant" or self.final_fraction == 0,
            "optimizer.final_fraction does nothing under a constant schedule: remove it or choose "
            "cosine or linear.",
        )
        at_least(0, self, "warmup_steps", "weight_decay", "clip_norm", "eps")
        for name in ("b1", "b2", "final_fraction"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name} is {value}: it must lie in [0, 1).")


@dataclass(frozen=True)
class CheckpointConfig:
    """When the whole state of the loop is saved, and which of these checkpoints are kept."""

    every_steps: int = 100
    """Save every so many steps; the last step is always saved."""
    every_minutes: float = 0.0
    """Save besides after the first step that ends so many minutes after the last save; 0 for
    never."""
    keep: int = 2
    """Newest checkpoints kept; a damaged one is passed over for the one before it."""
    keep_best: int = 0
    """Keep besides the checkpoints of so many evaluations on data.validation, those of highest
    greedy accuracy, the later of equals; 0 for none."""

    def __post_init__(self) -> None:
        at_least(1, self, "every_steps", "keep")
        at_least(0, self, "keep_best")
        require(
            self.every_minutes >= 0 and math.isfinite(self.every_minutes),
            f"checkpoint.every_minutes is {self.every_minutes}: 0 (never) or more is needed.",
        )
