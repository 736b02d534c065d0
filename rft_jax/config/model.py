"""The model, and whether two configs of it state the same function of the same parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from rft_jax.config.fields import at_least, require

LORA_TARGETS = ("query", "key", "value", "output", "gate", "up", "down")
"""The matrices of a block, by their names in the parameters."""
ADAPTER_FIELDS = ("lora_rank", "lora_alpha", "lora_targets")
COMPUTATION_FIELDS = ("compute_dtype", "attention", "remat")


@dataclass(frozen=True)
class ModelConfig:
    """The decoder transformer: its shape, what distinguishes one family of models from another
    (the defaults are Llama's), its adapters, and how it is computed."""

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
    """Scales of norms are stored minus 1 (Gemma)."""
    post_norms: bool = False
    """Norms after attention and after the MLP, in addition to those before (Gemma)."""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    """Activation of the MLP's gate; gelu_tanh is GELU's approximation by tanh (Gemma)."""
    scale_embeddings: bool = False
    """Multiply embeddings by the square root of d_model (Gemma)."""
    qkv_bias: bool = False
    """Queries, keys and values have biases (Qwen2)."""
    qk_norm: bool = False
    """Queries and keys are normalised per head before they are rotated (Qwen3, Gemma 3)."""
    attention_scalar: int = 0
    """Scores are divided by its square root; 0 for head_dim."""
    attention_softcap: float = 0.0
    """Scores s become c tanh(s / c); 0 for no cap (Gemma 2)."""
    final_softcap: float = 0.0
    """The same for the logits."""
    sliding_window: int = 0
    """Newest positions that a token attends to, its own included; 0 for all (Mistral, Gemma)."""
    global_every: int = 0
    """With a sliding window, every Nth layer attends to all positions; 0 for none (Gemma)."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    local_rope_theta: float = 0.0
    """The base in layers with a sliding window, unscaled; 0 for rope_theta as scaled (Gemma 3)."""
    rope_scaling: Literal["none", "linear", "llama3"] = "none"
    """How frequencies are lowered for long texts: all by the same factor, or only low ones (Llama
    3.1)."""
    rope_factor: float = 1.0
    """What scaled frequencies are divided by."""
    rope_original_positions: int = 0
    """Longest text before scaling (llama3): a frequency with at most rope_low_turns turns in it is
    divided, one with at least rope_high_turns is not, those in between are interpolated."""
    rope_low_turns: float = 1.0
    """See rope_original_positions."""
    rope_high_turns: float = 4.0
    """See rope_original_positions."""
    lora_rank: int = 0
    """Rank of low-rank adapters (LoRA, arXiv 2106.09685), then the only parameters trained; 0
    trains every parameter."""
    lora_alpha: float = 0.0
    """Adapters add alpha / rank * B A x to W x."""
    lora_targets: tuple[str, ...] = ()
    """Matrices of every block that have adapters: query, key, value, output, gate, up, down."""
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of activations and of weights inside matrix products; the parameters kept stay float32.
    float64 is for exact tests, under JAX_ENABLE_X64=1."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """What computes attention in the update: a flash kernel (cuDNN's on a GPU in bfloat16, splash
    attention on a TPU), or the XLA compiler; `auto` takes the kernel where it is supported."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: only norms and other element-wise operations, attention
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
        """The same model without adapters, all of whose parameters are trained."""
        return replace(self, lora_rank=0, lora_alpha=0.0, lora_targets=())

    def sees_all(self, layer: int) -> bool:
        """Whether a layer, counted from 0, attends to all earlier positions."""
        if not self.sliding_window:
            return True
        return self.global_every > 0 and (layer + 1) % self.global_every == 0

    def differences(self, other: ModelConfig) -> tuple[str, ...]:
        """Names of the fields by which two configs state another function of their parameters.

        How it is computed (compute_dtype, attention, remat) is no part of that.
        """
        layers = max(self.num_layers, other.num_layers)
        ours, theirs = self._one_spelling(layers), other._one_spelling(layers)
        return tuple(name for name in ours if ours[name] != theirs[name])

    def _one_spelling(self, layers: int) -> dict[str, Any]:
        """The fields that state the function, with one spelling for each function."""
        names = [item.name for item in fields(self) if item.name not in COMPUTATION_FIELDS]
        values = {name: getattr(self, name) for name in names}
        if self.attention_scalar == self.head_dim:
            values["attention_scalar"] = 0
        full = [self.sees_all(layer) for layer in range(layers)]
        if all(full):
            return values | {"sliding_window": 0, "global_every": 0, "local_rope_theta": 0.0}
        if not any(full):
            values["global_every"] = 0
        if self.rope_scaling == "none":
            values["local_rope_theta"] = self.local_rope_theta or self.rope_theta
        return values
