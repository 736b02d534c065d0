"""The policy against a Llama written out in float64; packed, cached and recomputed."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import random_policy

from rft_jax.config import ModelConfig
from rft_jax.config.model import LORA_TARGETS
from rft_jax.models import layers, transformer
from rft_jax.models.attention import KeyValues
from rft_jax.models.rope import frequencies, rotation
from rft_jax.types import Params, Prompts

VOCAB = 20
SLOTS = 16
BASE = tiny.model(num_heads=4, num_kv_heads=2)
CONFIGS = {
    "grouped": BASE,
    "tied": tiny.model(num_heads=4, num_kv_heads=2, tie_embeddings=True),
    "multi-head": tiny.model(num_heads=2, num_kv_heads=2),
    "multi-query": tiny.model(num_heads=4, num_kv_heads=1, rope_theta=500.0, norm_eps=1e-3),
    "biases": tiny.model(num_heads=4, num_kv_heads=2, qkv_bias=True, sliding_window=3),
    "normed heads": tiny.model(
        num_layers=3, num_heads=4, num_kv_heads=2, qk_norm=True, norm_offset=True, post_norms=True,
        activation="gelu_tanh", scale_embeddings=True, tie_embeddings=True, attention_scalar=12,
        sliding_window=4, global_every=2, rope_theta=1e4, local_rope_theta=100.0,
        rope_scaling="linear", rope_factor=4.0,
    ),
    "capped": tiny.model(
        num_heads=4, num_kv_heads=2, norm_offset=True, post_norms=True, activation="gelu_tanh",
        attention_softcap=1.0, final_softcap=2.0, sliding_window=5, global_every=2,
    ),
    "adapted": tiny.model(
        num_heads=4, num_kv_heads=2, qkv_bias=True, lora_rank=3, lora_alpha=6.0,
        lora_targets=LORA_TARGETS,
    ),
}  # fmt: skip

hidden_states = jax.jit(transformer.hidden_states, static_argnames="config")


@functools.cache
def policy(config: ModelConfig) -> Params:
    return random_policy(config, VOCAB)


def llama(params: Params, tokens: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Logits [V, S] after every token of one sequence, token by token and head by head, in
    float64, with whatever sets other families apart from Llama."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    group = config.num_heads // config.num_kv_heads
    scalar = config.attention_scalar or config.head_dim

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2) + config.norm_eps) * (scale + config.norm_offset)

    def rope(x: np.ndarray, position: int, layer: int) -> np.ndarray:
        turned, half = np.empty_like(x), config.head_dim // 2
        of_layer = frequencies(config, local=not config.sees_all(layer))
        for pair, angle in enumerate(position * of_layer):
            a, b = x[pair], x[pair + half]
            turned[pair] = a * math.cos(angle) - b * math.sin(angle)
            turned[pair + half] = b * math.cos(angle) + a * math.sin(angle)
        return turned

    def cap(x: np.ndarray, softcap: float) -> np.ndarray:
        return softcap * np.tanh(x / softcap) if softcap else x

    def activation(x: np.ndarray) -> np.ndarray:
        if config.activation == "silu":
            return x / (1 + np.exp(-x))
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def matrix(of: dict[str, np.ndarray], name: str) -> np.ndarray:
        if name not in config.lora_targets:
            return of[name]
        scale = config.lora_alpha / config.lora_rank
        return of[name] + scale * np.tensordot(of[f"{name}_b"], of[f"{name}_a"], axes=1)

    def project(of: dict[str, np.ndarray], name: str, head: int, x: np.ndarray) -> np.ndarray:
        y = matrix(of, name)[head] @ x
        y = y + of[f"{name}_bias"][head] if config.qkv_bias else y
        if config.qk_norm and name != "value":
            return norm(y, of[f"{name}_norm"]["scale"])
        return y

    stream = [params["embedding"][token] for token in tokens]
    if config.scale_embeddings:
        stream = [x * math.sqrt(config.d_model) for x in stream]
    for layer in range(config.num_layers):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        attention, mlp = block["attention"], block["mlp"]

        def after(gain: np.ndarray, name: str, block: Params = block) -> np.ndarray:
            return norm(gain, block[f"{name}_post_norm"]["scale"]) if config.post_norms else gain

        normed = [norm(x, block["attention_norm"]["scale"]) for x in stream]
        gains = [np.zeros(config.d_model) for _ in stream]
        for head in range(config.num_heads):
            own = head // group
            keys = [rope(project(attention, "key", own, x), n, layer) for n, x in enumerate(normed)]
            values = [project(attention, "value", own, x) for x in normed]
            for at, x in enumerate(normed):
                query = rope(project(attention, "query", head, x), at, layer)
                first = 0 if config.sees_all(layer) else max(0, at + 1 - config.sliding_window)
                seen = range(first, at + 1)
                scores = np.array([query @ keys[n] for n in seen]) / math.sqrt(scalar)
                scores = cap(scores, config.attention_softcap)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                mixed = sum(w * values[n] for w, n in zip(weights, seen, strict=True))
                gains[at] = gains[at] + matrix(attention, "output")[:, head] @ mixed
        for at, x in enumerate(stream):
            gain = gains[at]
            x = x + after(gain, "attention")
            normed_x = norm(x, block["mlp_norm"]["scale"])
            gate = activation(matrix(mlp, "gate") @ normed_x)
            gain = matrix(mlp, "down") @ (gate * (matrix(mlp, "up") @ normed_x))
            stream[at] = x + after(gain, "mlp")
    table = params["embedding" if config.tie_embeddings else "unembedding"]
    logits = [table @ norm(x, params["final_norm"]["scale"]) for x in stream]
    return cap(np.stack(logits, axis=1), config.final_softcap)


def tokens_of(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(VOCAB, size=shape).astype(np.int32)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(np.asarray(found) - expected)) / np.max(np.abs(expected)))


def alone(params: Params, tokens: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Hidden states [D, R, S] of sequences that fill their rows."""
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return np.asarray(hidden_states(params, tokens, positions, np.ones_like(tokens), config=config))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_a_llama_in_float64(name: str) -> None:
    config = CONFIGS[name]
    params, tokens = policy(config), tokens_of(0, 2, 9)
    found = transformer.logits(params, jnp.asarray(alone(params, tokens, config)), config=config)
    expected = np.stack([llama(params, row, config) for row in tokens], axis=1)
    assert found.shape == expected.shape == (VOCAB, 2, 9)
    assert relative_error(found, expected) < 1e-5


