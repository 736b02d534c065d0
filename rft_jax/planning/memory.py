"""Memory of a run on one device, counted part by part from its settings.

A run holds masters, moments and, with adapters, the frozen base all the time. What sampling and
the update add is counted at the moments at which most is alive, as the programs in rft_jax/sampling
and rft_jax/training have it. What a compiler needs for a layer at work, and the room that it
leaves, are rules of thumb; benchmarks/compiled_memory.py holds them against compilers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from rft_jax.config import Config, MeshConfig, ModelConfig
from rft_jax.distributed.mesh import RULES
from rft_jax.errors import ConfigError
from rft_jax.models import adapters, transformer
from rft_jax.models.axes import AXES
from rft_jax.observe.flops import BYTES
from rft_jax.rollout import sampler
from rft_jax.rollout.engine import BATCHES_AT_ONCE, rows_for
from rft_jax.rollout.slots import PREFILL_TOKENS
from rft_jax.training.packing import num_microbatches

Parts = dict[str, float]
"""Bytes on one device by what they are."""

FLOAT32 = 4
LOGIT_COPIES = 5
"""Arrays like the logits that exist together: they, their exponentials, cumulated sums, ..."""
ROOM, ROOM_ON_TPU = 0.1, 0.2
"""What a compiler's layout of temporaries leaves unused, as a share of them."""
GROWTH_IN_WORK = 0.15
"""Of a ring that grows, what a TPU needs besides the old one and the new one."""
LANES = 128
"""The last axis of an array at work on a TPU is padded to a multiple of so many."""


class Shards(NamedTuple):
    """Sizes of the mesh."""

    data: int
    fsdp: int
    tensor: int

    @property
    def batch(self) -> int:
        """Batches are split this many ways."""
        return self.data * self.fsdp


