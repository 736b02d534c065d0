"""Samples, verdicts, losses, gradients and parameters on every mesh of 8 devices: those of one.

What is counted or chosen is equal: tokens, lengths, verdicts, trained tokens. What is summed is
equal but for rounding: devices add float32 numbers (24 bits, 6e-8) in another order. Sums here have
some hundred terms of like size, so that they agree to about 1e-6 of the largest of them; TOLERANCE
leaves a factor of ten. A token is drawn where a sum of probabilities passes a random number, so it
would differ where the two lie within 1e-7 of each other: about one of 10^5 samples.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import programs
import pytest
import tiny
from jax.sharding import Mesh
from policies import random_policy

from rft_jax.config import MeshConfig, ModelConfig, OptimizerConfig
from rft_jax.config.model import LORA_TARGETS
from rft_jax.distributed.mesh import batch_sharding, make_mesh, replicated
from rft_jax.keys import Purpose, run_key
from rft_jax.models import adapters
from rft_jax.rollout.params import rollout_params
from rft_jax.rollout.sampler import sample
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.packing import TrainingSequence, pack
from rft_jax.training.state import make_layout, shardings
from rft_jax.training.update import Terms, UpdateMetrics, init_state, update
from rft_jax.types import Completions, PackedBatch, Params, Prompts, Verdict
from rft_jax.verification.pool import Item, VerifierPool
from rft_jax.verification.rules import Limits, VerifierSpec

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
"""Of log-probs and entropies in nats; of sums, relative to the largest number of their tensor."""
LEARNING_RATE = 1e-2
MOVED = 1e-3
"""How far updated parameters may lie apart, in learning rates."""

VOCAB, EOS, QUESTIONS, SAMPLES, NEW = 24, 2, 8, 2, 6
TEMPERATURE = 0.9

# Every axis takes 8 devices; two query heads share a key/value head.
MODEL = tiny.model(num_heads=16, num_kv_heads=8, head_dim=4, mlp_dim=32)
TIED = replace(MODEL, tie_embeddings=True)
ADAPTED = replace(MODEL, lora_rank=2, lora_alpha=6.0, lora_targets=LORA_TARGETS)


class Case(NamedTuple):
    """sizes: data, fsdp, tensor; num_slots: fewer than the 16 samples are refilled; for_users:
    compiled as for them."""

    sizes: tuple[int, int, int]
    model: ModelConfig
    num_slots: int = 0
    for_users: bool = False

    def __str__(self) -> str:
        kind = {TIED: "tied", ADAPTED: "adapters"}.get(self.model, f"remat {self.model.remat}")
        slots = f" {self.num_slots} slots" if self.num_slots else ""
        return "x".join(map(str, self.sizes)) + f" {kind}{slots}"


ORDERED = [(d, f, 8 // d // f) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if d * f <= 8]
REMAT: tuple[Any, ...] = ("none", "dots", "full")
CASES = [
    Case(
        sizes,
        TIED if sizes == (1, 4, 2) else replace(MODEL, remat=REMAT[number % 3]),
        num_slots=8 * (number % 2),
    )
    for number, sizes in enumerate(ORDERED)
]
CASES += [Case((2, 2, 2), ADAPTED, 8, for_users=True)]


def test_the_cases_are_all_there_are() -> None:
    assert len(set(ORDERED)) == 10
    assert {case.sizes for case in CASES} == set(ORDERED)
    assert {case.model.remat for case in CASES} == set(REMAT)


@pytest.fixture(scope="module")
def judges() -> Iterator[VerifierPool]:
    with VerifierPool(VerifierSpec("hash"), Limits(workers=1, timeout_seconds=60.0)) as pool:
        yield pool


def items(outputs: Completions) -> list[Item]:
    """The outputs as texts that state one of three answers."""
    return [
        Item(
            reference=f"#### {question % 3}",
            output=f"#### {int(outputs.tokens[question, index].sum()) % 3}",
            finished=bool(outputs.finished[question, index]),
        )
        for question in range(QUESTIONS)
        for index in range(SAMPLES)
    ]


@functools.cache
def prompts() -> tuple[list[list[int]], Prompts]:
    generator = np.random.default_rng(1)
    lengths = generator.integers(1, 6, size=QUESTIONS).astype(np.int32)
    tokens = generator.integers(VOCAB, size=(QUESTIONS, 5)).astype(np.int32)
    rows = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
    return rows, Prompts(tokens, lengths, np.arange(0, 10 * QUESTIONS, 10, np.int32))  # type: ignore[arg-type]


def recorded() -> optax.GradientTransformation:
    """Keeps the gradients as they come."""

    def keep(gradients: Params, _: Params, params: Params | None = None) -> tuple[Params, Params]:
        return gradients, gradients

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), keep)


# AdamW's step divides a gradient by its own size, and so makes much of the rounding errors of a
# small one, which the second update's gradients would show. eps keeps it from that, below 1e-3.
ADAMW = OptimizerConfig(learning_rate=LEARNING_RATE, weight_decay=0.1, eps=1e-3)
OPTIMIZER = optax.chain(recorded(), make_optimizer(ADAMW, 2))


@functools.cache
def parts(model: ModelConfig) -> tuple[Params, Params]:
    """(frozen, trained) parameters, on the host."""
    whole = jax.tree.map(np.asarray, random_policy(model, VOCAB))
    return adapters.split(whole, model)


def mesh_of(sizes: tuple[int, int, int]) -> Mesh:
    return make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])


def compiled_for(case: Case) -> AbstractContextManager[None]:
    return programs.as_for_users() if case.for_users else nullcontext()


@functools.cache
def sampled(case: Case) -> Completions:
    mesh = mesh_of(case.sizes)
    layout = make_layout(case.model, mesh, OPTIMIZER, VOCAB)
    frozen, trained = parts(case.model)
    placed = adapters.join(
        jax.device_put(frozen, shardings(layout.base)) if frozen else {},
        jax.device_put(trained, shardings(layout.trained)),
    )
    scalars = run_key(seed=0, purpose=Purpose.ROLLOUT), np.int32(4), np.float32(TEMPERATURE)
    with compiled_for(case):
        found = sample(
            rollout_params(placed, layout.rollout, dtype="float32"),
            jax.device_put(prompts()[1], batch_sharding(mesh)),
            *jax.device_put(scalars, replicated(mesh)),
            config=case.model, num_samples=SAMPLES, max_new_tokens=NEW, eos_ids=(EOS,),
            num_slots=case.num_slots,
        )  # fmt: skip
    return jax.device_get(found)


def on_one_device(model: ModelConfig) -> Case:
    """The case that another one is held against, whatever it rematerialises."""
    return Case((1, 1, 1), replace(model, remat="none"))


@functools.cache
def batch(model: ModelConfig) -> PackedBatch:
    """What one device samples, in three micro-batches, of which two are in use."""
    outputs = sampled(on_one_device(model))
    sequences = []
    for number, item in enumerate(items(outputs)):
        question, index = divmod(number, SAMPLES)
        length = outputs.lengths[question, index]
        sequences.append(
            TrainingSequence(
                prompts()[0][question],
                outputs.tokens[question, index, :length].tolist(),
                weight=(1.0 if item.finished else 0.25) * (1 + int(item.output[-1])) / 16,
                kl_weight=1 / 16,
                log_probs=outputs.log_probs[question, index, :length].tolist(),
            )
        )
    found = pack(sequences, row_length=12, rows_per_microbatch=8, max_microbatches=3)
    assert found.num_microbatches == 2
    return found


class Updated(NamedTuple):
    """After each of two updates: the metrics, the gradients, the parameters."""

    metrics: list[UpdateMetrics]
    gradients: list[Params]
    params: list[Params]


@functools.cache
def updated(case: Case) -> Updated:
    mesh = mesh_of(case.sizes)
    layout = make_layout(case.model, mesh, OPTIMIZER, VOCAB)
    frozen, trained = parts(case.model)
    # Copies: updates overwrite their state.
    fresh = jax.tree.map(np.array, init_state(trained, OPTIMIZER))
    state = jax.device_put(fresh, shardings(layout.state))
    reference = jax.tree.map(lambda leaf: np.float32(0.9) * leaf, trained)
    rows, whole = batch_sharding(mesh, axis=1), replicated(mesh)
    of_run = batch(on_one_device(case.model).model)
    arguments = (
        jax.device_put(reference, shardings(layout.trained)),
        jax.device_put(of_run, jax.tree.map(lambda x: rows if np.ndim(x) else whole, of_run)),
        jax.device_put(np.float32(TEMPERATURE), whole),
        jax.device_put(frozen, shardings(layout.base)) if frozen else None,
    )
    lowered = update.lower(
        state, *arguments,
        config=case.model, optimizer=OPTIMIZER, terms=Terms(0.1), chunk=64, mesh=mesh,
    )  # fmt: skip
    with compiled_for(case):
        one = lowered.compile()
    found = Updated([], [], [])
    for _ in range(2):
        state, metrics = one(state, *arguments)
        for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(layout.state), strict=True):
            assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
        found.metrics.append(jax.device_get(metrics))
        found.gradients.append(jax.device_get(state.optimizer[0]))
        found.params.append(jax.device_get(state.params))
    return found


@pytest.mark.parametrize("model", [MODEL, TIED, ADAPTED], ids=["plain", "tied", "adapters"])
def test_one_device_samples_outputs_of_all_kinds(model: ModelConfig, judges: VerifierPool) -> None:
    """Without which the next test would show little."""
    outputs = sampled(on_one_device(model))
    assert len(set(outputs.lengths.ravel().tolist())) >= 3
    assert outputs.finished.any()
    assert not outputs.finished.all()
    verdicts = {judgement.verdict for judgement in judges.verify(items(outputs))}
    assert verdicts == {Verdict.CORRECT, Verdict.INCORRECT}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_samples_and_verdicts(case: Case, judges: VerifierPool) -> None:
    found, expected = sampled(case), sampled(on_one_device(case.model))
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(found.finished, expected.finished)
    np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found.entropies, expected.entropies, rtol=0, atol=TOLERANCE)
    assert judges.verify(items(found)) == judges.verify(items(expected))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_losses_gradients_and_parameters(case: Case) -> None:
    """Of two updates, the second on the parameters that the first one made."""
    found, expected = updated(case), updated(on_one_device(case.model))
    for ours, theirs in zip(found.metrics, expected.metrics, strict=True):
        for name in ("value", "kl", "gradient_norm", "mismatch_mean"):
            one, other = float(getattr(ours, name)), float(getattr(theirs, name))
            assert one == pytest.approx(other, rel=TOLERANCE, abs=TOLERANCE * 1e-1), name
    # The trainer's log-probs on this mesh are those of the sampler on one device.
    assert found.metrics[0].mismatch_max < TOLERANCE
    for mine, other in zip(found.gradients, expected.gradients, strict=True):
        equal(mine, other, lambda leaf: TOLERANCE * np.abs(leaf).max())
    for mine, other in zip(found.params, expected.params, strict=True):
        equal(mine, other, lambda leaf: MOVED * LEARNING_RATE)
    # Two steps of AdamW move a parameter about two learning rates: far more than that.
    first, last = jax.tree.leaves(parts(case.model)[1]), jax.tree.leaves(expected.params[1])
    assert all(np.abs(a - b).max() > LEARNING_RATE for a, b in zip(first, last, strict=True))


def equal(found: Params, expected: Params, tolerance: Any) -> None:
    """Every tensor of two trees, each within the tolerance of the expected one."""
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    for (path, other), one in zip(leaves, jax.tree.leaves(found), strict=True):
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance(other), err_msg=where)
