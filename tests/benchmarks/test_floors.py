"""The counts behind the floors, against counts of the model itself and of arrays."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import floors
from benchmarks.peers.ours import model_config
from benchmarks.work import SHAPES, Shape, Work
from rft_jax.models import transformer
from rft_jax.observe import flops as counts

WORK = Work(size="tiny", prompts=3, samples=4, prompt_len=16, new_tokens=12, min_len=2, mean_len=5)


def product_flops(jaxpr: Any) -> int:
    """Floating-point operations of all dot products in a jaxpr, loops unrolled."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            summed = math.prod(shape[axis] for axis in contracted)
            total += 2 * summed * math.prod(equation.outvars[0].aval.shape)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        inner = [v for v in equation.params.values() if hasattr(getattr(v, "jaxpr", v), "eqns")]
        total += times * sum(product_flops(getattr(v, "jaxpr", v)) for v in inner)
    return total


def forward(work: Work) -> tuple[Any, tuple[Any, ...]]:
    """(loss of one batch as a function, its abstract arguments)."""
    config = model_config(work)
    params = transformer.abstract_params(config=config, vocab_size=work.shape.vocab)
    ids = jax.ShapeDtypeStruct((work.sequences, work.sequence_len - 1), jnp.int32)

    def loss(params: Any, tokens: Any) -> Any:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden = transformer.hidden_states(
            params, tokens, positions, jnp.ones_like(tokens), config=config
        )
        return jnp.sum(transformer.logits(params, hidden, config=config) ** 2)

    return loss, (params, ids)


def full_forward_flops(work: Work) -> float:
    """As `forward` computes it: every position multiplies with all, the masked ones included."""
    inputs = work.sequence_len - 1
    return work.sequences * inputs * floors.model(work.size).token(inputs)


@pytest.mark.slow
def test_forward_and_backward_are_those_of_the_model() -> None:
    loss, arguments = forward(WORK)
    counted = product_flops(jax.make_jaxpr(loss)(*arguments).jaxpr)
    assert counted == full_forward_flops(WORK)
    both = product_flops(jax.make_jaxpr(jax.grad(loss))(*arguments).jaxpr)
    # The backward pass recomputes the scores of all layers, which is no part of a floor.
    shape, inputs = WORK.shape, WORK.sequence_len - 1
    scores = 2 * shape.heads * shape.head_dim * inputs**2 * WORK.sequences * shape.layers
    assert both == 3 * counted + scores


def test_the_compiler_counts_as_much() -> None:
    """Within 10 %: it counts additions, exponentials and the like too. One layer, as it counts the
    body of a loop once."""
    work = replace(WORK, size="one-layer")
    SHAPES["one-layer"] = replace(SHAPES["tiny"], layers=1)
    try:
        loss, arguments = forward(work)
        counted = jax.jit(loss).lower(*arguments).compile().cost_analysis()["flops"]
        assert counted == pytest.approx(full_forward_flops(work), rel=0.1)
    finally:
        del SHAPES["one-layer"]