@st.composite
def layouts(draw: st.DrawFn) -> list[tuple[int, int]]:
    """(padding before it, length) of each sequence of one row of SLOTS slots."""
    layout, room = [], SLOTS
    while room > 0 and len(layout) < 5:
        gap = draw(st.integers(0, min(3, room - 1)))
        length = draw(st.integers(1, room - gap))
        layout.append((gap, length))
        room -= gap + length
    return layout


@settings(max_examples=25)
@given(layout=layouts(), seed=st.integers(0, 2**16))
def test_sequences_packed_into_a_row_do_not_see_each_other_or_padding(
    layout: list[tuple[int, int]], seed: int
) -> None:
    params = policy(BASE)
    # Tokens and positions of padding are rubbish on purpose.
    tokens, positions = tokens_of(seed, 1, SLOTS), tokens_of(seed + 1, 1, SLOTS)
    segments = np.zeros((1, SLOTS), np.int32)
    separate, at = tokens_of(seed + 2, 5, SLOTS), 0
    places = []
    for number, (gap, length) in enumerate(layout):
        here = slice(at + gap, at + gap + length)
        segments[0, here] = number + 1
        positions[0, here] = np.arange(length)
        separate[number, :length] = tokens[0, here]
        places.append((here, length))
        at += gap + length
    packed = hidden_states(params, tokens, positions, segments, config=BASE)
    expected = alone(params, separate, BASE)
    assert np.all(np.isfinite(packed))
    for number, (here, length) in enumerate(places):
        np.testing.assert_allclose(packed[:, 0, here], expected[:, number, :length], atol=2e-5)


