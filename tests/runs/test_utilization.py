"""Counted work of updates and of sampling: against compilers, loops over tokens, and by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.extend.core import jaxpr_as_fun

from benchmarks import floors
from benchmarks.work import Work
from rft_jax.config import ModelConfig, ObjectiveConfig
from rft_jax.models import adapters, transformer
from rft_jax.models.attention import KeyValues
from rft_jax.observe.flops import Cost, Model
from rft_jax.planning import aot
from rft_jax.runs.utilization import (
    Machine,
    Meter,
    machine,
    meter,
    sampling_cost,
    sampling_metrics,
    update_flops,
    update_metrics,
)
from rft_jax.training.packing import TrainingSequence
from rft_jax.types import Decoded, Prompts

VOCAB = 300
PLAIN = ModelConfig(num_layers=3, d_model=64, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=160)
WIDE = replace(PLAIN, num_layers=2, d_model=128, mlp_dim=512)
"""Wide enough for products to be nearly all that a compiler counts."""
WINDOWS = replace(PLAIN, sliding_window=5, global_every=3)
LORA = {"lora_rank": 8, "lora_alpha": 8.0}


def sequences(lengths: Sequence[tuple[int, int]]) -> list[TrainingSequence]:
    return [TrainingSequence((1,) * prompt, (2,) * output, 1.0) for prompt, output in lengths]


def seen(config: ModelConfig, layer: int, position: int) -> int:
    """Positions that the token at `position`, counted from 0, attends to."""
    return position + 1 if config.sees_all(layer) else min(position + 1, config.sliding_window)


def forward_flops(config: ModelConfig, positions: Sequence[int], logits: int) -> int:
    """Of tokens at those positions, one by one, and of so many rows of logits."""
    d, n, k, h = config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
    matrices = d * n * h + 2 * d * k * h + n * h * d + 3 * d * config.mlp_dim
    total = 2 * VOCAB * d * logits
    for layer in range(config.num_layers):
        for position in positions:
            # Scores, and the mean of the values: a product of width h each, for each head.
            total += 2 * matrices + 2 * 2 * n * h * seen(config, layer, position)
    return total


@pytest.mark.parametrize("config", [PLAIN, WINDOWS])
@pytest.mark.parametrize("with_reference", [False, True])
def test_an_update_token_by_token(config: ModelConfig, with_reference: bool) -> None:
    lengths = [(3, 9), (12, 1), (1, 4)]
    forward = sum(forward_flops(config, range(p + o - 1), o) for p, o in lengths)
    found = update_flops(Model(config, VOCAB), sequences(lengths), with_reference=with_reference)
    assert found == (4 if with_reference else 3) * forward


def test_an_update_by_hand() -> None:
    """One layer; D = 2, N = K = 1, H = 2, F = 3, V = 5; a prompt of 2 tokens and an output of 2."""
    config = ModelConfig(
        num_layers=1, d_model=2, num_heads=1, num_kv_heads=1, head_dim=2, mlp_dim=3
    )
    # Matrices: 4 of attention with 4 weights, 3 of the MLP with 6: 34, for 3 tokens. Logits of 2
    # tokens, 10 weights. Positions seen: 1 + 2 + 3, each two products of width 2.
    forward = 2 * 34 * 3 + 2 * 10 * 2 + 2 * 2 * 2 * 6
    found = update_flops(Model(config, 5), sequences([(2, 2)]), with_reference=False)
    assert found == 3 * forward
    assert update_flops(Model(config, 5), [], with_reference=True) == 0


def loss_of(config: ModelConfig, prompt: int, output: int) -> tuple[Any, tuple[Any, ...]]:
    """(a loss over one sequence, whose only logits are those of its output, its arguments)."""
    inputs = prompt + output - 1
    params = transformer.abstract_params(config=config, vocab_size=VOCAB)
    frozen, trained = adapters.split(params, config)

    def loss(trained: Any, frozen: Any, tokens: Any) -> Any:
        joined = adapters.join(frozen, trained)
        positions = jnp.arange(inputs)[None]
        hidden = transformer.hidden_states(
            joined, tokens, positions, jnp.ones_like(tokens), config=config
        )
        logits = transformer.logits(joined, hidden[:, :, prompt - 1 :], config=config)
        return jnp.sum(logits**2)

    return loss, (trained, frozen, jax.ShapeDtypeStruct((1, inputs), jnp.int32))


def flops(function: Any, arguments: tuple[Any, ...]) -> float:
    """What the compiler counts with all loops opened."""
    opened = aot.open_loops(jax.make_jaxpr(function)(*arguments))
    lowered = jax.jit(jaxpr_as_fun(opened)).lower(*jax.tree.leaves(arguments))
    counted: float = lowered.compile().cost_analysis()["flops"]
    return counted


@pytest.mark.slow
def test_the_compiler_counts_as_much_for_an_update() -> None:
    """Within 10 %: it counts element-wise operations too, and attention to masked positions."""
    prompt, output = 10, 20
    loss, arguments = loss_of(WIDE, prompt, output)
    one = sequences([(prompt, output)])
    whole = update_flops(Model(WIDE, VOCAB), one, with_reference=False)
    assert flops(jax.grad(loss), arguments) == pytest.approx(whole, rel=0.1)
    assert flops(loss, arguments) == pytest.approx(whole / 3, rel=0.1)


@pytest.mark.slow
def test_the_compiler_counts_as_much_with_adapters() -> None:
    """Below the first adapters no gradient is needed, which several layers make small."""
    config = replace(WIDE, num_layers=4, lora_targets=("query", "value", "gate", "down"), **LORA)
    prompt, output = 10, 20
    loss, arguments = loss_of(config, prompt, output)
    found = update_flops(Model(config, VOCAB), sequences([(prompt, output)]), with_reference=False)
    assert flops(jax.grad(loss), arguments) == pytest.approx(found, rel=0.1)


def test_adapters_are_those_of_the_model() -> None:
    config = replace(
        PLAIN, lora_targets=("query", "key", "value", "output", "gate", "up", "down"), **LORA
    )
    params = transformer.abstract_params(config=config, vocab_size=VOCAB)
    _, trained = adapters.split(params, config)
    assert Model(config, VOCAB).adapters == sum(leaf.size for leaf in jax.tree.leaves(trained))
    assert Model(PLAIN, VOCAB).adapters == 0


def test_adapters_need_no_gradients_of_other_weights() -> None:
    lengths = [(3, 9)]
    plain = update_flops(Model(PLAIN, VOCAB), sequences(lengths), with_reference=False)
    config = replace(PLAIN, lora_targets=("down",), **LORA)
    found = update_flops(Model(config, VOCAB), sequences(lengths), with_reference=False)
    attention = sum(4 * 64 * seen(PLAIN, 0, position) for position in range(11)) * 3
    of_adapters = 3 * 2 * 11 * 3 * 8 * (64 + 160)
    assert found == (plain - 3 * attention) * 2 / 3 + 3 * attention + of_adapters


@pytest.mark.parametrize("config", [PLAIN, WINDOWS])
def test_sampling_token_by_token(config: ModelConfig) -> None:
    decoded = Decoded((4, 9), ((1, 7, 3), (2, 2, 12)), steps=30)
    products = numbers = 0
    per_token = 2 * config.num_kv_heads * config.head_dim
    for prompt, outputs in zip(decoded.prompts, decoded.outputs, strict=True):
        products += forward_flops(config, range(prompt), 1)
        read_by_step = [[0] * config.num_layers for _ in range(max(outputs))]
        for output in outputs:
            products += forward_flops(config, range(prompt, prompt + output - 1), output - 1)
            for step in range(1, output):
                for layer in range(config.num_layers):
                    # The token sees itself and those before it: of its output, then of the prompt.
                    sees = seen(config, layer, prompt + step - 1)
                    own = min(step, sees)
                    numbers += per_token * (own + 1)
                    read_by_step[step][layer] = sees - own
        numbers += per_token * sum(map(sum, read_by_step))
    matrices = forward_flops(config, [0], 1) // 2 - 2 * config.num_layers * 64
    found = sampling_cost(Model(config, VOCAB), decoded)
    assert found.flops == products
    assert found.bytes == 4 * (numbers + 30 * matrices)


def test_sampling_is_what_the_floors_of_the_benchmark_say() -> None:
    work = Work(size="tiny", prompts=3, samples=4, prompt_len=16, new_tokens=12, min_len=2)
    lengths = work.lengths("ragged")
    first, second = floors.phases(work, "ragged").values()
    outputs = tuple(tuple(row) for row in lengths.tolist())
    decoded = Decoded((16,) * 3, outputs, steps=int(lengths.max()) - 1)
    found = sampling_cost(floors.model("tiny"), decoded)
    assert found.flops == pytest.approx(first.flops + second.flops)
    assert found.bytes == pytest.approx(second.bytes)


def test_bytes_are_of_the_compute_type() -> None:
    decoded = Decoded((4,), ((6, 2),), steps=6)
    wide, narrow = (
        sampling_cost(Model(replace(PLAIN, compute_dtype=name), VOCAB), decoded)
        for name in ("float32", "bfloat16")
    )
    assert wide == Cost(narrow.flops, 2 * narrow.bytes)
    double = sampling_cost(Model(replace(PLAIN, compute_dtype="float64"), VOCAB), decoded)
    assert double.bytes == 2 * wide.bytes


def test_outputs_that_end_at_once_decode_nothing() -> None:
    decoded = Decoded((4, 5), ((1, 1), (1, 1)), steps=0)
    expected = sum(forward_flops(PLAIN, range(prompt), 1) for prompt in (4, 5))
    assert sampling_cost(Model(PLAIN, VOCAB), decoded) == Cost(expected, 0)


@pytest.mark.slow
def test_the_compiler_counts_as_much_for_a_prefill_and_a_step() -> None:
    """Within 10 %; the caches that the step is given are as long as what it needs."""
    prompt, own, questions, samples = 12, 6, 2, 3
    model = Model(PLAIN, VOCAB)
    params = jax.eval_shape(
        transformer.unstack, transformer.abstract_params(config=PLAIN, vocab_size=VOCAB)
    )
    prompts = Prompts(
        jax.ShapeDtypeStruct((questions, prompt), jnp.int32),
        *(jax.ShapeDtypeStruct((questions,), jnp.int32) for _ in range(2)),
    )

    def prefill(params: Any, prompts: Prompts) -> Any:
        hidden, caches = transformer.prefill(params, prompts, config=PLAIN)
        return transformer.logits(params, hidden, config=PLAIN), caches

    before = Decoded((prompt,) * questions, ((1,) * samples,) * questions, steps=0)
    found = sampling_cost(model, before).flops
    assert flops(prefill, (params, prompts)) == pytest.approx(found, rel=0.1)

    def step(params: Any, tokens: Any, cache: transformer.Cache) -> Any:
        everything = transformer.Visible(
            jnp.ones((questions * samples, prompt), bool),
            jnp.ones((questions * samples, own), bool),
        )
        positions = jnp.full(tokens.shape, prompt + own - 1)
        hidden, cache = transformer.decode(
            params, tokens, positions, cache, jnp.int32(own - 1), everything, everything,
            transformer.rotation_table(PLAIN, prompt + own), config=PLAIN,
        )  # fmt: skip
        return transformer.logits(params, hidden, config=PLAIN), cache

    def caches(rows: int, length: int) -> tuple[KeyValues, ...]:
        keys, values = (rows, 2, 16, length), (rows, 2, length, 16)
        one = KeyValues(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (keys, values)))
        return (one,) * PLAIN.num_layers

    cache = transformer.Cache(caches(questions, prompt), caches(questions * samples, own))
    tokens = jax.ShapeDtypeStruct((questions * samples,), jnp.int32)
    longer, shorter = (
        sampling_cost(model, before._replace(outputs=((n,) * samples,) * questions, steps=n - 1))
        for n in (own + 1, own)
    )
    counted = flops(step, (params, tokens, cache))
    assert counted == pytest.approx(longer.flops - shorter.flops, rel=0.1)
    # Bytes, exactly: all matrices, all caches, and what is written to them.
    matrices = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key not in ("scale", "embedding")
    ]  # fmt: skip
    written = 2 * PLAIN.num_layers * questions * samples * 2 * 16
    numbers = sum(leaf.size for leaf in [*matrices, *jax.tree.leaves(cache)]) + written
    assert longer.bytes - shorter.bytes == 4 * numbers


def test_machines_by_the_names_that_jax_gives_them() -> None:
    assert machine("TPU v5 lite", 4, "bfloat16") == (4 * 197e12, 4 * 819e9)
    assert machine("NVIDIA H100 80GB HBM3", 1, "bfloat16") == (989e12, 3350e9)
    assert machine("NVIDIA A100-SXM4-80GB", 8, "float32") == (8 * 156e12, 8 * 2039e9)
    assert machine("Tesla T4", 1, "float64") == (None, 320e9)
    assert machine("cpu", 8, "float32") == (None, None)
    for kind in ("TPU v5", "TPU v5p", "TPU v6 lite", "TPU v4", "Tesla T4"):
        assert all(machine(kind, 1, "bfloat16"))


LENGTHS = [(3, 9), (12, 1)]
DECODED = [Decoded((4, 9), ((1, 7), (2, 12)), steps=30), Decoded((6,), ((3, 3),), steps=2)]


def test_metrics() -> None:
    model = Model(PLAIN, VOCAB)
    meter = Meter(model, Machine(flops=1e9, bandwidth=1e8), with_reference=True)
    flops = update_flops(model, sequences(LENGTHS), with_reference=True)
    assert update_metrics(meter, sequences(LENGTHS), 0.5) == {
        "utilization/update_flops": flops,
        "utilization/update_mfu": pytest.approx(flops / 0.5e9),
    }
    costs = [sampling_cost(model, decoded) for decoded in DECODED]
    flops, moved = sum(cost.flops for cost in costs), sum(cost.bytes for cost in costs)
    assert sampling_metrics(meter, DECODED, 2.0) == {
        "utilization/sampling_flops": flops,
        "utilization/sampling_mfu": pytest.approx(flops / 2e9),
        "utilization/decode_bytes": moved,
        "utilization/decode_bandwidth": pytest.approx(moved / 2e8),
    }


def test_where_there_is_no_rate_there_is_no_share() -> None:
    meter = Meter(Model(PLAIN, VOCAB), Machine(None, None), with_reference=False)
    found = update_metrics(meter, sequences(LENGTHS), 0.5) | sampling_metrics(meter, DECODED, 2.0)
    shares = {"utilization/" + name for name in ("update_mfu", "sampling_mfu", "decode_bandwidth")}
    assert {name for name, value in found.items() if value is None} == shares
    # A step whose update is skipped computes nothing, and takes no time to speak of.
    meter = meter._replace(on=Machine(1.0, 1.0))
    assert update_metrics(meter, [], 1e-6) == {
        "utilization/update_flops": 0.0,
        "utilization/update_mfu": None,
    }


def test_the_meter_of_a_run() -> None:
    config = tiny.online_rft(objective=ObjectiveConfig(kl_coefficient=0.1))
    found = meter(config, VOCAB, device_kind="cpu", count=8)
    assert found == (Model(config.model, VOCAB), (None, None), True)
    config = tiny.sft(model=tiny.model(compute_dtype="bfloat16"))
    found = meter(config, VOCAB, device_kind="TPU v5 lite", count=4)
    assert found == (Model(config.model, VOCAB), (4 * 197e12, 4 * 819e9), False)


def test_lengths_of_a_large_run_do_not_overflow() -> None:
    model = Model(tiny.model(num_layers=30, d_model=4096, head_dim=128), 102_400)
    decoded = Decoded((4096,) * 64, ((32_768,) * 16,) * 64, steps=32_768)
    cost = sampling_cost(model, decoded)
    assert cost.flops > 0
    assert np.isfinite(cost.bytes)
    many = sequences([(4096, 32_768)]) * 1024
    one = update_flops(model, many[:1], with_reference=False)
    assert update_flops(model, many, with_reference=False) == pytest.approx(1024 * one)
