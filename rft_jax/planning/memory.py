"""Memory of a run on one device, counted part by part from its settings.

A run holds masters, moments and, with adapters, the frozen base all the time. What sampling and
the update add is counted at the moments at which most is alive, as the programs in rft_jax/rollout
and rft_jax/training have it. What a compiler needs for a layer at work, and the room that it
leaves, are rules of thumb; benchmarks/compiled_memory.py compares them with compilers.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh

from rft_jax.config import Config, MeshConfig, ModelConfig
from rft_jax.distributed.mesh import AXES as MESH_AXES
from rft_jax.distributed.mesh import RULES, param_shardings
from rft_jax.errors import ConfigError
from rft_jax.models import adapters, transformer
from rft_jax.models.axes import AXES, logical_axes
from rft_jax.observe.flops import Model
from rft_jax.rollout import sampler
from rft_jax.rollout.engine import BATCHES_AT_ONCE, rows_for
from rft_jax.rollout.slots import PREFILL_TOKENS
from rft_jax.training.packing import update_sizes

Parts = dict[str, float]
"""Bytes on one device by what they are."""

FLOAT32 = 4
LOGIT_COPIES = 5
"""Arrays like the logits that exist together: they, their exponentials, cumulated sums, ..."""
ENTROPY_COPIES = 2
"""Those that an entropy bonus adds in the update."""
ROOM, ROOM_ON_TPU = 0.1, 0.2
"""What a compiler's layout of temporaries leaves unused, as a share of them."""
GROWTH_IN_WORK = 0.15
"""Of a ring that grows, what a TPU needs beside the old one and the new one."""
LANES = 128
"""The last axis of an array at work on a TPU is padded to a multiple of this."""


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


def model_of(config: Config) -> Model:
    """The model as it is counted; ConfigError when the settings leave the vocabulary open."""
    rows = config.model.vocab_size or config.tokenizer.vocab_size
    if not rows:
        raise ConfigError(
            "model.vocab_size is 0, which leaves it to the tokenizer: set it to the rows of the "
            "model's embedding."
        )
    return Model(config.model, rows)


@functools.lru_cache(maxsize=8)
def params(model: Model) -> tuple[Any, Any, Any]:
    """Shapes of (all, the frozen, the trained) parameters."""
    shapes = transformer.abstract_params(config=model.config, vocab_size=model.vocab)
    return (shapes, *adapters.split(shapes, model.config))


def check_parameters(config: Config, of: Shards) -> None:
    """ConfigError where a mesh does not split every parameter evenly."""
    shapes, mesh = params(model_of(config))[0], AbstractMesh(tuple(of), MESH_AXES)
    param_shardings(mesh, shapes, logical_axes(shapes))


def tree_bytes(tree: Any, of: Shards, size: int, *, fsdp: bool = True) -> float:
    """Bytes of a device's share of parameters.

    Args:
        tree: shapes of parameters.
        size: bytes of a number; scales of norms always have float32's.
        fsdp: whether the width is split too.
    """
    sizes = of._asdict()
    total = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = tuple(part.key for part in path)
        axes = [RULES[axis] for axis in AXES[names] if axis is not None]
        split = [sizes[axis] for axis in axes if axis is not None and (fsdp or axis != "fsdp")]
        width = FLOAT32 if names[-1] == "scale" else size
        total += math.prod(leaf.shape) / math.prod(split) * width
    return total


def masters(config: Config, of: Shards) -> float:
    """What is trained, in float32."""
    return tree_bytes(params(model_of(config))[2], of, FLOAT32)


def held(config: Config, of: Shards) -> Parts:
    """From the start of a run to its end."""
    trained, model = masters(config, of), model_of(config)
    first = 0.5 if config.optimizer.first_moment_dtype == "bfloat16" else 1.0
    parts = {"masters": trained, "moments": (first + 1.0) * trained}
    if frozen := params(model)[1]:
        parts["frozen base"] = tree_bytes(frozen, of, model.width)
    if config.has_reference:
        parts["reference"] = tree_bytes(params(model)[2], of, model.width)
    if config.critic is not None:
        parts["value function"] = (first + 2.0) * trained
    return parts


