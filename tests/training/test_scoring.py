"""Log-probs of given outputs: one program for all, the same on every mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from policies import random_policy

from rft_jax.config import Config, MeshConfig
from rft_jax.distributed.mesh import make_mesh, param_shardings
from rft_jax.models import transformer
from rft_jax.models.axes import logical_axes
from rft_jax.training.packing import TrainingSequence
from rft_jax.training.scoring import kl_of_some, packed_scores, score_sequences
from rft_jax.training.state import as_reference
from rft_jax.types import Params, Sample, Verdict

MESHES = {
    "one": MeshConfig(data=1),
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=2, fsdp=4),
    "all": MeshConfig(data=2, fsdp=2, tensor=2),
}


def sequences(size: int, vocab: int) -> list[TrainingSequence]:
    rng = np.random.default_rng(31)

    def tokens() -> list[int]:
        return rng.integers(vocab, size=rng.integers(1, 9)).tolist()

    return [TrainingSequence(tokens(), tokens(), 0.0) for _ in range(size)]


def alone(
    params: Params, many: list[TrainingSequence], config: Config, temperature: float
) -> list[np.ndarray]:
    """The softmax of the logits of each sequence in a row of its own."""
    width = 16
    tokens = np.zeros((len(many), width), np.int32)
    for row, one in enumerate(many):
        tokens[row, : len(one.prompt) + len(one.completion)] = [*one.prompt, *one.completion]
    places = np.broadcast_to(np.arange(width), tokens.shape)

    @jax.jit
    def of_all(params: Params) -> jax.Array:
        # What follows a sequence is of its segment, and causally after it.
        hidden = transformer.hidden_states(
            params, jnp.asarray(tokens), jnp.asarray(places), jnp.ones(tokens.shape, jnp.int32),
            config=config.model,
        )  # fmt: skip
        logits = transformer.logits(params, hidden, config=config.model) / temperature
        return jax.nn.log_softmax(logits, axis=0)

    found = np.asarray(of_all(params))
    return [
        np.array([found[t, row, len(one.prompt) - 1 + n] for n, t in enumerate(one.completion)])
        for row, one in enumerate(many)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_each_output_has_the_log_probs_that_it_has_alone(name: str) -> None:
    base = tiny.online_rft()
    assert base.rollout is not None
    config = replace(
        base,
        rollout=replace(base.rollout, temperature=0.7),
        model=replace(base.model, num_heads=2, num_kv_heads=2),
    )
    params = random_policy(config.model, 32)
    vocab, mesh = (
        params["embedding"].shape[0],
        make_mesh(MESHES[name], jax.devices()[: 1 if name == "one" else 8]),
    )
    where = param_shardings(mesh, params, logical_axes(params))
    many = sequences(19, vocab)  # more than one update holds
    packed_scores.clear_cache()
    found = score_sequences(
        jax.device_put(params, where), many, config, frozen={}, mesh=mesh, vocab_size=vocab
    )
    assert packed_scores._cache_size() == 1
    assert [len(one) for one in found] == [len(one.completion) for one in many]
    for scored, expected in zip(found, alone(params, many, config, 0.7), strict=True):
        np.testing.assert_allclose(scored, expected, atol=2e-5)


@pytest.mark.slow
def test_a_reference_in_the_compute_type_has_the_same_scores() -> None:
    """All of its parameters in bfloat16, as adapters are: the numbers stay float32's."""
    base = tiny.online_rft()
    config = replace(base, model=replace(base.model, compute_dtype="bfloat16"))
    mesh, params = make_mesh(MeshConfig(data=8)), random_policy(config.model, 32)
    many = sequences(8, 32)
    one, two = (
        score_sequences(of, many, config, frozen={}, mesh=mesh, vocab_size=32)
        for of in (params, as_reference(params, "bfloat16"))
    )
    for ours, theirs in zip(one, two, strict=True):
        assert ours.dtype == theirs.dtype == np.float32
        assert ours.tolist() == theirs.tolist()
    without_norms = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    score_sequences(without_norms, many, config, frozen={}, mesh=mesh, vocab_size=32)


def test_the_kl_of_some_outputs_is_spread_over_the_rollout() -> None:
    """Undecided outputs have none, and every token counts once."""
    apart = {number: 0.1 * number for number in range(6)}
    samples = [
        Sample(
            question_id=number, sample_index=0, step=0, text="", tokens=(1,) * (1 + number),
            log_probs=(-1.0,) * (1 + number), finished=True,
            verdict=Verdict.UNDECIDED if number == 1 else Verdict.CORRECT, reason="",
        )
        for number in apart
    ]  # fmt: skip

    def reference(some: Sequence[TrainingSequence]) -> list[np.ndarray]:
        return [np.full(len(one.completion), -1.0 + apart[one.prompt[0]]) for one in some]

    def expected(numbers: Sequence[int]) -> float:
        sums = [(1 + n) * (np.exp(apart[n]) - apart[n] - 1) for n in numbers]
        return float(np.sum(sums) / sum(1 + n for n in numbers))

    def kl(count: int) -> dict[str, float]:
        return kl_of_some(samples, lambda question: [question], reference, count)

    assert kl(9) == {"policy/kl": pytest.approx(expected([0, 2, 3, 4, 5]), rel=1e-4)}
    assert kl(3) == {"policy/kl": pytest.approx(expected([0, 3, 5]), rel=1e-4)}
    assert kl_of_some(samples[1:2], lambda question: [question], reference, 3) == {}


def test_nothing_to_score_asks_no_device() -> None:
    config = tiny.online_rft()
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    assert score_sequences({}, [], config, frozen={}, mesh=mesh, vocab_size=8) == []