def test_tokens_after_a_position_and_padding_change_nothing() -> None:
    params, width = policy(BASE), 7
    short = tokens_of(1, 2, width)
    exact = alone(params, short, BASE)
    padded, positions = tokens_of(2, 2, SLOTS), tokens_of(3, 2, SLOTS)
    padded[:, :width], positions[:, :width] = short, np.arange(width)
    segments = np.broadcast_to((np.arange(SLOTS) < width).astype(np.int32), padded.shape)
    found = hidden_states(params, padded, positions, segments, config=BASE)
    np.testing.assert_allclose(found[..., :width], exact, atol=2e-6)
    longer = np.concatenate([short, tokens_of(4, 2, SLOTS - width)], axis=1)
    np.testing.assert_allclose(alone(params, longer, BASE)[..., :width], exact, atol=2e-6)


def _gradients(config: ModelConfig) -> Params:
    tokens = tokens_of(5, 2, SLOTS)
    segments = np.repeat(np.array([[1, 2, 0]], np.int32), [5, 7, 4], axis=1).repeat(2, axis=0)
    positions = np.concatenate([np.arange(5), np.arange(7), np.zeros(4)]).astype(np.int32)
    rows = [jnp.asarray(np.broadcast_to(a, tokens.shape)) for a in (tokens, positions, segments)]

    def loss(params: Params) -> jax.Array:
        hidden = transformer.hidden_states(params, *rows, config=config)
        log_probs = jax.nn.log_softmax(transformer.logits(params, hidden, config=config), axis=0)
        chosen = jnp.take_along_axis(log_probs, jnp.asarray(tokens)[None], axis=0)[0]
        return jnp.sum(jnp.where(segments > 0, chosen, 0.0))

    return jax.jit(jax.grad(loss))(policy(BASE))


@pytest.mark.slow
def test_what_the_backward_pass_recomputes_does_not_change_gradients() -> None:
    expected = _gradients(BASE)
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(expected))
    for remat in ("dots", "full"):
        config = tiny.model(num_heads=4, num_kv_heads=2, remat=remat)
        found = _gradients(config)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert relative_error(one, np.asarray(other)) < 1e-6


def test_remat_full_keeps_no_activation_inside_a_block() -> None:
    """The backward pass of `full` runs the forward's products again, that of `none` does not."""

    def products(config: ModelConfig) -> int:
        tokens = jnp.asarray(tokens_of(0, 1, SLOTS))

        def loss(params: Params) -> jax.Array:
            return jnp.sum(transformer.hidden_states(params, tokens, tokens, tokens, config=config))

        return str(jax.make_jaxpr(jax.grad(loss))(policy(BASE))).count("dot_general")

    full = tiny.model(num_heads=4, num_kv_heads=2, remat="full")
    dots = tiny.model(num_heads=4, num_kv_heads=2, remat="dots")
    assert products(BASE) < products(dots) < products(full)


@pytest.mark.parametrize("tied", [False, True])
def test_bfloat16_compute_stays_close_and_keeps_float32_logits(tied: bool) -> None:
    config = tiny.model(num_heads=4, num_kv_heads=2, tie_embeddings=tied, compute_dtype="bfloat16")
    params, tokens = policy(config), tokens_of(0, 2, 9)
    positions = np.broadcast_to(np.arange(9, dtype=np.int32), tokens.shape)
    hidden = hidden_states(params, tokens, positions, np.ones_like(tokens), config=config)
    found = transformer.logits(params, hidden, config=config)
    assert hidden.dtype == jnp.bfloat16
    assert found.dtype == jnp.float32
    expected = np.stack([llama(params, row, config) for row in tokens], axis=1)
    # A rounding to bfloat16 errs by up to 2**-9; some ten follow one another.
    assert 1e-4 < relative_error(found, expected) < 4e-2


@pytest.mark.parametrize("compute_dtype", ["bfloat16", "float32", "float64"])
def test_rotations_are_computed_in_at_least_float32(compute_dtype: str) -> None:
    config = tiny.model(compute_dtype=compute_dtype)
    dtype = jnp.float64 if compute_dtype == "float64" else jnp.float32
    with jax.enable_x64(True):
        found = transformer.rotation_table(config, 5).everywhere
        expected = rotation(jnp.arange(5), frequencies(config), dtype=dtype)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        np.testing.assert_array_equal(one, other)


