"""Tensors of the published format and where each has its place in the parameters.

Both sides have [out, in] matrices, so that a tensor is the parameter's layer with some
neighbouring axes joined; nothing is transposed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rft_jax.config import ModelConfig

Shape = tuple[int, ...]
Rows = Mapping[tuple[str, ...], tuple[str, str]]

TOP: Rows = {
    ("embedding",): ("model.embed_tokens.weight", "V D"),
    ("final_norm", "scale"): ("model.norm.weight", "D"),
    ("unembedding",): ("lm_head.weight", "V D"),
}
"""Path in the parameters -> name of the tensor, and its axes by their letters (design, section 4):
letters written together are one axis of the tensor and several of the parameter."""

BLOCK: Rows = {
    ("attention_norm", "scale"): ("input_layernorm.weight", "D"),
    ("attention", "query"): ("self_attn.q_proj.weight", "NH D"),
    ("attention", "key"): ("self_attn.k_proj.weight", "KH D"),
    ("attention", "value"): ("self_attn.v_proj.weight", "KH D"),
    ("attention", "output"): ("self_attn.o_proj.weight", "D NH"),
    ("mlp_norm", "scale"): ("post_attention_layernorm.weight", "D"),
    ("mlp", "gate"): ("mlp.gate_proj.weight", "F D"),
    ("mlp", "up"): ("mlp.up_proj.weight", "F D"),
    ("mlp", "down"): ("mlp.down_proj.weight", "D F"),
}
"""The same under `blocks`, for the tensors of `model.layers.N`."""

QKV_BIAS: Rows = {
    ("attention", "query_bias"): ("self_attn.q_proj.bias", "NH"),
    ("attention", "key_bias"): ("self_attn.k_proj.bias", "KH"),
    ("attention", "value_bias"): ("self_attn.v_proj.bias", "KH"),
}
QK_NORM: Rows = {
    ("attention", "query_norm", "scale"): ("self_attn.q_norm.weight", "H"),
    ("attention", "key_norm", "scale"): ("self_attn.k_norm.weight", "H"),
}
# What stands before the MLP in other families stands after attention here.
POST_NORMS: Rows = {
    ("attention_post_norm", "scale"): ("post_attention_layernorm.weight", "D"),
    ("mlp_norm", "scale"): ("pre_feedforward_layernorm.weight", "D"),
    ("mlp_post_norm", "scale"): ("post_feedforward_layernorm.weight", "D"),
}


_TEXT = {"language_model.": "", "model.language_model.": "model."}
"""How names of the text half begin in a model that also sees images, older and newer, and what
they begin with without it."""
_IMAGES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.",
           "model.multi_modal_projector.")  # fmt: skip


class Tensor(NamedTuple):
    """A tensor of the published format.

    path: of its parameter; layer: its place among the stacked layers, None outside of them;
    groups: for each axis of the tensor, the axes of the parameter (without that of layers) that
    are joined in it.
    """

    name: str
    path: tuple[str, ...]
    layer: int | None
    groups: tuple[Shape, ...]

    @property
    def shape(self) -> Shape:
        """As in the file."""
        return tuple(math.prod(group) for group in self.groups)

    @property
    def param_shape(self) -> Shape:
        """Of the parameter, or of one layer of it."""
        return tuple(size for group in self.groups for size in group)


def tensors(config: ModelConfig, vocab_size: int) -> tuple[Tensor, ...]:
    """All tensors of a model, those of a block side by side. vocab_size: rows of the embedding."""
    sizes = {
        "V": vocab_size, "D": config.d_model, "F": config.mlp_dim,
        "N": config.num_heads, "K": config.num_kv_heads, "H": config.head_dim,
    }  # fmt: skip

    def one(path: tuple[str, ...], layer: int | None, name: str, axes: str) -> Tensor:
        groups = tuple(tuple(sizes[letter] for letter in axis) for axis in axes.split())
        return Tensor(name, path, layer, groups)

    top = dict(TOP)
    if config.tie_embeddings:
        del top["unembedding",]
    block = {
        **BLOCK,
        **(QKV_BIAS if config.qkv_bias else {}),
        **(QK_NORM if config.qk_norm else {}),
        **(POST_NORMS if config.post_norms else {}),
    }
    layers = [
        one(("blocks", *path), layer, f"model.layers.{layer}.{name}", axes)
        for layer in range(config.num_layers)
        for path, (name, axes) in block.items()
    ]
    first, *last = (one(path, None, name, axes) for path, (name, axes) in top.items())
    return (first, *layers, *last)


def of_text(names: Iterable[str]) -> dict[str, str]:
    """Of a model that also sees images: name of a tensor of its text half in the published format
    -> its name in the file. Those that have no place in either half are there as they are. Empty
    for a model of text only."""
    held = {name: next((w for w in _TEXT if name.startswith(w)), None) for name in names}
    if not any(held.values()):
        return {}
    return {
        (_TEXT[whole] + name.removeprefix(whole) if whole else name): name
        for name, whole in held.items()
        if not name.startswith(_IMAGES)
    }


def num_layers(names: Iterable[str]) -> int:
    """Of the blocks that tensors in the published format are of."""
    found = (re.match(r"model\.layers\.(\d{1,9})\.", name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def ignorable(name: str) -> bool:
    """Whether a tensor says nothing: rotary frequencies that old versions of transformers saved."""
    return name.endswith(".rotary_emb.inv_freq")
