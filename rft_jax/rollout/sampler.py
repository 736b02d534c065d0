"""Autoregressive sampling: from prompts to G outputs each, in any number of slots.

The host starts the loop of `slots.py` and lets it run for some steps at a time; in between it takes
the outputs that have ended, and gives the loop its next layout: a longer ring, or fewer slots for
the last samples. Randomness is addressed (rft_jax/keys.py): an output depends on its
question, sample index and step only, not on what is sampled beside it.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key

from rft_jax.config import ModelConfig
from rft_jax.distributed.mesh import batch_size_divisor
from rft_jax.distributed.shards import mesh_of, on_shards, read
from rft_jax.models import transformer
from rft_jax.rollout import relayout
from rft_jax.rollout import slots as loop
from rft_jax.rollout.slots import Outputs, Slots, Store
from rft_jax.rollout.streaming import Ended, Taken, Taking
from rft_jax.types import Completions, Params, Prompts

FIRST_RING = 32
"""Columns that the slots' own cache starts with; it doubles as outputs grow."""
SHRINK = {"cpu": 2}
"""By platform: factor by which the last samples move to fewer slots, as often as MIN_SLOTS are
left. On a CPU a step's time follows its slots, elsewhere the weights that it reads."""
SHRINK_ELSEWHERE = 4
MIN_SLOTS = 8
ROW_LANES = 8
"""Slots that share a copy of a prompt while slots are refilled; fewer if G is."""
STEPS_AT_ONCE = 32
"""Steps between two looks of the host, which takes the outputs that have ended."""
LAST_STEPS_AT_ONCE = 8
"""The same when the queue is empty and slots may be given up."""


@functools.partial(jax.jit, static_argnames=("mesh", "config", "shape", "ring", "max_new_tokens"))
def start(
    params: Params,
    prompts: Prompts,
    limits: Int[Array, "Q G"],
    root: Key[Array, ""],
    step: Int[Array, ""],
    *,
    mesh: Mesh | None,
    **static: Any,
) -> tuple[Store, Slots]:
    """`slots.start` on every shard."""
    function = functools.partial(loop.start, **static)
    return on_shards(function, mesh, (False, True, True, False, False))(
        params, prompts, limits, root, step
    )


@functools.partial(
    jax.jit,
    static_argnames=("mesh", "config", "prompt_width", "eos_ids", "greedy"),
    donate_argnames=("slots",),
)
def decode(
    params: Params,
    store: Store,
    slots: Slots,
    temperature: Float[Array, ""],
    max_steps: Int[Array, ""],
    *,
    mesh: Mesh | None,
    **static: Any,
) -> tuple[Slots, Int[Array, "D 5"]]:
    """`slots.decode` on every shard; shards of one device do not wait for each other."""
    in_step = mesh is not None and mesh.shape["tensor"] > 1
    function = functools.partial(loop.decode, in_step=in_step, **static)
    return on_shards(function, mesh, (False, True, True, False, False))(
        params, store, slots, temperature, max_steps
    )


class Look(NamedTuple):
    """What the host sees between two runs of the loop.

    outputs: all so far; the iterator's next step overwrites them, so dispatch what reads them
        before; left: samples still to end; ended: those that have, by shard; steps: decode steps
        so far, summed over shards.
    """

    outputs: Outputs
    left: int
    ended: Int[np.ndarray, "D"]
    steps: int


class Layout(NamedTuple):
    """size: slots of one shard; ring: columns of their ring."""

    size: int
    ring: int


