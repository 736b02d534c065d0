"""The work that every contender does: model shapes, prompts, output lengths, training batch.

Standard library and numpy only, as every contender's interpreter imports it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

PAD, BOS = 0, 1
"""Ids that no prompt and no training sequence holds."""


@dataclass(frozen=True)
class Shape:
    """A Qwen2-style decoder with a tied embedding; the letters are those of batches.py."""

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int


SHAPES = {
    "nano": Shape(2, 32, 4, 2, 8, 64, 128),
    "tiny": Shape(4, 128, 4, 2, 32, 512, 512),
    "small": Shape(8, 512, 8, 4, 64, 1536, 8192),
    "qwen2.5-1.5b": Shape(28, 1536, 12, 2, 128, 8960, 151936),
}
"""nano is for tests of the benchmark itself."""


@dataclass(frozen=True)
class Work:
    """One call of a job. All contenders see the same ids and the same output lengths.

    size: a key of SHAPES; prompts, samples: questions and outputs of each; prompt_len, new_tokens:
    tokens; min_len, mean_len: of the ragged lengths; dtype: of weights and activations (the update
    keeps float32 masters whatever it is).
    """

    size: str = "tiny"
    prompts: int = 16
    samples: int = 8
    prompt_len: int = 32
    new_tokens: int = 128
    min_len: int = 8
    mean_len: float = 40.0
    dtype: str = "float32"
    seed: int = 0

    @property
    def shape(self) -> Shape:
        """The model."""
        return SHAPES[self.size]

    @property
    def sequences(self) -> int:
        """Outputs of one call, and sequences of one update."""
        return self.prompts * self.samples

    @property
    def sequence_len(self) -> int:
        """Tokens of one training sequence."""
        return self.prompt_len + self.new_tokens

    def prompt_tokens(self) -> npt.NDArray[np.int32]:
        """[prompts, prompt_len] ids."""
        random = np.random.default_rng(self.seed)
        size = (self.prompts, self.prompt_len)
        return random.integers(2, self.shape.vocab, size, dtype=np.int32)

    def batch(self) -> npt.NDArray[np.int32]:
        """[sequences, sequence_len] ids for the update."""
        random = np.random.default_rng(self.seed + 1)
        size = (self.sequences, self.sequence_len)
        return random.integers(2, self.shape.vocab, size, dtype=np.int32)

    def full_lengths(self) -> npt.NDArray[np.int32]:
        """[prompts, samples]: every output has new_tokens tokens."""
        return np.full((self.prompts, self.samples), self.new_tokens, np.int32)

    def ragged_lengths(self) -> npt.NDArray[np.int32]:
        """[prompts, samples] from min_len to new_tokens with a mean near mean_len.

        A shifted exponential, clipped, its scale fitted so that the clipped mean is right: most
        outputs end early and a few are long.
        """
        uniform = np.random.default_rng(self.seed + 2).random(self.sequences)
        low, wanted = self.min_len, self.mean_len
        scale = wanted - low
        for _ in range(60):
            lengths = np.clip(low - scale * np.log1p(-uniform), low, self.new_tokens)
            scale *= (wanted - low) / max(float(lengths.mean()) - low, 1e-6)
        rounded = np.clip(np.round(lengths), low, self.new_tokens).astype(np.int32)
        return rounded.reshape(self.prompts, self.samples)

    def lengths(self, job: str) -> npt.NDArray[np.int32]:
        """[prompts, samples]: tokens of each output in a sampling job."""
        return self.ragged_lengths() if job == "ragged" else self.full_lengths()

    def useful_tokens(self, job: str) -> int:
        """What a tokens/s figure counts: new tokens of a sampling job, all tokens of an update."""
        if job == "update":
            return self.sequences * self.sequence_len
        return int(self.lengths(job).sum())


@dataclass(frozen=True)
class Task:
    """What one worker process is asked to do.

    job: sample, ragged or update; cores: CPU cores it may use; options: the contender's own.
    """

    job: str
    work: Work
    cores: int
    options: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> Task:
        """The inverse of `to_json`."""
        return Task(**(values | {"work": Work(**values["work"])}))
