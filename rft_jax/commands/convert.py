"""`rft-jax convert`: a policy as a model in the Hugging Face format, with tokenizer and card."""

from __future__ import annotations

import json
from typing import NamedTuple

import jax

from rft_jax.checkpoint import policy as policies
from rft_jax.checkpoint.policy import Policy
from rft_jax.commands.average import Others, average, check_alike
from rft_jax.commands.model_card import model_card
from rft_jax.commands.options import ConvertOptions
from rft_jax.data.prompts import with_ends
from rft_jax.data.tokenizers.sentencepiece_model import SentencePiece
from rft_jax.errors import UserError
from rft_jax.hub.folder import PROMPTING, require_fresh
from rft_jax.hub.raw_config import raw_config_of
from rft_jax.hub.save import Dtype, save_pretrained


class Converted(NamedTuple):
    """What was written. parameters: their number."""

    parameters: int
    dtype: Dtype


def convert(policy: Policy, options: ConvertOptions, others: Others = ()) -> Converted:
    """Write the policy, averaged with others by their weights, into the new folder `options.out`,
    which appears whole or not at all.

    The host holds one file of weights at a time. Raises UserError for a folder that cannot be
    written and a tokenizer that would be misread, ModelError for a folder that holds something
    and a model that the format cannot express.
    """
    out = options.out
    require_fresh(out)
    check_alike(policy, others)
    dtype: Dtype = "bfloat16" if policy.model.compute_dtype == "bfloat16" else "float32"
    dtype = options.dtype or dtype
    tokenizer, model = policy.tokenizer, policy.model.without_adapters()
    if policy.config is not None:
        tokenizer = with_ends(tokenizer, policy.config.data)
    kept = policy.folder / policies.FOLDER if policy.config else policy.folder
    raw = policy.raw
    if raw is None:
        assert policy.config is not None, "a published model has a config.json"
        data = policy.config.data
        raw = raw_config_of(
            model,
            max_positions=data.max_prompt_tokens + data.max_completion_tokens,
            eos_ids=tokenizer.eos_ids,
            bos_id=tokenizer.prefix_ids[0] if tokenizer.prefix_ids else None,
            pad_id=tokenizer.pad_id,
        )
    if raw["model_type"] == "qwen2" and isinstance(tokenizer, SentencePiece):
        raise UserError(
            f"{policy.name}: it is written as qwen2, of which transformers reads no SentencePiece "
            "tokenizer: train it from the published model's tokenizer, or without model.qkv_bias."
        )
    generation = policies.generation_of(kept, tokenizer)
    files = tokenizer.files() | {
        "generation_config.json": (json.dumps(generation, indent=2) + "\n").encode(),
        PROMPTING: (json.dumps(policy.data.prompting, indent=2) + "\n").encode(),
        "README.md": model_card(policy, out.name, others).encode(),
    }
    params = average(policy, others)
    try:
        save_pretrained(
            params,
            model,
            out,
            raw=raw,
            dtype=dtype,
            files=files,
            max_shard_bytes=int(options.max_shard_gb * 10**9),
        )
    except OSError as error:
        raise UserError(f"{out}: cannot write here ({error.strerror}).") from error
    return Converted(sum(leaf.size for leaf in jax.tree.leaves(params)), dtype)
