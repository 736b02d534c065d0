"""Tunix: its `Sampler` (the vanilla rollout engine) and `PeftTrainer`'s jitted step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.generate import sampler as sampler_lib
from tunix.models.qwen2 import model as qwen2
from tunix.sft import peft_trainer
from tunix.sft import utils as sft_utils

from benchmarks.protocol import Call, serve
from benchmarks.work import PAD, Task, Work

NEVER = 7
"""Added to the size of the vocabulary: an id that is never drawn."""


def device() -> str:
    """The kind of device."""
    return jax.devices()[0].device_kind


class IdTokenizer:
    """Text is ids with spaces between, so that prompts have the exact length; no BOS."""

    def __init__(self, vocab: int):
        self.vocab = vocab

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Any, **kwargs: Any) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0  # the sampler adds none that is false

    def eos_id(self) -> int:
        return self.vocab + NEVER

    def pad_id(self) -> int:
        return PAD


def forced_stops(work: Work, eos: int) -> Any:
    """The model with the logit of `eos` raised where row b should draw its last token.

    That token is the row's lengths[b]-th, so that it stops there; elsewhere `eos` is impossible.
    """
    last = jnp.asarray(work.ragged_lengths().reshape(-1)) + work.prompt_len - 2

    class Forced(qwen2.Qwen2):  # type: ignore[misc]
        def __call__(
            self, tokens: Any, positions: Any, cache: Any, attention_mask: Any = None, **kwargs: Any
        ) -> Any:
            logits, cache = super().__call__(tokens, positions, cache, attention_mask, **kwargs)
            forced = jnp.where(positions[:, -1] == last, 1e9, -1e9)[:, None]
            shape = logits.shape[:2]
            return logits.at[:, :, eos].set(jnp.broadcast_to(forced, shape)), cache

    Forced.__name__ = "Qwen2"
    return Forced


def build(work: Work, dtype: Any, make: Any = qwen2.Qwen2) -> Any:
    """A random model with weights of deviation 0.02."""
    shape = work.shape
    config = qwen2.ModelConfig(
        num_layers=shape.layers,
        vocab_size=shape.vocab,
        embed_dim=shape.d_model,
        hidden_dim=shape.mlp,
        num_heads=shape.heads,
        head_dim=shape.head_dim,
        num_kv_heads=shape.kv_heads,
        rope_theta=10_000,
        norm_eps=1e-6,
        use_tied_embedding=True,
        dtype=jnp.dtype(work.dtype),
        param_dtype=dtype,
    )
    model = make(config, rngs=nnx.Rngs(work.seed))
    keys = iter(jax.random.split(jax.random.key(work.seed), 4096))
    state = nnx.state(model, nnx.Param)

    def one(leaf: Any) -> Any:
        return 0.02 * jax.random.normal(next(keys), leaf.shape, dtype) if leaf.ndim > 1 else leaf

    nnx.update(model, jax.tree.map(one, state))
    return model


def prepare_sampling(task: Task) -> Call:
    """options: facts (True: also the log-prob of every token)."""
    work, ragged = task.work, task.job == "ragged"
    shape, lengths = work.shape, work.lengths(task.job).reshape(-1)
    eos = shape.vocab - 1 if ragged else shape.vocab + NEVER
    model = build(work, jnp.dtype(work.dtype), forced_stops(work, eos) if ragged else qwen2.Qwen2)
    cache = sampler_lib.CacheConfig(
        cache_size=work.prompt_len + work.new_tokens,
        num_layers=shape.layers,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
    )
    sampler = sampler_lib.Sampler(model, IdTokenizer(shape.vocab), cache)
    prompts = [" ".join(map(str, row)) for row in work.prompt_tokens() for _ in range(work.samples)]

    def call(number: int) -> dict[str, Any]:
        # Without top_p the sampler is greedy, whatever the temperature.
        made = sampler(
            prompts,
            max_generation_steps=work.new_tokens,
            max_prompt_length=work.prompt_len,
            temperature=1.0,
            top_p=1.0,
            eos_tokens=[eos],
            seed=number,
            return_logprobs=bool(task.options.get("facts", False)),
        )
        # What it returns leaves the end-of-sequence token out.
        got = np.asarray([len(tokens) for tokens in made.tokens]) + ragged
        return {"tokens": int(got.sum()) if np.array_equal(got, lengths) else -1}

    return call


def prepare_update(task: Task) -> Call:
    """Mean cross-entropy and AdamW. options: microbatch (sequences of one, 0 for all)."""
    work = task.work
    model = build(work, jnp.float32)
    ids = work.batch()
    count = int(task.options.get("microbatch", 0)) or len(ids)
    trainer = peft_trainer.PeftTrainer(
        model,
        optax.adamw(1e-4),
        peft_trainer.TrainingConfig(
            eval_every_n_steps=10**9,
            max_steps=10**6,
            gradient_accumulation_steps=len(ids) // count if count < len(ids) else None,
        ),
    )

    def model_input(part: Any) -> dict[str, Any]:
        mask = part.input_mask
        return {
            "input_tokens": part.input_tokens,
            "input_mask": mask,
            "positions": sft_utils.build_positions_from_mask(mask),
            "attention_mask": sft_utils.make_causal_attn_mask(mask),
        }

    trainer = trainer.with_gen_model_input_fn(model_input)
    step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    parts = [
        peft_trainer.TrainingInput(input_tokens=part, input_mask=np.ones(part.shape, bool))
        for part in (ids[start : start + count] for start in range(0, len(ids), count))
    ]

    def call(number: int) -> dict[str, Any]:
        losses = []
        for part in parts:
            loss, _, gradient_norm = step(part)
            losses.append(loss)
        jax.block_until_ready((gradient_norm, nnx.state(model)))
        return {"tokens": ids.size, "loss": float(np.mean(jax.device_get(losses)))}

    return call


def prepare(task: Task) -> Call:
    """The job on one device: what the package does unless told otherwise."""
    return prepare_update(task) if task.job == "update" else prepare_sampling(task)


if __name__ == "__main__":
    serve(
        prepare,
        packages=("google-tunix", "jax", "jaxlib", "flax", "optax", "numpy"),
        device=device,
    )