def test_bfloat16_compute_tells_large_positions_apart() -> None:
    """Only distances matter, and beyond 1000 bfloat16 knows multiples of 8 alone."""
    config = tiny.model(num_heads=4, num_kv_heads=2, compute_dtype="bfloat16")
    params, tokens = policy(config), tokens_of(0, 2, 9)
    positions = np.broadcast_to(np.arange(1025, 1034, dtype=np.int32), tokens.shape)
    hidden = hidden_states(params, tokens, positions, np.ones_like(tokens), config=config)
    found = transformer.logits(params, hidden, config=config)
    expected = np.stack([llama(params, row, config) for row in tokens], axis=1)
    assert relative_error(found, expected) < 4e-2


def test_unstacked_parameters_are_a_dict_for_each_layer() -> None:
    params = policy(BASE)
    found = transformer.unstack(params)
    assert len(found["blocks"]) == BASE.num_layers
    for number, block in enumerate(found["blocks"]):
        expected = jax.tree.map(lambda leaf, at=number: leaf[at], params["blocks"])
        jax.tree.map(np.testing.assert_array_equal, block, expected)
    assert {name: leaf for name, leaf in found.items() if name != "blocks"} == {
        name: leaf for name, leaf in params.items() if name != "blocks"
    }


LENGTHS = np.array([5, 1, 8], np.int32)
WIDTH = 8
"""Three prompts, followed by rubbish up to WIDTH."""

prefill = jax.jit(transformer.prefill, static_argnames="config")
decode = jax.jit(transformer.decode, static_argnames="config")


def prefilled(
    params: Params, prompts: np.ndarray, config: ModelConfig
) -> tuple[np.ndarray, tuple[KeyValues, ...]]:
    """`prefill` of the three prompts, from stacked parameters."""
    of = Prompts(jnp.asarray(prompts), jnp.asarray(LENGTHS), jnp.arange(3))
    hidden, caches = prefill(transformer.unstack(params), of, config=config)
    assert hidden.shape == (config.d_model, 3)
    return np.asarray(hidden), caches


def rubbish(config: ModelConfig, samples: int, columns: int) -> KeyValues:
    """One layer's cache as earlier samples may leave it."""
    rng = np.random.default_rng(7)
    k, h = config.num_kv_heads, config.head_dim
    shapes = (samples, k, h, columns), (samples, k, columns, h)
    return KeyValues(*(jnp.asarray(rng.normal(size=s), config.compute_dtype) for s in shapes))


def after_each_token(
    params: Params, prompt: np.ndarray, completion: np.ndarray, config: ModelConfig
) -> np.ndarray:
    """Hidden states [D, T + 1] after the prompt and after each token of its completion."""
    whole = np.concatenate([prompt, completion])[None]
    return alone(params, whole, config)[:, 0, len(prompt) - 1 :]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_prefill_and_decode_give_the_hidden_states_of_the_forward_pass(name: str) -> None:
    config = CONFIGS[name]
    params, samples, new = policy(config), 3, 6
    prompts, completions = tokens_of(0, 3, WIDTH), tokens_of(1, 3 * samples, new)
    questions = np.repeat(np.arange(3), samples)
    hidden, of_prompts = prefilled(params, prompts, config)
    found = [hidden[:, questions]]
    own = (rubbish(config, 3 * samples, new),) * config.num_layers
    cache = transformer.Cache(of_prompts, own)
    for age in range(new):
        on_prompt = np.arange(WIDTH) < LENGTHS[questions, None]
        on_own = np.broadcast_to(np.arange(new) <= age, (3 * samples, new))
        window = config.sliding_window
        ago = LENGTHS[questions, None] + age - np.arange(WIDTH)
        after, cache = decode(
            transformer.unstack(params),
            completions[:, age],
            LENGTHS[questions] + np.int32(age),
            cache,
            jnp.int32(age),
            transformer.Visible(on_prompt, on_own),
            transformer.Visible(
                on_prompt & (ago < window), on_own & (age - np.arange(new) < window)
            ),
            transformer.rotation_table(config, WIDTH + new),
            config=config,
        )
        found.append(np.asarray(after))
    for sample, question in enumerate(questions):
        expected = after_each_token(
            params, prompts[question, : LENGTHS[question]], completions[sample], config
        )
        np.testing.assert_allclose(np.stack(found, axis=-1)[:, sample], expected, atol=5e-6)


