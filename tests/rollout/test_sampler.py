"""The sampler against one that knows no cache, batch or loop; and what its outputs depend on."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import random_policy
from scipy import special, stats

from rft_jax.config import MeshConfig, ModelConfig
from rft_jax.distributed.mesh import batch_sharding, make_mesh, param_shardings, replicated
from rft_jax.keys import Purpose, run_key
from rft_jax.models import transformer
from rft_jax.models.axes import logical_axes
from rft_jax.observe.system import count_compilations
from rft_jax.rollout import sampler
from rft_jax.rollout import slots as loop
from rft_jax.rollout.logits import block_shape
from rft_jax.rollout.params import rollout_params
from rft_jax.rollout.sampler import Layout, layouts, sample, sample_stream
from rft_jax.training.log_probs import target_log_probs
from rft_jax.training.packing import TrainingSequence, pack
from rft_jax.types import Completions, Params, Prompts

VOCAB = 12
EOS = 2
NEW = 8
MODEL = tiny.model(num_heads=8, num_kv_heads=4, mlp_dim=32)
SEED, STEP = 17, 4

# Three questions; the ids stand far apart, as they do in a shuffled epoch.
IDS = [7, 4096, 0]
PROMPTS = [[1, 5, 9, 3], [1, 8], [1, 4, 4, 10, 11, 6]]


@functools.cache
def policy() -> Params:
    return random_policy(MODEL, VOCAB, seed=1)


def chain(logits: np.ndarray) -> Params:
    """A policy whose logits depend on the last token alone: logits[token] in float32."""
    width = MODEL.d_model
    params = jax.tree.map(jnp.zeros_like, policy())
    norms = jax.tree.map(jnp.ones_like, params["final_norm"])
    embedding = np.eye(VOCAB, width, dtype=np.float32)
    # The norm turns a unit vector into one of length sqrt(D).
    unembedding = np.zeros((VOCAB, width), np.float32)
    unembedding[:, :VOCAB] = logits.T / np.sqrt(width)
    return params | {
        "final_norm": norms,
        "embedding": jnp.asarray(embedding),
        "unembedding": jnp.asarray(unembedding),
    }


def leading_to(following: dict[int, int]) -> Params:
    """A policy that puts all probability on one next token; EOS after tokens not named."""
    logits = np.full((VOCAB, VOCAB), -1000.0, np.float32)
    for token in range(VOCAB):
        logits[token, following.get(token, EOS)] = 0.0
    return chain(logits)


def make_prompts(
    rows: list[tuple[int, list[int]] | None], *, width: int = 6, rubbish: int = 0
) -> Prompts:
    """Right-padded prompts of (id, tokens); None is a filler row."""
    tokens = np.random.default_rng(rubbish).integers(VOCAB, size=(len(rows), width))
    lengths, ids = np.ones(len(rows), np.int32), np.full(len(rows), -1, np.int32)
    for row, content in enumerate(rows):
        if content is not None:
            ids[row], prompt = content
            tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
    return Prompts(jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths), jnp.asarray(ids))


# With two fillers: five rows in most tests, which then share one compiled function.
QUESTIONS: list[tuple[int, list[int]] | None] = [*zip(IDS, PROMPTS, strict=True), None, None]


def run(
    params: Params,
    prompts: Prompts,
    *,
    seed: int = SEED,
    step: int = STEP,
    temperature: float = 1.3,
    **static: Any,
) -> Completions:
    """`sample` as the loop calls it, its result as numpy arrays."""
    settings = {"config": MODEL, "num_samples": 4, "max_new_tokens": NEW, "eos_ids": (EOS,)}
    settings |= static
    root = run_key(seed=seed, purpose=Purpose.ROLLOUT)
    return jax.device_get(
        sample(params, prompts, root, np.int32(step), np.float32(temperature), **settings)
    )


@functools.cache
def baseline() -> Completions:
    return run(policy(), make_prompts(QUESTIONS))


@functools.partial(jax.jit, static_argnames="config")
def _next_logits(
    params: Params, tokens: jax.Array, length: jax.Array, *, config: ModelConfig
) -> jax.Array:
    """Logits after the first `length` of `tokens`, by the trainer's forward pass."""
    slots = jnp.arange(tokens.shape[0])
    segments = (slots < length).astype(jnp.int32)
    hidden = transformer.hidden_states(
        params, tokens[None], slots[None], segments[None], config=config
    )
    return transformer.logits(params, hidden[:, 0, length - 1], config=config)