def layouts(size: int, max_new_tokens: int, *, fewer: int) -> list[Layout]:
    """The layouts a rollout goes through, each at most once and in this order.

    The ring doubles up to the longest output; then the last samples move to fewer slots. So there
    are few programs, and `compile_programs` can compile them all before the first step.

    Args:
        size: slots of one shard at the start.
        max_new_tokens: T, tokens of the longest output.
        fewer: factor by which slots become fewer at a time.
    """
    rings = [max_new_tokens]
    while rings[0] // 2 >= FIRST_RING:
        rings.insert(0, -(-rings[0] // 2))
    sizes = [size]
    while sizes[-1] // fewer >= MIN_SLOTS:
        sizes.append(sizes[-1] // fewer)
    return [Layout(size, ring) for ring in rings] + [Layout(s, rings[-1]) for s in sizes[1:]]


@functools.partial(jax.jit, static_argnames=("mesh", "old", "new", "prompt_width"))
def _change(
    slots: Slots, *, mesh: Mesh | None, old: Layout, new: Layout, prompt_width: int
) -> Slots:
    if new.size < old.size:
        function = functools.partial(relayout.shrink, size=new.size)
    else:
        function = functools.partial(relayout.grow, ring=new.ring, prompt_width=prompt_width)
    return on_shards(function, mesh, (True,))(slots)


@jax.jit
def _unstack(params: Params) -> Params:
    return transformer.unstack(params)


def slots_shape(questions: int, samples: int, num_slots: int) -> tuple[int, int]:
    """(rows, lanes) of one shard's slots.

    Args:
        questions: Q of the shard.
        samples: G.
        num_slots: most slots of the shard; 0 for one per sample.
    """
    if not num_slots or num_slots >= questions * samples:
        return questions, samples
    lanes = min(samples, ROW_LANES, num_slots)
    return num_slots // lanes, lanes


def _decoded(
    params: Params,
    prompts: Prompts,
    root: Key[Array, ""],
    step: Int[Array, ""] | np.int32,
    temperature: Float[Array, ""] | np.float32,
    *,
    config: ModelConfig,
    num_samples: int,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    greedy: bool = False,
    num_slots: int = 0,
    limits: Int[Array, "Q G"] | None = None,
    only_compile: bool = False,
) -> Iterator[Look]:
    """Run the loop and yield what the host sees between two runs; arguments as in `sample`.

    only_compile: go through all layouts without a step.
    """
    if not isinstance(params["blocks"], tuple):
        params = _unstack(params)
    mesh = mesh_of(prompts.tokens)
    shards = batch_size_divisor(mesh) if mesh is not None else 1
    questions, width = prompts.tokens.shape
    limits = _limits(prompts, limits, num_samples=num_samples, max_new_tokens=max_new_tokens)
    shape = slots_shape(questions // shards, num_samples, -(-num_slots // shards))
    fewer = SHRINK.get(jax.default_backend(), SHRINK_ELSEWHERE)
    todo = layouts(shape[0] * shape[1], max_new_tokens, fewer=fewer)
    layout = todo.pop(0)
    store, slots = start(
        params, prompts, limits, root, step,
        mesh=mesh, config=config, shape=shape, ring=layout.ring, max_new_tokens=max_new_tokens,
    )  # fmt: skip
    longest, waiting = 0, 1
    while True:
        last = not waiting and bool(todo)
        steps = 0 if only_compile else LAST_STEPS_AT_ONCE if last else STEPS_AT_ONCE
        if layout.ring < max_new_tokens:
            steps = min(steps, layout.ring - longest)
        slots, summary = decode(
            params, store, slots, temperature, np.int32(steps),
            mesh=mesh, config=config, prompt_width=width, eos_ids=eos_ids, greedy=greedy,
        )  # fmt: skip
        by_shard = read(summary)
        working, longest, waiting, *_ = (int(most) for most in np.max(by_shard, axis=0))
        left = int(by_shard[:, 0].sum() + by_shard[:, 2].sum())
        yield Look(slots.outputs, left, by_shard[:, 3], int(by_shard[:, 4].sum()))
        if working == waiting == 0 or (only_compile and not todo):
            return
        changes = 1 if only_compile or (longest >= layout.ring < max_new_tokens) else 0
        if not waiting:
            roomy = [n for n, new in enumerate(todo, 1) if working <= new.size < layout.size]
            changes = max([changes, *roomy])
        for _ in range(changes):
            new = todo.pop(0)
            slots = _change(slots, mesh=mesh, old=layout, new=new, prompt_width=width)
            if new.size < layout.size:
                store = store._replace(caches=())
            layout = new


def compile_programs(*arguments: Any, **settings: Any) -> None:
    """Compile every program that `sample_stream` of the same arguments and settings may run."""
    prompts, num_samples = arguments[1], settings["num_samples"]
    for look in _decoded(*arguments, only_compile=True, **settings):
        taking = Taking(prompts, num_samples)
        taking.take(look.outputs)


@functools.partial(jax.jit, static_argnames=("num_samples", "max_new_tokens"))
def _limits(
    prompts: Prompts, limits: Int[Array, "Q G"] | None, *, num_samples: int, max_new_tokens: int
) -> Int[Array, "Q G"]:
    if limits is None:
        shape = (prompts.ids.shape[0], num_samples)
        limits = jnp.full(shape, max_new_tokens, jnp.int32)
    return jnp.where(prompts.ids[:, None] >= 0, jnp.minimum(limits, max_new_tokens), 0)


def sample(
    params: Params,
    prompts: Prompts,
    root: Key[Array, ""],
    step: Int[Array, ""] | np.int32,
    temperature: Float[Array, ""] | np.float32,
    *,
    num_samples: int,
    **settings: Any,
) -> Completions:
    """Sample G outputs per prompt from softmax(logits / temperature), or greedily.

    EOS is part of an output that ends with it. Prompts on a mesh are split over its batch axes, and
    so are the slots.

    Args:
        params: parameters, stacked or unstacked (transformer.unstack), in any float type.
        prompts: int32 [Q, P]; one whose id is negative only fills the shape and samples nothing.
        root: the run's key; with `step` it addresses the randomness (keys.sample_keys).
        step: number of the rollout, int32.
        temperature: positive, float32; no effect under `greedy`.
        num_samples: G.
        settings: config: of the model. max_new_tokens: T. eos_ids: tokens that end an output.
            greedy: take the most probable token; log-probs are then those of temperature 1.
            num_slots: outputs decoded at a time, over all shards; 0 (the default) for all.
            limits: int32 [Q, G], the most tokens of each output; None for T.

    Returns: tokens int32, log-probs (nats) and entropies (nats) float32, each [Q, G, T].
    """
    looks = _decoded(params, prompts, root, step, temperature, num_samples=num_samples, **settings)
    last = collections.deque(looks, maxlen=1).pop()
    return _completions(last.outputs, prompts.tokens.shape[0], num_samples)


def sample_stream(
    params: Params,
    prompts: Prompts,
    root: Key[Array, ""],
    step: Int[Array, ""] | np.int32,
    temperature: Float[Array, ""] | np.float32,
    *,
    num_samples: int,
    **settings: Any,
) -> Iterator[Ended]:
    """Yield the outputs of `sample` as they end, while the device decodes the others.

    Arguments as in `sample`. Every output of a real prompt comes once, in no particular order; with
    several processes, to the one that owns its row (shards.rows_by_process).
    """
    taking = Taking(prompts, num_samples)
    given: Int[np.ndarray, "D"] | int = 0
    leaving: list[Taken] = []
    for outputs, left, ended, steps in _decoded(
        params, prompts, root, step, temperature, num_samples=num_samples, **settings
    ):
        parts = -(-int(np.max(ended - given)) // taking.at_once)
        given = ended
        arrived, leaving = leaving, [taking.take(outputs) for _ in range(parts)]
        if not left:
            arrived, leaving = arrived + leaving, []
        for taken in arrived:
            yield from taking.on_host(taken, steps)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _completions(outputs: Outputs, questions: int, num_samples: int) -> Completions:
    shape = (questions, num_samples)
    return Completions(*(leaf.reshape(*shape, *leaf.shape[1:]) for leaf in outputs[:5]))