def shards(config: MeshConfig, count: int) -> Shards:
    """The mesh over `count` devices; ConfigError when it cannot be made of them."""
    sizes = (config.data, config.fsdp, config.tensor)
    known = math.prod(size for size in sizes if size != -1)
    if count % known or (-1 not in sizes and known != count):
        raise ConfigError(
            f"mesh is data={config.data} x fsdp={config.fsdp} x tensor={config.tensor}, and there "
            f"are {count} devices: choose a mesh that makes them up, or other devices."
        )
    return Shards(*(count // known if size == -1 else size for size in sizes))


def vocabulary(config: Config) -> int:
    """Rows of the embedding; ConfigError when the settings do not say."""
    rows = config.model.vocab_size or config.tokenizer.vocab_size
    if not rows:
        raise ConfigError(
            "model.vocab_size is 0, which leaves it to the tokenizer: set it to the rows of the "
            "model's embedding."
        )
    return rows


def tree_bytes(tree: Any, of: Shards, size: Callable[[str], int], *, fsdp: bool) -> float:
    """Bytes of a device's share of parameters. size: bytes of a number, by the parameter's name;
    fsdp: whether the width is split too."""
    sizes = of._asdict()
    total = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = tuple(part.key for part in path)
        axes = [RULES[axis] for axis in AXES[names] if axis is not None]
        split = [sizes[axis] for axis in axes if axis is not None and (fsdp or axis != "fsdp")]
        total += math.prod(leaf.shape) / math.prod(split) * size(names[-1])
    return total


def undivided(tree: Any, of: Shards) -> list[str]:
    """Parameters that a mesh does not split evenly."""
    sizes = of._asdict()
    return [
        ".".join(str(part.key) for part in path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        for size, axis in zip(leaf.shape, AXES[tuple(part.key for part in path)], strict=True)
        if axis is not None and RULES[axis] is not None and size % sizes[str(RULES[axis])]
    ]


def as_masters(_: str) -> int:
    """Bytes of a number that is trained."""
    return FLOAT32


def as_computed(model: ModelConfig) -> Callable[[str], int]:
    """Bytes of a number in the compute type; scales of norms stay in float32."""
    size = BYTES[model.compute_dtype]
    return lambda name: FLOAT32 if name == "scale" else size


@dataclass(frozen=True)
class Policy:
    """Shapes of all parameters, and of the frozen and the trained part of them."""

    params: Any
    frozen: Any
    trained: Any


def policy(config: Config) -> Policy:
    """The policy of a run."""
    return _policy(config.model, vocabulary(config))


@functools.lru_cache(maxsize=8)
def _policy(model: ModelConfig, vocab_size: int) -> Policy:
    params = transformer.abstract_params(config=model, vocab_size=vocab_size)
    return Policy(params, *adapters.split(params, model))


def held(config: Config, of: Shards) -> Parts:
    """From the start of a run to its end."""
    own = policy(config)
    masters = tree_bytes(own.trained, of, as_masters, fsdp=True)
    first = 0.5 if config.optimizer.first_moment_dtype == "bfloat16" else 1.0
    parts = {"masters": masters, "moments": (first + 1.0) * masters}
    if own.frozen:
        size = as_computed(config.model)
        parts["frozen base"] = tree_bytes(own.frozen, of, size, fsdp=True)
    if config.objective.kl_coefficient:
        parts["reference"] = masters
    return parts


class Sampled(NamedTuple):
    """One call of the sampler, over all devices: questions (fillers included), outputs of each, and
    outputs decoded at a time, 0 for all."""

    questions: int
    samples: int
    slots: int


def rollout(config: Config, of: Shards) -> Sampled:
    """The rollout of a step."""
    assert config.rollout is not None
    settings = config.rollout
    asked = settings.questions_per_step
    rows = rows_for(asked, asked, of.batch)
    return Sampled(rows, settings.samples_per_question, settings.slots)


def evaluations(config: Config, of: Shards) -> list[Sampled]:
    """What evaluations sample, for sets of BATCHES_AT_ONCE batches of questions or more."""
    settings = config.evaluation
    block = BATCHES_AT_ONCE * settings.questions_per_batch
    questions = rows_for(block, block, of.batch)
    counts = {1}
    if settings.every_steps:
        counts.add(settings.samples_per_question)
    if config.data.test:
        counts.add(settings.test_samples_per_question)
    return [Sampled(questions, n, settings.questions_per_batch * n) for n in sorted(counts - {0})]


def kv_bytes(model: ModelConfig, of: Shards) -> float:
    """Of one token in the caches of all layers."""
    numbers = 2 * model.num_layers * model.num_kv_heads * model.head_dim
    return BYTES[model.compute_dtype] * numbers / of.tensor


class Caches(NamedTuple):
    """Bytes: store: the prompts' keys and values that the queue hands out; prompts: those in the
    rows of slots; column: one column of all slots' ring; outputs: all sampled so far."""

    store: float
    prompts: float
    column: float
    outputs: float


def caches(config: Config, of: Shards, work: Sampled) -> Caches:
    """What the decode loop keeps."""
    data, per_token = config.data, kv_bytes(config.model, of)
    questions = work.questions // of.batch
    rows, lanes = sampler.slots_shape(questions, work.samples, -(-work.slots // of.batch))
    everyone = rows * lanes == questions * work.samples and lanes == work.samples
    return Caches(
        store=0.0 if everyone else questions * data.max_prompt_tokens * per_token,
        prompts=(1 if everyone else 2) * rows * data.max_prompt_tokens * per_token,
        column=rows * lanes * per_token,
        # Tokens, log-probs and entropies.
        outputs=3 * FLOAT32 * questions * work.samples * data.max_completion_tokens,
    )


def rollout_weights(config: Config, of: Shards) -> float:
    """The rollout's own copy of the parameters, cast, laid out and layer by layer."""
    return tree_bytes(policy(config).params, of, as_computed(config.model), fsdp=False)


def sampling(config: Config, of: Shards, work: Sampled, *, tpu: bool) -> dict[str, Parts]:
    """What sampling adds at its moments: in the prefill, when the ring grows, while decoding."""
    model, data = config.model, config.data
    kept, longest = caches(config, of, work), data.max_completion_tokens
    rings = sorted({layout.ring for layout in sampler.layouts(1, longest, fewer=2)})
    slots = kept.column * rings[-1] + kept.prompts + kept.outputs
    everywhere = {
        "rollout weights": rollout_weights(config, of),
        "prompts of the queue": kept.store,
    }
    questions = work.questions // of.batch
    at_once = min(questions, max(1, PREFILL_TOKENS // data.max_prompt_tokens))
    prefill = at_once * data.max_prompt_tokens * forward_bytes(model, of, data.max_prompt_tokens)
    moments: dict[str, Parts] = {
        "prefill": {
            "slots": kept.column * rings[0] + kept.prompts + kept.outputs,
            # A TPU's compiler puts the parts of a long queue together in another place.
            "prefill at work": prefill + (kept.store if tpu and questions > at_once else 0.0),
        },
        "decode": {
            "slots": slots,
            "logits": LOGIT_COPIES * logits_bytes(config, of, kept.column / kv_bytes(model, of)),
            # A TPU's compiler copies them into another layout.
            "prompts of the queue again": kept.store * _padded(model) if tpu else 0.0,
        },
    }
    if len(rings) > 1:
        before = kept.column * rings[-2] + kept.prompts + kept.outputs
        moments["growth"] = {
            "slots": slots,
            "slots before": before,
            "growth at work": GROWTH_IN_WORK * kept.column * rings[-1] if tpu else 0.0,
        }
    return {name: everywhere | parts for name, parts in moments.items()}


def _padded(model: ModelConfig) -> float:
    return -(-model.head_dim // LANES) * LANES / model.head_dim


def logits_bytes(config: Config, of: Shards, tokens: float) -> float:
    """One array of float32 logits."""
    return FLOAT32 * tokens * vocabulary(config) / of.tensor


def forward_bytes(model: ModelConfig, of: Shards, slots: int) -> float:
    """Of one token while its layer is at work: about what a block computes, and the scores of a
    block of queries, an eighth of a row's."""
    heads = (2 * model.num_heads + 4 * model.num_kv_heads) * model.head_dim
    wide = 4 * model.d_model + (heads + 3 * model.mlp_dim) / of.tensor
    scores = 2 * FLOAT32 * model.num_heads / of.tensor * slots / 8
    return BYTES[model.compute_dtype] * wide + scores


def backward_bytes(model: ModelConfig, of: Shards, slots: int) -> float:
    """The same with the gradients of a layer."""
    return 2.5 * forward_bytes(model, of, slots)


def kept_numbers(model: ModelConfig, of: Shards) -> float:
    """Numbers that a block keeps of a token for its backward pass, its input among them
    (model.remat)."""
    if model.remat == "full":
        return model.d_model
    n, k = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    out = {"query": n, "key": k, "value": k, "gate": model.mlp_dim, "up": model.mlp_dim}
    # The MLP's output is the next block's input. With adapters W x, A x and B A x are kept.
    adapted = sum(out.get(name, 0) + model.lora_rank for name in model.lora_targets)
    products = (n + 2 * k + 2 * model.mlp_dim + adapted) / of.tensor + 2 * model.d_model
    if "output" in model.lora_targets:
        products += model.d_model
    attention = (n + model.num_heads * FLOAT32 / BYTES[model.compute_dtype]) / of.tensor
    return products + (attention if model.remat == "none" else 0.0)


def update(config: Config, of: Shards, *, tpu: bool) -> Parts:
    """What the update adds at its peak."""
    own, model, shapes = policy(config), config.model, config.update
    if shapes.rows_per_microbatch % of.batch:
        raise ConfigError(
            f"update.rows_per_microbatch is {shapes.rows_per_microbatch}: it must be a multiple of "
            f"mesh.data x mesh.fsdp, {of.batch}."
        )
    rows = shapes.rows_per_microbatch // of.batch
    tokens, size = rows * shapes.row_length, BYTES[model.compute_dtype]
    masters = tree_bytes(own.trained, of, as_masters, fsdp=True)
    cast = tree_bytes(own.trained, of, as_computed(model), fsdp=True)
    table = size * vocabulary(config) * model.d_model / of.tensor
    blocks = tree_bytes({"blocks": own.params["blocks"]}, of, as_computed(model), fsdp=False)
    gathered = blocks / model.num_layers
    chunk = tokens_at_once(config, of)
    logits = LOGIT_COPIES * logits_bytes(config, of, chunk)
    in_layer = tokens * backward_bytes(model, of, shapes.row_length)
    in_layer += 2 * gathered if of.fsdp > 1 else 0.0
    # A part of the vocabulary's gradient, and in bfloat16 the sum of parts as well.
    sums = (1 if size == FLOAT32 else 2) if "embedding" in own.trained else 0
    parts = {
        "gradients": 2 * masters,
        # Of all layers: a TPU's compiler takes the cast out of the loops.
        "weights cast": cast if tpu and size < FLOAT32 else 0.0,
        "vocabulary at work": table * (sums + (of.fsdp > 1)),
        "activations kept": size * model.num_layers * tokens * kept_numbers(model, of),
        "a layer or logits at work": max(in_layer, logits),
    }
    parts["room of the compiler"] = (ROOM_ON_TPU if tpu else ROOM) * sum(parts.values())
    return parts | {"batch": 7 * FLOAT32 * tokens * microbatches(config)}


def tokens_at_once(config: Config, of: Shards) -> int:
    """Tokens of a device whose logits exist together in the update (training/log_probs.py)."""
    shapes, rows = config.update, config.update.rows_per_microbatch // of.batch
    at_once = max(1, shapes.logits_at_once // vocabulary(config))
    if of.data == math.prod(of):
        a_row = max(1, at_once // of.data) // rows
    else:
        a_row = at_once // shapes.rows_per_microbatch
    return min(max(1, a_row), shapes.row_length) * rows


def microbatches(config: Config) -> int:
    """Micro-batches that the batch's arrays have room for."""
    most = config.update.sequences_per_step
    if config.refill is not None:
        most = config.refill.accepted
    elif config.rollout is not None and not most:
        most = config.rollout.questions_per_step * config.rollout.samples_per_question
    longest = config.data.max_prompt_tokens + config.data.max_completion_tokens
    return num_microbatches(
        most,
        longest,
        row_length=config.update.row_length,
        rows_per_microbatch=config.update.rows_per_microbatch,
    )