@jax.jit
def _uniforms(question_id: jax.Array, index: jax.Array, position: jax.Array) -> jax.Array:
    """The two numbers at one address, folded in one part after the other."""
    key = jax.random.key(SEED)
    for part in (int(Purpose.ROLLOUT), STEP, question_id, index, position):
        key = jax.random.fold_in(key, part)
    return jax.random.uniform(key, (2,))


def _inverted(probabilities: np.ndarray, uniforms: np.ndarray) -> int:
    """The token at two uniform numbers, in float64: a block by the first, then one of it."""
    parts, per_part, size = block_shape(VOCAB)
    padded = np.zeros((parts, per_part * size))
    padded[:, : VOCAB // parts] = probabilities.reshape(parts, -1)
    blocks = padded.reshape(-1, size)
    sums = blocks.sum(axis=1)
    block = int(np.searchsorted(np.cumsum(sums), uniforms[0] * sums.sum(), side="right"))
    inside = blocks[block]
    token = int(np.searchsorted(np.cumsum(inside), uniforms[1] * inside.sum(), side="right"))
    return (block // per_part) * (VOCAB // parts) + (block % per_part) * size + token


def plain_sampler(
    params: Params,
    question_id: int,
    prompt: list[int],
    index: int,
    *,
    temperature: float,
    greedy: bool = False,
) -> tuple[list[int], list[float], list[float]]:
    """Tokens, log-probs and entropies of one sample, the whole sequence anew at every step."""
    sequence, log_probs, entropies = list(prompt), [], []
    for position in range(NEW):
        padded = np.zeros(6 + NEW, np.int32)
        padded[: len(sequence)] = sequence
        scores = _next_logits(params, padded, np.int32(len(sequence)), config=MODEL)
        scaled = np.asarray(scores, np.float64) / (1.0 if greedy else temperature)
        distribution = special.log_softmax(scaled)
        uniforms = np.asarray(_uniforms(question_id, index, position), np.float64)
        token = int(np.argmax(scaled)) if greedy else _inverted(np.exp(distribution), uniforms)
        sequence.append(token)
        log_probs.append(float(distribution[token]))
        entropies.append(float(special.entr(np.exp(distribution)).sum()))
        if token == EOS:
            break
    return sequence[len(prompt) :], log_probs, entropies


@pytest.mark.parametrize(("temperature", "greedy"), [(1.3, False), (0.6, False), (1.0, True)])
def test_outputs_are_those_of_the_plain_sampler(temperature: float, greedy: bool) -> None:
    """Promise 3, and the tokens bit for bit."""
    found = run(policy(), make_prompts(QUESTIONS), temperature=temperature, greedy=greedy)
    for row, (question_id, prompt) in enumerate(zip(IDS, PROMPTS, strict=True)):
        for index in range(1 if greedy else 4):
            tokens, log_probs, entropies = plain_sampler(
                policy(), question_id, prompt, index, temperature=temperature, greedy=greedy
            )
            length = found.lengths[row, index]
            assert found.tokens[row, index, :length].tolist() == tokens
            np.testing.assert_allclose(found.log_probs[row, index, :length], log_probs, atol=1e-5)
            np.testing.assert_allclose(found.entropies[row, index, :length], entropies, atol=1e-5)
            assert found.finished[row, index] == (tokens[-1] == EOS)
            assert not found.tokens[row, index, length:].any()


def test_the_baseline_holds_finished_and_truncated_outputs_of_several_lengths() -> None:
    """Without which the other tests would show little."""
    found = baseline()
    assert found.finished.any()
    assert not found.finished.all()
    assert len(set(found.lengths.ravel().tolist())) >= 4


def same_outputs(found: Completions, expected: Completions, *, atol: float = 1e-5) -> None:
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(found.finished, expected.finished)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=atol)
    np.testing.assert_allclose(found.entropies, expected.entropies, atol=atol)


@settings(max_examples=15)
@given(slots=st.permutations(range(5)), rubbish=st.integers(1, 2**16))
def test_outputs_do_not_depend_on_the_order_of_questions_or_on_fillers(
    slots: list[int], rubbish: int
) -> None:
    found = run(policy(), make_prompts([QUESTIONS[slot] for slot in slots], rubbish=rubbish))
    back = np.array([slots.index(slot) for slot in range(5)])
    same_outputs(Completions(*(leaf[back] for leaf in found)), baseline())


def test_fillers_have_no_output() -> None:
    for leaf in baseline():
        assert not leaf[3:].any()


@pytest.mark.slow
def test_outputs_do_not_depend_on_the_batch_or_on_the_width_of_prompts() -> None:
    for row, content in enumerate(QUESTIONS[:3]):
        found = run(policy(), make_prompts([content], width=9, rubbish=row))
        same_outputs(found, Completions(*(leaf[row : row + 1] for leaf in baseline())))


@pytest.mark.slow
def test_more_samples_leave_the_first_as_they_are() -> None:
    found = run(policy(), make_prompts(QUESTIONS), num_samples=7)
    same_outputs(Completions(*(leaf[:, :4] for leaf in found)), baseline())


@functools.cache
def many() -> tuple[list[tuple[int, list[int]] | None], Completions]:
    """Nine questions of 1 to 6 tokens among fillers, five samples each, at once."""
    generator = np.random.default_rng(5)
    rows: list[tuple[int, list[int]] | None] = [
        (100 * number, generator.integers(VOCAB, size=generator.integers(1, 7)).tolist())
        for number in range(9)
    ]
    rows.insert(4, None)
    return rows, run(policy(), make_prompts(rows), num_samples=5)


@pytest.mark.slow
@pytest.mark.parametrize("num_slots", [1, 5, 49, 1000])
def test_outputs_do_not_depend_on_the_number_of_slots(num_slots: int) -> None:
    """Samples that wait for a slot are those that had one from the start."""
    rows, expected = many()
    found = run(policy(), make_prompts(rows), num_samples=5, num_slots=num_slots)
    same_outputs(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("num_slots", [0, 12])
def test_outputs_do_not_depend_on_rings_and_on_slots_given_up(
    monkeypatch: pytest.MonkeyPatch, num_slots: int
) -> None:
    rows, _ = many()
    limits = jnp.asarray(np.arange(50).reshape(10, 5) % NEW + 1)
    expected = run(policy(), make_prompts(rows), num_samples=5, limits=limits)
    changes: list[tuple[Layout, Layout]] = []
    change = sampler._change

    def seen(slots: Any, *, old: Layout, new: Layout, **static: Any) -> Any:
        changes.append((old, new))
        return change(slots, old=old, new=new, **static)

    fewest = 2 if num_slots else 12  # twice fewer, of 12 as of 50: each number is a program
    for name, value in [("FIRST_RING", 2), ("MIN_SLOTS", fewest), ("STEPS_AT_ONCE", 1)]:
        monkeypatch.setattr(sampler, name, value)
    monkeypatch.setattr(sampler, "LAST_STEPS_AT_ONCE", 1)
    monkeypatch.setattr(sampler, "_change", seen)
    found = run(policy(), make_prompts(rows), num_samples=5, num_slots=num_slots, limits=limits)
    same_outputs(found, expected)
    assert any(new.ring > old.ring for old, new in changes)
    assert any(new.size < old.size for old, new in changes)


@pytest.mark.slow
def test_bfloat16_samples_in_slots_that_are_refilled() -> None:
    config = tiny.model(num_heads=8, num_kv_heads=4, mlp_dim=32, compute_dtype="bfloat16")
    rows, _ = many()
    found = run(policy(), make_prompts(rows), num_samples=5, num_slots=12, config=config)
    assert np.isfinite(found.log_probs).all()
    assert (found.lengths > 0).sum() == 45


@pytest.mark.slow
@pytest.mark.parametrize("ids", [[-1, -1], [-1, 4], [4, -1]])
def test_slots_whose_first_samples_have_nothing_to_do_go_on(ids: list[int]) -> None:
    prompts = Prompts(jnp.full((2, 6), 3), jnp.array([0, 1]), jnp.array(ids))
    found = run(policy(), prompts, num_slots=2)
    for row, question_id in enumerate(ids):
        assert (found.lengths[row] > 0).all() == (question_id >= 0)
    assert np.isfinite(found.log_probs).all()


@pytest.mark.slow
@settings(max_examples=15)
@given(
    limits=st.lists(st.integers(0, NEW), min_size=50, max_size=50),
    num_slots=st.sampled_from([0, 12]),
)
def test_limits_cut_the_same_outputs(limits: list[int], num_slots: int) -> None:
    rows, whole = many()
    most = np.array(limits, np.int32).reshape(10, 5)
    most[4] = 0  # the filler
    found = run(
        policy(), make_prompts(rows), num_samples=5, num_slots=num_slots, limits=jnp.asarray(most)
    )
    kept = np.arange(NEW) < most[..., None]
    same_outputs(
        found,
        Completions(
            tokens=np.where(kept, whole.tokens, 0),
            log_probs=np.where(kept, whole.log_probs, 0),
            entropies=np.where(kept, whole.entropies, 0),
            lengths=np.minimum(whole.lengths, most),
            finished=whole.finished & (whole.lengths <= most),
        ),
    )


@pytest.mark.slow
def test_the_stream_gives_every_output_once_and_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "STEPS_AT_ONCE", 2)
    monkeypatch.setattr(sampler, "LAST_STEPS_AT_ONCE", 1)
    rows, expected = many()
    root = run_key(seed=SEED, purpose=Purpose.ROLLOUT)
    parts = list(
        sample_stream(
            policy(), make_prompts(rows), root, np.int32(STEP), np.float32(1.3),
            config=MODEL, num_samples=5, max_new_tokens=NEW, eos_ids=(EOS,), num_slots=12,
        )
    )  # fmt: skip
    assert len(parts) > 3
    numbers = np.concatenate([part.numbers for part in parts])
    assert sorted(numbers.tolist()) == [n for n in range(50) if n // 5 != 4]
    for part in parts:
        for name in Completions._fields:
            of_all = np.asarray(getattr(expected, name))
            wanted = of_all.reshape(50, *of_all.shape[2:])[part.numbers]
            np.testing.assert_allclose(getattr(part, name), wanted, atol=1e-5)


def test_layouts_are_few_and_end_at_the_longest_output_and_the_fewest_slots() -> None:
    found = layouts(512, 512, fewer=4)
    assert found == [(512, r) for r in (32, 64, 128, 256, 512)] + [(128, 512), (32, 512), (8, 512)]
    assert layouts(64, 40, fewer=2) == [(64, 40), (32, 40), (16, 40), (8, 40)]
    assert layouts(4, 8, fewer=2) == [(4, 8)]


@pytest.mark.slow
def test_a_shorter_limit_cuts_the_same_outputs() -> None:
    limit, whole = 5, baseline()
    found = run(policy(), make_prompts(QUESTIONS), max_new_tokens=limit)
    same_outputs(
        found,
        Completions(
            tokens=whole.tokens[..., :limit],
            log_probs=whole.log_probs[..., :limit],
            entropies=whole.entropies[..., :limit],
            lengths=np.minimum(whole.lengths, limit),
            finished=whole.finished & (whole.lengths <= limit),
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("eos_ids", [(EOS, 9, 4), (9, 4, EOS)])
def test_more_eos_ids_cut_the_same_outputs(eos_ids: tuple[int, ...]) -> None:
    whole = baseline()
    ends = np.isin(whole.tokens, eos_ids) & (np.arange(NEW) < whole.lengths[..., None])
    finished = ends.any(axis=-1)
    lengths = np.where(finished, ends.argmax(axis=-1) + 1, whole.lengths).astype(np.int32)
    there = np.arange(NEW) < lengths[..., None]
    assert (lengths < whole.lengths).any()
    same_outputs(
        run(policy(), make_prompts(QUESTIONS), eos_ids=eos_ids),
        Completions(
            tokens=np.where(there, whole.tokens, 0),
            log_probs=np.where(there, whole.log_probs, np.float32(0)),
            entropies=np.where(there, whole.entropies, np.float32(0)),
            lengths=lengths,
            finished=finished,
        ),
    )


def test_one_eos_id_is_one_comparison() -> None:
    """A model with one costs what it did before there could be several."""
    tokens = jnp.zeros(3, jnp.int32)
    for count in (1, 3):
        ids = tuple(range(count))
        traced = jax.make_jaxpr(functools.partial(loop.is_one_of, ids=ids))(tokens)
        names = [equation.primitive.name for equation in traced.eqns]
        assert names == ["eq"] * count + ["or"] * (count - 1)


@pytest.mark.slow
@pytest.mark.parametrize("num_slots", [0, 8])
def test_shards_that_end_far_apart_wait_for_no_exchange(num_slots: int) -> None:
    """A vocabulary of 20 is padded for the draw, which moves parts of it between devices."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = random_policy(MODEL, 20, seed=1)
    layout = param_shardings(mesh, params, logical_axes(params), fsdp=False)
    prompts = make_prompts([(id, [1, 5, 9]) for id in range(4)])
    root = run_key(seed=SEED, purpose=Purpose.ROLLOUT)
    limits = np.array([[1] * 4, [2] * 4, [3] * 4, [NEW] * 4], np.int32)
    settings: dict[str, Any] = {
        "config": MODEL, "num_samples": 4, "max_new_tokens": NEW, "eos_ids": (EOS,),
    }  # fmt: skip
    scalars = (root, np.int32(STEP), np.float32(1.0))
    alone = sample(params, prompts, *scalars, limits=jnp.asarray(limits), **settings)
    spread = sample(
        jax.device_put(params, layout),
        jax.device_put(prompts, batch_sharding(mesh)),
        *jax.device_put(scalars, replicated(mesh)),
        limits=jax.device_put(limits, batch_sharding(mesh)),
        num_slots=num_slots,
        **settings,
    )
    same_outputs(jax.device_get(spread), jax.device_get(alone))


def test_every_part_of_the_address_changes_outputs() -> None:
    """A uniform policy, so that tokens are a picture of the keys alone."""
    uniform = chain(np.where(np.arange(VOCAB) == EOS, -1000.0, 0.0)[None].repeat(VOCAB, axis=0))
    rows: list[tuple[int, list[int]] | None] = [(number, [3]) for number in range(5)]
    outputs: list[tuple[int, ...]] = []
    for seed, step in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        found = run(uniform, make_prompts(rows), seed=seed, step=step)
        outputs += [tuple(tokens) for tokens in found.tokens.reshape(-1, NEW).tolist()]
    assert len(set(outputs)) == len(outputs) == 4 * 5 * 4
    # Within outputs as between them: tokens at all positions together are uniform.
    counts = np.bincount(np.array(outputs).ravel(), minlength=VOCAB)
    assert stats.chisquare(np.delete(counts, EOS)).pvalue > 1e-3


def test_eos_is_kept_and_counted_and_nothing_follows_it() -> None:
    params = leading_to({3: 4, 4: 5, 5: 6, 6: EOS, 8: 8})
    rows: list[tuple[int, list[int]] | None] = [(0, [1, 3]), (1, [6]), None, (2, [3, 8]), None]
    found = run(params, make_prompts(rows))
    expected = np.zeros((5, NEW), np.int32)
    expected[0, :4], expected[1, 0], expected[3] = [4, 5, 6, EOS], EOS, 8
    for index in range(4):
        np.testing.assert_array_equal(found.tokens[:, index], expected)
        assert found.lengths[:, index].tolist() == [4, 1, 0, NEW, 0]
        assert found.finished[:, index].tolist() == [True, True, False, False, False]
    after = np.arange(NEW) >= found.lengths[..., None]
    for leaf in (found.tokens, found.log_probs, found.entropies):
        assert not leaf[after].any()


def test_eos_in_the_last_place_finishes_an_output() -> None:
    params = leading_to({token: token + 1 for token in range(3, 3 + NEW - 1)})
    found = run(params, make_prompts([(0, [3]), None, None, None, None]))
    assert found.tokens[0].tolist() == [[4, 5, 6, 7, 8, 9, 10, EOS]] * 4
    assert found.finished[0].all()
    assert found.lengths[0].tolist() == [NEW] * 4


@pytest.mark.slow
def test_decoding_stops_when_every_output_has_ended() -> None:
    def steps(following: dict[int, int], rows: list[tuple[int, list[int]] | None]) -> int:
        root = run_key(seed=0, purpose=Purpose.ROLLOUT)
        params, prompts = transformer.unstack(leading_to(following)), make_prompts(rows)
        limits = jnp.where(prompts.ids[:, None] >= 0, NEW, 0).repeat(2, axis=1)
        store, slots = sampler.start(
            params, prompts, limits, root, np.int32(0),
            mesh=None, config=MODEL, shape=(len(rows), 2), ring=NEW, max_new_tokens=NEW,
        )  # fmt: skip
        slots, _ = sampler.decode(
            params, store, slots, np.float32(1), np.int32(100),
            mesh=None, config=MODEL, prompt_width=6, eos_ids=(EOS,), greedy=False,
        )  # fmt: skip
        return int(slots.step[0])

    # EOS at once; the longer of two; the limit; nothing to sample.
    assert steps({}, [(0, [3]), (1, [4]), None]) == 1
    assert steps({3: 4, 4: 5}, [(0, [3]), (1, [4]), None]) == 3
    assert steps({3: 3}, [(0, [3]), (1, [4]), None]) == NEW
    assert steps({3: 3}, [None, None, None]) == 0


@pytest.mark.slow
def test_a_slot_never_waits_while_its_row_holds_the_next_prompt() -> None:
    """The cost follows the tokens: short outputs beside one long one take few steps."""
    rows: list[tuple[int, list[int]] | None] = [(number, [4]) for number in range(8)]
    rows[0] = (0, [3])
    params = leading_to({3: 3, 4: 5})  # the first question runs to the limit, others end at 2
    root = run_key(seed=0, purpose=Purpose.ROLLOUT)
    stacked, prompts = transformer.unstack(params), make_prompts(rows)
    store, slots = sampler.start(
        stacked, prompts, jnp.full((8, 2), NEW), root, np.int32(0),
        mesh=None, config=MODEL, shape=(2, 2), ring=NEW, max_new_tokens=NEW,
    )  # fmt: skip
    slots, _ = sampler.decode(
        stacked, store, slots, np.float32(1), np.int32(100),
        mesh=None, config=MODEL, prompt_width=6, eos_ids=(EOS,), greedy=False,
    )  # fmt: skip
    # 2 x 8 tokens in two slots, 14 x 2 in the other two; question by question it would be 22.
    assert int(slots.step[0]) <= 14
    assert slots.outputs.ended.all()


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_first_tokens_follow_the_tempered_policy(temperature: float) -> None:
    count = 20_000
    found = run(
        policy(),
        make_prompts([QUESTIONS[0]]),
        temperature=temperature,
        num_samples=count,
        max_new_tokens=2,
    )
    prompt = np.zeros(6, np.int32)
    prompt[:4] = PROMPTS[0]
    scores = np.asarray(_next_logits(policy(), prompt, np.int32(4), config=MODEL), np.float64)
    observed = np.bincount(found.tokens[0, :, 0], minlength=VOCAB)
    assert stats.chisquare(observed, count * special.softmax(scores / temperature)).pvalue > 1e-3
    assert np.sum(found.finished & (found.lengths == 1)) == observed[EOS]


@pytest.mark.slow
def test_pairs_of_tokens_follow_the_joint_distribution() -> None:
    """The keys of two positions are independent: pairs follow p(a) p(b | a)."""
    count, tokens = 20_000, [3, 4, 5]
    logits = np.full((VOCAB, VOCAB), -1000.0, np.float32)
    logits[np.ix_(tokens, tokens)] = [[0.0, 1.0, -1.0], [0.5, 0.0, 0.0], [-0.5, 0.7, 0.2]]
    found = run(
        chain(logits),
        make_prompts([(0, [3])]),
        temperature=1.0,
        num_samples=count,
        max_new_tokens=2,
    )
    step = special.softmax(logits.astype(np.float64), axis=-1)[np.ix_(tokens, tokens)]
    expected = count * step[0][:, None] * step
    pairs = np.zeros((3, 3))
    np.add.at(pairs, (found.tokens[0, :, 0] - 3, found.tokens[0, :, 1] - 3), 1)
    assert stats.chisquare(pairs.ravel(), expected.ravel()).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("compute_dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_log_probs_are_the_trainers(
    compute_dtype: str, tolerance: float, temperature: float
) -> None:
    """Promise 3, on packed rows as the update sees them."""
    config = tiny.model(num_heads=8, num_kv_heads=4, mlp_dim=32, compute_dtype=compute_dtype)
    params = policy()
    found = run(params, make_prompts(QUESTIONS), temperature=temperature, config=config)
    sequences = [
        TrainingSequence(
            prompt,
            found.tokens[row, index, : found.lengths[row, index]].tolist(),
            weight=float(found.lengths[row, index]),
            log_probs=found.log_probs[row, index, : found.lengths[row, index]].tolist(),
        )
        for row, prompt in enumerate(PROMPTS)
        for index in range(4)
    ]
    batch = pack(sequences, row_length=32, rows_per_microbatch=8, max_microbatches=1)
    rows = [jnp.asarray(leaf[0]) for leaf in batch[:4]]
    trained = np.asarray(
        jax.jit(target_log_probs, static_argnames=("config", "chunk"))(
            params, *rows, np.float32(temperature), config=config, chunk=64
        )
    )
    outputs = batch.weights[0] > 0
    assert outputs.sum() == found.lengths.sum()
    gap = np.abs(trained - batch.sampler_log_probs[0])[outputs]
    assert gap.max() < tolerance
    if compute_dtype == "float32":
        # Weighted by |o| / |o| = 1 at output tokens: the sum is the log-prob of all outputs.
        total = float(np.sum(trained * batch.weights[0]))
        assert total == pytest.approx(float(found.log_probs.sum()), rel=1e-5)


@pytest.mark.slow
def test_casting_parameters_for_the_rollout_changes_no_output_by_a_bit() -> None:
    config = tiny.model(num_heads=8, num_kv_heads=4, mlp_dim=32, compute_dtype="bfloat16")
    params = policy()
    scale = 1 + 0.1 * jax.random.normal(jax.random.key(0), (MODEL.d_model,))
    params = params | {"final_norm": {"scale": scale}}
    cast = rollout_params(params, scale.sharding, dtype="bfloat16")
    for path, leaf in jax.tree_util.tree_leaves_with_path(cast):
        expected = "float32" if path[-1].key == "scale" else "bfloat16"
        assert leaf.dtype == expected, path
    prompts = make_prompts(QUESTIONS)
    same_outputs(run(cast, prompts, config=config), run(params, prompts, config=config), atol=0)


@pytest.mark.slow
def test_programs_compiled_beforehand_are_all_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other steps, temperatures, seeds, questions, lengths of outputs compile nothing."""
    for name, value in [("FIRST_RING", 2), ("MIN_SLOTS", 2), ("LAST_STEPS_AT_ONCE", 1)]:
        monkeypatch.setattr(sampler, name, value)
    static = {
        "config": MODEL, "num_samples": 3, "max_new_tokens": NEW, "eos_ids": (EOS,), "num_slots": 8,
    }  # fmt: skip

    def arguments(step: int) -> tuple[Any, ...]:
        rows = [QUESTIONS[step % 3], None, QUESTIONS[0], (9, [3]), (77, [4, 3])]
        params = policy() if step else leading_to({3: 4})
        root = run_key(seed=step, purpose=Purpose.ROLLOUT)
        prompts = jax.device_put(make_prompts(rows))
        return params, prompts, root, np.int32(step), np.float32(1 - step / 100)

    sampler.compile_programs(*arguments(0), **static)
    calls = [arguments(step) for step in (0, 1, 50)]
    with count_compilations() as compilations:
        for call in calls:
            assert list(sample_stream(*call, **static))
    assert compilations.count == 0
