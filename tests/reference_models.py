"""Tiny models of every family, made by transformers on the spot: what imports are compared with."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers

transformers.utils.logging.disable_progress_bar()

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Heads are 6 wide unless a case says otherwise. Texts of the tests have more positions than the
windows, and than the llama3 scaling's original ones."""

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

GEMMA = {
    "head_dim": 12,
    "query_pre_attn_scalar": 10,
    "sliding_window": 4,
    "num_hidden_layers": 3,
}

CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}),
    "llama_tied": ("llama", {"tie_word_embeddings": True, "head_dim": 12}),
    "llama_all_heads": ("llama", {"num_key_value_heads": 4, "rms_norm_eps": 1e-2}),
    "llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama_linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral_window": ("mistral", {"sliding_window": 4, "head_dim": 12}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2_window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
    ),
    "qwen2_last_layers": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 2,
            "num_hidden_layers": 4,
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "qwen3_window": (
        "qwen3",
        {
            "head_dim": 12,
            "use_sliding_window": True,
            "sliding_window": 4,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        },
    ),
    "qwen3_tied": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma2": (
        "gemma2",
        {**GEMMA, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0},
    ),
    "gemma2_no_caps": (
        "gemma2",
        {**GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3": (
        "gemma3_text",
        {
            **GEMMA,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
            },
        },
    ),
}
"""Name -> (model_type, what its configuration has besides SHAPE)."""

WITH_IMAGES = {
    "gemma3_images": (
        "gemma3",
        {
            "text_config": {**SHAPE, **CASES["gemma3"][1]},
            "vision_config": {
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
            },
            "mm_tokens_per_image": 4,
        },
    )
}
"""Models that also see images."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make(case: str, *, dtype: str = "float32", seed: int = 0) -> Any:
    """A model of a case, every weight of which is drawn anew: norms and biases too, so that one
    that is left out or goes to another place shows."""
    kind, changes = {**CASES, **WITH_IMAGES}[case]
    settings = changes if case in WITH_IMAGES else {**SHAPE, **changes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.AutoConfig.for_model(kind, **settings)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            if name.endswith("norm.weight") and not kind.startswith("gemma"):
                weight.copy_(1 + 0.3 * noise)
            elif weight.ndim == 1:
                weight.copy_(0.3 * noise)
            else:
                weight.copy_(noise / math.sqrt(weight.shape[1]))
    return model.to(DTYPES[dtype]).eval()


def save(
    case: str, folder: Path, *, dtype: str = "float32", seed: int = 0, max_shard_size: str = "20KB"
) -> Any:
    """Make a model of a case and save it in `folder`, by default in several shards."""
    model = make(case, dtype=dtype, seed=seed)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


def load(folder: Path) -> tuple[Any, Mapping[str, Any]]:
    """The model in a folder, by transformers, in the type of its files, and what transformers says
    of weights that are missing, left over or out of shape."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", attn_implementation="eager", output_loading_info=True
    )
    return model.eval(), report


def logits(model: Any, tokens: list[list[int]]) -> Any:
    """Logits [batch, position, token] as numpy has them."""
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens)).logits.float().numpy()
