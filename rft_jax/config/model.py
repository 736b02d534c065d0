"""The sections of a run's settings that say what the policy is (see rft_jax/config/sections.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from rft_jax.config.sections import at_least, require

LORA_TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
"""The matrices of a block, by their names in the parameters."""


@dataclass(frozen=True)
class ModelConfig:
    """The decoder transformer: its shape, what sets one family of models apart from another, and
    how it is computed. The defaults of the second group are Llama's."""

    num_layers: int = 4
    """Transformer blocks (L)."""
    d_model: int = 128
    """Width of the residual stream (D)."""
    num_heads: int = 4
    """Query heads (N)."""
    num_kv_heads: int = 4
    """Key/value heads (K); divides num_heads."""
    head_dim: int = 32
    """Width of a head (H), even."""
    mlp_dim: int = 384
    """Width of the gated MLP (F)."""
    vocab_size: int = 0
    """Rows of the embedding; 0 for as many as the tokenizer has pieces. Published models often have
    more."""
    tie_embeddings: bool = False
    """Use the embedding as output projection."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    norm_offset: bool = False
    """Scales of norms are kept as what they differ from 1 by (Gemma)."""
    post_norms: bool = False
    """Norms after attention and after the MLP, besides those before (Gemma)."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    """Of the MLP's gate; gelu_tanh is GELU's approximation by tanh (Gemma)."""
    scale_embeddings: bool = False
    """Multiply embeddings by the root of d_model (Gemma)."""
    qkv_bias: bool = False
    """Queries, keys and values have biases (Qwen2)."""
    qk_norm: bool = False
    """Queries and keys are normalised head by head before they are rotated (Qwen3, Gemma 3)."""
    attention_scalar: int = 0
    """Scores are divided by its root; 0 for head_dim."""
    attention_softcap: float = 0.0
    """Scores s become c tanh(s / c); 0 for no cap (Gemma 2)."""
    final_softcap: float = 0.0
    """The same for the logits."""
    sliding_window: int = 0
    """Newest positions that a token sees, its own included; 0 for all (Mistral, Gemma)."""
    global_every: int = 0
    """With a sliding window, every so manyth layer sees all positions; 0 for none (Gemma)."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    local_rope_theta: float = 0.0
    """The base in layers with a sliding window, unscaled; 0 for rope_theta as scaled (Gemma 3)."""
    rope_scaling: Literal["none", "linear", "llama3"] = "none"
    """How frequencies are lowered for long texts: all alike, or low ones only (Llama 3.1)."""
    rope_factor: float = 1.0
    """By what scaled frequencies are divided."""
    rope_original_positions: int = 0
    """Longest text before scaling (llama3): in it a frequency turns rope_low_turns or fewer times
    to be divided, rope_high_turns or more to stay, and is between in between."""
    rope_low_turns: float = 1.0
    """See rope_original_positions."""
    rope_high_turns: float = 4.0
    """See rope_original_positions."""
    lora_rank: int = 0
    """Rank of low-rank adapters (LoRA, arXiv 2106.09685), which alone are trained then; 0 trains
    every parameter."""
    lora_alpha: float = 0.0
    """Adapters add alpha / rank * B A x to W x."""
    lora_targets: tuple[str, ...] = ()
    """Matrices of every block that have adapters: query, key, value, output, gate, up, down."""
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of activations and of weights inside matrix products; masters stay float32. float64
    serves exact tests, under JAX_ENABLE_X64=1."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """What computes attention in the update: a flash kernel, cuDNN's on a GPU in bfloat16 or splash
    attention on a TPU, or the XLA compiler; `auto` takes the kernel where it can serve."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: norms and other element-wise operations alone, attention
    too (all but products with weights), or every block."""

    def __post_init__(self) -> None:
        at_least(
            1, self, "num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "mlp_dim"
        )
        at_least(
            0, self, "vocab_size", "attention_scalar", "attention_softcap", "final_softcap",
            "sliding_window", "global_every", "local_rope_theta", "rope_original_positions",
        )  # fmt: skip
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_kv_heads is {self.num_kv_heads}: it must divide model.num_heads, "
            f"{self.num_heads}.",
        )
        require(
            self.head_dim % 2 == 0,
            f"model.head_dim is {self.head_dim}: rotary embeddings need an even width.",
        )
        require(
            self.sliding_window != 1,
            "model.sliding_window is 1: it must be 0 (none) or at least 2.",
        )
        for name in ("global_every", "local_rope_theta"):
            require(
                bool(self.sliding_window) or not getattr(self, name),
                f"model.{name} does nothing without model.sliding_window: remove it.",
            )
        self._check_rope()
        self._check_lora()

    def _check_rope(self) -> None:
        require(
            self.rope_theta > 0 and math.isfinite(self.rope_theta),
            f"model.rope_theta is {self.rope_theta}: it must be a positive number.",
        )
        scaled = self.rope_scaling != "none"
        require(
            (self.rope_factor > 1) if scaled else self.rope_factor == 1,
            f"model.rope_factor is {self.rope_factor}: it must be above 1 with a "
            "model.rope_scaling, and does nothing without.",
        )
        llama3 = self.rope_scaling == "llama3"
        require(
            llama3 == (self.rope_original_positions > 0),
            f"model.rope_original_positions is {self.rope_original_positions}: it must be at least "
            "1 with model.rope_scaling=llama3, and does nothing without.",
        )
        turns = (self.rope_low_turns, self.rope_high_turns)
        require(
            (0 < turns[0] < turns[1]) if llama3 else turns == (1.0, 4.0),
            f"model.rope_low_turns and model.rope_high_turns are {turns[0]} and {turns[1]}: with "
            "model.rope_scaling=llama3 the second must be the larger; they do nothing without.",
        )

    def _check_lora(self) -> None:
        at_least(0, self, "lora_rank", "lora_alpha")
        with_lora = self.lora_rank > 0
        for name in ("lora_alpha", "lora_targets"):
            value = getattr(self, name)
            require(
                bool(value) == with_lora,
                f"model.{name} is {value}: it is needed with a model.lora_rank, and does nothing "
                "without.",
            )
        for target in self.lora_targets:
            require(
                target in LORA_TARGETS,
                f"model.lora_targets names {target!r}: {', '.join(LORA_TARGETS)} can be named.",
            )
        require(
            len(set(self.lora_targets)) == len(self.lora_targets),
            f"model.lora_targets is {list(self.lora_targets)}: name each matrix once.",
        )

    def without_adapters(self) -> ModelConfig:
        """The same model, all of whose parameters are trained."""
        return replace(self, lora_rank=0, lora_alpha=0.0, lora_targets=())

    def sees_all(self, layer: int) -> bool:
        """Whether a layer, counted from 0, sees all earlier positions."""
        if not self.sliding_window:
            return True
        return self.global_every > 0 and (layer + 1) % self.global_every == 0