IN_ROWS = np.array([[0, 1], [2, 0]])
"""The prompts of each row."""
ENTRIES = np.array([0, 1, 0, 1, 0, 0])
"""Which one each of six samples, three to a row, continues."""
STARTS = np.array([0, 3, 5, 6, 2, 4])
"""The step at which it does."""


def rows_of_prompts(caches: tuple[KeyValues, ...]) -> tuple[KeyValues, ...]:
    """Side by side as in IN_ROWS."""
    return tuple(
        KeyValues(
            jnp.concatenate([layer.keys[column] for column in IN_ROWS.T], axis=3),
            jnp.concatenate([layer.values[column] for column in IN_ROWS.T], axis=2),
        )
        for layer in caches
    )


def in_front(caches: tuple[KeyValues, ...], own: KeyValues, of: np.ndarray) -> list[KeyValues]:
    """Each sample's prompt before its own columns."""
    return [
        KeyValues(
            jnp.concatenate([layer.keys[of], own.keys], axis=3),
            jnp.concatenate([layer.values[of], own.values], axis=2),
        )
        for layer in caches
    ]


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("apart", [True, False], ids=["rows of prompts", "prompts in front"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("float64")
def test_samples_decode_apart_whatever_their_prompts_and_ages(name: str, apart: bool) -> None:
    """A sample starts when it likes, and its columns go around the ring. Before and after, its
    slot computes rubbish that nobody sees. Its prompt is one of its row, or stands in front.

    In float64, where rounding is no excuse."""
    config = dataclasses.replace(CONFIGS[name], compute_dtype="float64")
    params, new, ring = policy(config), 5, 6
    prompts, completions = tokens_of(0, 3, WIDTH), tokens_of(1, 6, new)
    questions = IN_ROWS[np.repeat([0, 1], 3), ENTRIES]
    before = 0 if apart else WIDTH

    hidden, caches = prefilled(params, prompts, config)
    own = rubbish(config, 6, ring)
    if apart:
        cache = transformer.Cache(rows_of_prompts(caches), (own,) * config.num_layers)
    else:
        cache = transformer.Cache((), tuple(in_front(caches, own, questions)))
    firsts = WIDTH * ENTRIES if apart else np.zeros(6, int)

    def visible(step: int, window: int) -> transformer.Visible:
        on_prompt = np.zeros((6, 2 * WIDTH if apart else WIDTH), bool)
        on_own = np.zeros((6, ring), bool)
        for sample, question in enumerate(questions):
            age, length = step - STARTS[sample], LENGTHS[question]
            unseen = min(max(0, length + age + 1 - window), length)
            on_prompt[sample, firsts[sample] + unseen : firsts[sample] + length] = True
            if 0 <= age < new:
                on_own[sample, (step - np.arange(min(age + 1, window))) % ring] = True
        if apart:
            return transformer.Visible(on_prompt, on_own)
        return transformer.Visible(None, np.concatenate([on_prompt, on_own], axis=1))

    found = [[hidden[:, question]] for question in questions]
    for step in range(STARTS.max() + new):
        tokens, ages = tokens_of(step + 2, 6), np.clip(step - STARTS, 0, new - 1)
        working = np.flatnonzero((step >= STARTS) & (step < STARTS + new))
        for sample in working:
            tokens[sample] = completions[sample, ages[sample]]
        after, cache = decode(
            transformer.unstack(params),
            tokens,
            (LENGTHS[questions] + ages).astype(np.int32),
            cache,
            jnp.int32(before + step % ring),
            visible(step, 100),
            visible(step, config.sliding_window or 100),
            transformer.rotation_table(config, WIDTH + new),
            config=config,
        )
        for sample in working:
            found[sample].append(np.asarray(after)[:, sample])
    for sample, question in enumerate(questions):
        expected = after_each_token(
            params, prompts[question, : LENGTHS[question]], completions[sample], config
        )
        np.testing.assert_allclose(np.stack(found[sample], axis=1), expected, atol=1e-12)


@pytest.mark.parametrize("tokens", [(), (7,), (2, 6)])
@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_linear_sums_over_the_last_axes_of_a_weight(
    dtype: str, inputs: int, tokens: tuple[int, ...]
) -> None:
    """In the type of x, whatever the weight's."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 4, 5)).astype(np.float32)
    x = jnp.asarray(rng.normal(size=(*weight.shape[-inputs:], *tokens)), dtype)
    found = layers.linear(jnp.asarray(weight), x, inputs=inputs)
    sums = {1: "abc,c...->ab...", 2: "abc,bc...->a..."}[inputs]
    expected = np.einsum(sums, weight.astype(np.float64), np.asarray(x, np.float64))
    assert found.dtype == dtype
    assert found.shape == expected.shape
    limit = {"float32": 1e-6, "bfloat16": 2e-2}[dtype]
    assert relative_error(np.asarray(found, np.float64), expected) < limit


@pytest.mark.parametrize("name", CONFIGS)
def test_the_number_of_parameters(name: str) -> None:
    c = CONFIGS[name]
    shapes = transformer.abstract_params(config=c, vocab_size=VOCAB)
    d, n, k, h = c.d_model, c.num_heads, c.num_kv_heads, c.head_dim
    block = 2 * d + d * n * h + 2 * d * k * h + n * h * d + 3 * d * c.mlp_dim
    block += c.qkv_bias * (n + 2 * k) * h + c.qk_norm * 2 * h + c.post_norms * 2 * d
    if c.lora_targets:
        ends = [d + n * h, d + k * h, d + k * h, n * h + d] + [d + c.mlp_dim] * 3
        block += c.lora_rank * sum(ends)
    tables = VOCAB * d * (1 if c.tie_embeddings else 2)
    expected = tables + d + c.num_layers * block
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


WIDE = tiny.model(d_model=64, head_dim=32, num_heads=4, num_kv_heads=2, mlp_dim=96)


@functools.cache
def _initial(seed: int) -> Params:
    return _init(jax.random.key(seed))


_init = jax.jit(functools.partial(transformer.init, config=WIDE, vocab_size=64))


def test_initial_parameters_are_float32_of_the_announced_shapes() -> None:
    shapes = transformer.abstract_params(config=WIDE, vocab_size=64)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), _initial(0)) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_initial_values_follow_the_key_and_differ_between_layers() -> None:
    first, again, other = _initial(0), _init(jax.random.key(0)), _initial(1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for path, leaf in jax.tree_util.tree_leaves_with_path(first):
        if path[-1].key == "scale":
            assert np.all(leaf == 1)
    matrices = [leaf for leaf in jax.tree.leaves(first["blocks"]) if leaf.ndim > 2]
    assert len(matrices) == 7
    for leaf in matrices:
        assert np.mean(leaf[0] == leaf[1]) < 1e-3
    assert np.mean(first["embedding"] == other["embedding"]) < 1e-3
    assert np.mean(first["embedding"] == first["unembedding"]) < 1e-3


def test_initial_matrices_keep_variance_and_start_residual_branches_small() -> None:
    params = _initial(0)
    attention, mlp = params["blocks"]["attention"], params["blocks"]["mlp"]
    into_stream = 2 * WIDE.num_layers
    for leaf, fan_in in [
        (params["embedding"], 64),
        (params["unembedding"], 64),
        (attention["query"], 64),
        (attention["key"], 64),
        (attention["value"], 64),
        (attention["output"], 4 * 32 * into_stream),
        (mlp["gate"], 64),
        (mlp["up"], 64),
        (mlp["down"], 96 * into_stream),
    ]:
        assert float(jnp.std(leaf)) == pytest.approx(1 / math.sqrt(fan_in), rel=0.06)