class Sampled(NamedTuple):
    """One call of the sampler, over all devices: questions (fillers included), outputs of each, and
    outputs decoded at a time, 0 for all."""

    questions: int
    samples: int
    slots: int

    def grid(self, of: Shards) -> tuple[int, int, int]:
        """(questions, rows of slots, lanes of a row) of one shard of the batch."""
        questions = self.questions // of.batch
        return questions, *sampler.slots_shape(questions, self.samples, -(-self.slots // of.batch))


def rollout(config: Config, of: Shards) -> Sampled:
    """The rollout of a step."""
    assert config.rollout is not None
    asked = config.rollout.questions_per_step
    rows = rows_for(asked, asked, of.batch)
    return Sampled(rows, config.rollout.samples_per_question, config.rollout.slots)


def evaluation(config: Config, of: Shards, samples: int) -> Sampled:
    """A block of an evaluation's questions, for a set of BATCHES_AT_ONCE batches or more."""
    batch = config.evaluation.questions_per_batch
    block = BATCHES_AT_ONCE * batch
    return Sampled(rows_for(block, block, of.batch), samples, batch * samples)


def evaluations(config: Config, of: Shards) -> list[Sampled]:
    """What all evaluations of a run sample."""
    settings, counts = config.evaluation, {1}
    if settings.every_steps:
        counts.add(settings.samples_per_question)
    if config.data.test:
        counts.add(settings.test_samples_per_question)
    return [evaluation(config, of, samples) for samples in sorted(counts - {0})]


def kv_bytes(model: Model, of: Shards) -> float:
    """Of one token in the caches of all layers."""
    return model.width * model.kv_numbers / of.tensor


class Caches(NamedTuple):
    """Bytes: store: the prompts' keys and values that the queue hands out; prompts: those in the
    rows of slots; column: one column of all slots' ring; outputs: all sampled so far."""

    store: float
    prompts: float
    column: float
    outputs: float


def caches(config: Config, of: Shards, work: Sampled) -> Caches:
    """What the decode loop keeps."""
    data, per_token = config.data, kv_bytes(model_of(config), of)
    questions, rows, lanes = work.grid(of)
    everyone = rows * lanes == questions * work.samples and lanes == work.samples
    return Caches(
        store=0.0 if everyone else questions * data.max_prompt_tokens * per_token,
        prompts=(1 if everyone else 2) * rows * data.max_prompt_tokens * per_token,
        column=rows * lanes * per_token,
        # Tokens, log-probs and entropies.
        outputs=3 * FLOAT32 * questions * work.samples * data.max_completion_tokens,
    )


def rings(config: Config) -> list[int]:
    """Columns of the slots' own cache, as they grow."""
    longest = config.data.max_completion_tokens
    return sorted({layout.ring for layout in sampler.layouts(1, longest, fewer=2)})


def rollout_weights(config: Config, of: Shards) -> float:
    """The rollout's own copy of the parameters, cast, laid out and layer by layer."""
    model = model_of(config)
    return tree_bytes(params(model)[0], of, model.width, fsdp=False)


def sampling(config: Config, of: Shards, work: Sampled, *, tpu: bool) -> dict[str, Parts]:
    """What sampling adds at its moments: in the prefill, when the ring grows, while decoding.

    Args:
        work: the call of the sampler.
        tpu: whether a TPU's compiler lays out the memory.
    """
    model, data, columns = model_of(config), config.data, rings(config)
    kept, (questions, rows, lanes) = caches(config, of, work), work.grid(of)
    slots = kept.column * columns[-1] + kept.prompts + kept.outputs
    everywhere = {
        "rollout weights": rollout_weights(config, of),
        "prompts of the queue": kept.store,
    }
    at_once = min(questions, max(1, PREFILL_TOKENS // data.max_prompt_tokens))
    prefill = at_once * data.max_prompt_tokens * forward_bytes(model, of, data.max_prompt_tokens)
    padded = -(-model.config.head_dim // LANES) * LANES / model.config.head_dim
    moments: dict[str, Parts] = {
        "prefill": {
            "slots": kept.column * columns[0] + kept.prompts + kept.outputs,
            # A TPU's compiler puts the parts of a long queue together in another place.
            "prefill at work": prefill + (kept.store if tpu and questions > at_once else 0.0),
        },
        "decode": {
            "slots": slots,
            "logits": LOGIT_COPIES * logits_bytes(model, of, rows * lanes),
            # A TPU's compiler copies them into another layout.
            "prompts of the queue again": kept.store * padded if tpu else 0.0,
        },
    }
    if len(columns) > 1:
        moments["growth"] = {
            "slots": slots,
            "slots before": kept.column * columns[-2] + kept.prompts + kept.outputs,
            "growth at work": GROWTH_IN_WORK * kept.column * columns[-1] if tpu else 0.0,
        }
    return {name: everywhere | parts for name, parts in moments.items()}


def logits_bytes(model: Model, of: Shards, tokens: float) -> float:
    """One array of float32 logits."""
    return FLOAT32 * tokens * model.vocab / of.tensor


def forward_bytes(model: Model, of: Shards, slots: int) -> float:
    """Of one token while its layer is at work: about what a block computes, and the scores of a
    block of queries, an eighth of a row's."""
    c = model.config
    heads = (2 * c.num_heads + 4 * c.num_kv_heads) * c.head_dim
    wide = 4 * c.d_model + (heads + 3 * c.mlp_dim) / of.tensor
    scores = 2 * FLOAT32 * c.num_heads / of.tensor * slots / 8
    return model.width * wide + scores


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
    attention = (n + model.num_heads * FLOAT32 / Model(model, 0).width) / of.tensor
    return products + (attention if model.remat == "none" else 0.0)


def update(config: Config, of: Shards, *, tpu: bool) -> Parts:
    """What the update adds at its peak. tpu: as in `sampling`."""
    model, sizes = model_of(config), update_sizes(config)
    if sizes.rows % of.batch:
        raise ConfigError(
            f"update.rows_per_microbatch is {sizes.rows}: it must be a multiple of mesh.data x "
            f"mesh.fsdp, {of.batch}, such as {math.lcm(sizes.rows, of.batch)}; --search finds one."
        )
    whole, _, trained = params(model)
    tokens, size = sizes.rows // of.batch * sizes.row_length, model.width
    table = size * model.head / of.tensor
    blocks = tree_bytes({"blocks": whole["blocks"]}, of, size, fsdp=False)
    copies = LOGIT_COPIES + ENTROPY_COPIES * config.objective.entropy_bonus
    logits = copies * logits_bytes(model, of, tokens_at_once(config, of))
    # The gradients of a layer take 1.5 times what its forward pass does.
    in_layer = tokens * 2.5 * forward_bytes(model, of, sizes.row_length)
    in_layer += 2 * blocks / config.model.num_layers if of.fsdp > 1 else 0.0
    # A part of the vocabulary's gradient, and in bfloat16 the sum of parts as well.
    sums = (1 if size == FLOAT32 else 2) if "embedding" in trained else 0
    kept = kept_numbers(config.model, of)
    parts = {
        "gradients": 2 * masters(config, of),
        # Of all layers: a TPU's compiler takes the cast out of the loops.
        "weights cast": tree_bytes(trained, of, size) if tpu and size < FLOAT32 else 0.0,
        "vocabulary at work": table * (sums + (of.fsdp > 1)),
        "activations kept": size * config.model.num_layers * tokens * kept,
        "a layer or logits at work": max(in_layer, logits),
    }
    parts["room of the compiler"] = (ROOM_ON_TPU if tpu else ROOM) * sum(parts.values())
    return parts | {"batch": 7 * FLOAT32 * tokens * sizes.microbatches}


def tokens_at_once(config: Config, of: Shards) -> int:
    """Tokens of a device whose logits exist together in the update (training/log_probs.py)."""
    shapes, rows = config.update, config.update.rows_per_microbatch // of.batch
    at_once = max(1, shapes.logits_at_once // model_of(config).vocab)
    if of.data == math.prod(of):
        a_row = max(1, at_once // of.data) // rows
    else:
        a_row = at_once // shapes.rows_per_microbatch
    return min(max(1, a_row), shapes.row_length) * rows


def by_phase(config: Config, of: Shards, *, tpu: bool) -> dict[str, Parts]:
    """Of each phase the parts at the moment that needs most."""
    always = held(config, of)

    def worst(works: list[Sampled]) -> Parts:
        moments = [m for work in works for m in sampling(config, of, work, tpu=tpu).values()]
        return always | max(moments, key=lambda parts: sum(parts.values()))

    phases: dict[str, Parts] = {}
    if config.rollout is not None:
        phases["sampling"] = worst([rollout(config, of)])
    phases["update"] = always | update(config, of, tpu=tpu)
    if config.evaluation.every_steps or config.data.test:
        phases["evaluation"] = worst(evaluations(config, of))
    return phases