def decode_step(shape: Shape, prompt: int, own: int, groups: int, samples: int) -> Any:
    """(one step of decoding written down plainly, without norms and rotations, its arguments)."""
    d, n, k, h = shape.d_model, shape.heads, shape.kv_heads, shape.head_dim
    layer = {
        "query": (d, n, h), "key": (d, k, h), "value": (d, k, h), "output": (n, h, d),
        "gate": (d, shape.mlp), "up": (d, shape.mlp), "down": (shape.mlp, d),
    }  # fmt: skip
    cache = {
        "prompt": (2, groups, prompt, k, h),
        "own": (2, groups, samples, own, k, h),  # the new token's among them
    }

    def step(x: Any, table: Any, weights: Any, caches: Any) -> Any:
        for w, c in zip(weights, caches, strict=True):
            q = jnp.einsum("gsd,dnh->gsnh", x, w["query"]).reshape(groups, samples, k, n // k, h)
            new = [jnp.einsum("gsd,dkh->gskh", x, w[name]) for name in ("key", "value")]
            keys, values = (c["own"][i].at[:, :, -1].set(new[i]) for i in range(2))
            scores = jnp.concatenate(
                [
                    jnp.einsum("gsknh,gpkh->gsknp", q, c["prompt"][0]),
                    jnp.einsum("gsknh,gstkh->gsknt", q, keys),
                ],
                axis=-1,
            )
            mixed = jnp.einsum("gsknp,gpkh->gsknh", scores[..., :prompt], c["prompt"][1])
            mixed += jnp.einsum("gsknt,gstkh->gsknh", scores[..., prompt:], values)
            x = x + jnp.einsum("gsnh,nhd->gsd", mixed.reshape(groups, samples, n, h), w["output"])
            x = x + ((x @ w["gate"]) * (x @ w["up"])) @ w["down"]
        return x @ table

    def arrays(shapes: dict[str, tuple[int, ...]]) -> Any:
        return {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}

    x = jax.ShapeDtypeStruct((groups, samples, d), jnp.float32)
    table = jax.ShapeDtypeStruct((d, shape.vocab), jnp.float32)
    layers = [arrays(layer) for _ in range(shape.layers)]
    caches = [arrays(cache) for _ in range(shape.layers)]
    return step, (x, table, layers, caches)


def nbytes(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_one_step_of_decoding() -> None:
    """FLOPs exactly, bytes exactly: weights and caches read, the new keys and values written."""
    shape, prompt, own, groups, samples = SHAPES["tiny"], 16, 5, 3, 4
    step, arguments = decode_step(shape, prompt, own, groups, samples)
    counted = product_flops(jax.make_jaxpr(step)(*arguments).jaxpr)
    slots = groups * samples
    cost = floors.per_token("tiny", "float32", slots=slots, samples=samples, prompt=prompt, own=own)
    assert counted == slots * cost.flops
    written = 2 * shape.layers * slots * shape.kv_heads * shape.head_dim * 4
    assert nbytes(arguments[1:]) + written == pytest.approx(slots * cost.bytes)
    compiled = jax.jit(step).lower(*arguments).compile().cost_analysis()["flops"]
    assert compiled == pytest.approx(counted, rel=0.1)


def test_decoding_is_the_sum_of_its_steps() -> None:
    lengths = np.full((3, 4), 7, np.int32)
    steps = [
        floors.per_token("tiny", "float32", slots=12, samples=4, prompt=16, own=own)
        for own in range(1, 7)
    ]
    whole = floors.decode(WORK, lengths)
    assert whole.flops == pytest.approx(12 * sum(cost.flops for cost in steps))
    assert whole.bytes == pytest.approx(12 * sum(cost.bytes for cost in steps))


def test_short_outputs_cost_less_but_as_many_steps() -> None:
    lengths = np.full((3, 4), 7, np.int32)
    short = lengths.copy()
    short[:, 1:] = 1
    whole, part = floors.decode(WORK, lengths), floors.decode(WORK, short)
    weights = 4 * floors.model(WORK.size).weights
    assert part.flops == pytest.approx(whole.flops / 4)
    assert whole.bytes / 4 < part.bytes < whole.bytes
    assert part.bytes > 6 * weights
    assert floors.decode(WORK, np.ones((3, 4), np.int32)) == counts.Cost(0, 0)


def test_weights_are_those_of_the_model() -> None:
    params = transformer.abstract_params(config=model_config(WORK), vocab_size=WORK.shape.vocab)
    path_sizes = jax.tree_util.tree_leaves_with_path(params)
    matrices = [leaf for path, leaf in path_sizes if path[-1].key != "scale"]
    assert sum(leaf.size for leaf in matrices) == floors.model(WORK.size).weights


def test_prefill_and_update() -> None:
    model, prompt = floors.model(WORK.size), WORK.prompt_len
    body = 2 * model.body * prompt
    seen = sum(model.attention(n) for n in range(1, prompt + 1))
    head = 2 * model.head
    assert floors.prefill(WORK).flops == 3 * (body + seen + head)
    inputs = WORK.sequence_len - 1
    one = sum(model.token(n) for n in range(1, inputs + 1))
    assert floors.update(WORK).flops == pytest.approx(3 * WORK.sequences * one)
    assert floors.update(WORK).bytes == model.weights * 40


def test_the_floor_is_the_slower_of_the_two() -> None:
    rates = floors.Rates(flops=100.0, bytes=10.0)
    products, traffic = counts.Cost(200.0, 10.0), counts.Cost(100.0, 50.0)
    assert rates.seconds(products) == 2.0
    assert rates.seconds(traffic) == 5.0
    assert (rates.bound(products), rates.bound(traffic)) == ("matrix", "bandwidth")
    assert floors.seconds({"a": products, "b": traffic}, rates) == 7.0
    assert products + traffic == (300.0, 60.0, 0, 0, 0)
