"""What a run needs before its first step: questions, tokenizer, layout, start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import tiny_experiment
from jax.sharding import PartitionSpec

from rft_jax import setup
from rft_jax.batches import TrainState
from rft_jax.config import (
    Config,
    ConfigError,
    MeshConfig,
    OptimizerConfig,
    PoolConfig,
    TokenizerConfig,
)
from rft_jax.data.prompts import prompt_tokens
from rft_jax.parallel.mesh import make_mesh
from rft_jax.training.optimizer import make_optimizer


@pytest.fixture
def source(tmp_path: Path) -> str:
    return tiny_experiment.write_questions(tmp_path)


def layout_of(config: Config) -> tuple[setup.Layout, TrainState, optax.GradientTransformation]:
    optimizer = make_optimizer(config.optimizer, config.steps)
    return *setup.make_layout(config, make_mesh(config.mesh), optimizer, 274), optimizer


def test_the_tokenizer_is_trained_once(source: str, tmp_path: Path) -> None:
    config = tiny_experiment.sft(source)
    first = setup.ensure_tokenizer(config, tmp_path / "work")
    path = tmp_path / "work/tokenizer.model"
    assert first.path == path
    assert first.vocab_size == 274
    before = path.stat().st_mtime_ns
    again = setup.ensure_tokenizer(config, tmp_path / "work")
    assert path.stat().st_mtime_ns == before
    assert again.encode("1+1?") == first.encode("1+1?")


def test_the_tokenizer_of_a_path_is_read_there(source: str, tmp_path: Path) -> None:
    config = tiny_experiment.sft(source)
    trained = setup.ensure_tokenizer(config, tmp_path)
    named = replace(config, tokenizer=TokenizerConfig(path=str(trained.path)))
    assert setup.ensure_tokenizer(named, tmp_path / "other").path == trained.path
    assert not (tmp_path / "other").exists()


def test_questions_by_their_use(source: str, tmp_path: Path) -> None:
    config = tiny_experiment.sft(source)
    tokenizer = setup.ensure_tokenizer(config, tmp_path)
    questions = setup.load_questions(config, tokenizer)
    assert [len(part) for part in (questions.train, questions.validation, questions.test)] == [
        tiny_experiment.NUM_QUESTIONS, 5, 6,
    ]  # fmt: skip
    never = replace(config, evaluation=replace(config.evaluation, every_steps=0))
    assert setup.load_questions(never, tokenizer).validation == ()
    untested = replace(config, data=replace(config.data, test=""))
    assert setup.load_questions(untested, tokenizer).test == ()
    logged = tiny_experiment.rft(source, rollout=None, pool=PoolConfig(from_rollouts=("a",)))
    assert setup.load_questions(logged, tokenizer).train == ()


def test_more_questions_than_there_are(source: str, tmp_path: Path) -> None:
    whole = tiny_experiment.sft(source).tokenizer
    config = tiny_experiment.online_rft(f"{source}[:7]", tokenizer=whole)
    config = replace(config, data=replace(config.data, test=""))
    tokenizer = setup.ensure_tokenizer(config, tmp_path)
    with pytest.raises(ConfigError) as error:
        setup.load_questions(config, tokenizer)
    assert str(error.value) == (
        f"rollout.questions_per_step is 8 and {source}[:7] has 7 questions: ask at most that many "
        "in a step."
    )


def test_rows_that_the_mesh_cannot_split(source: str) -> None:
    config = tiny_experiment.sft(source)
    setup.check_devices(config, make_mesh(MeshConfig(data=4, fsdp=2)))
    setup.check_devices(replace(config, update=replace(config.update, rows_per_microbatch=4)),
                     make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))  # fmt: skip
    config = replace(config, update=replace(config.update, rows_per_microbatch=4))
    with pytest.raises(ConfigError) as error:
        setup.check_devices(config, make_mesh(MeshConfig(data=4, fsdp=2)))
    assert str(error.value) == (
        "update.rows_per_microbatch is 4: it must be a multiple of mesh.data x mesh.fsdp, 8."
    )


def test_moments_lie_where_their_parameters_lie(source: str) -> None:
    config = tiny_experiment.sft(source, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    layout, abstract, _ = layout_of(config)
    adam = next(part for part in abstract.optimizer[1] if hasattr(part, "mu"))
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, abstract.params)
    assert specs["embedding"] == PartitionSpec("tensor", "fsdp")
    for moments in (adam.mu, adam.nu):
        assert jax.tree.map(lambda leaf: leaf.sharding.spec, moments) == specs
    assert adam.count.sharding.spec == abstract.step.sharding.spec == PartitionSpec()
    # The rollout's layout keeps the width whole: its decode loop gathers no weights.
    assert layout.rollout["embedding"].spec == PartitionSpec("tensor", None)


@pytest.mark.slow
def test_random_parameters_come_from_the_seed(source: str, tmp_path: Path) -> None:
    def start(seed: int, mesh: MeshConfig) -> list[np.ndarray]:
        config = tiny_experiment.sft(source, seed=seed, mesh=mesh)
        layout, abstract, _ = layout_of(config)
        params = setup.start_params(config, {}, tmp_path, abstract.params, layout)
        assert jax.tree.map(lambda leaf: leaf.sharding, params) == layout.params
        return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]

    first = start(0, MeshConfig())
    for ours, theirs in zip(first, start(0, MeshConfig(2, 2, 2)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert any((a != b).any() for a, b in zip(first, start(1, MeshConfig()), strict=True))


@pytest.mark.slow
def test_the_fresh_state(source: str, tmp_path: Path) -> None:
    config = tiny_experiment.sft(source, optimizer=OptimizerConfig())
    layout, abstract, optimizer = layout_of(config)
    params = setup.start_params(config, {}, tmp_path, abstract.params, layout)
    state = setup.fresh_state(params, optimizer, layout)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (
            wanted.shape, wanted.dtype, wanted.sharding,
        )  # fmt: skip
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.optimizer))
    assert int(state.step) == 0


def test_float64_is_refused_where_jax_would_compute_in_float32(source: str) -> None:
    model = replace(tiny_experiment.sft(source).model, compute_dtype="float64")
    config = replace(tiny_experiment.sft(source), model=model)
    with pytest.raises(ConfigError, match=r"compute_dtype is float64.* set JAX_ENABLE_X64=1"):
        setup.check_devices(config, make_mesh(MeshConfig()))


def test_prompts_fit_their_limit_exactly(source: str, tmp_path: Path) -> None:
    config = tiny_experiment.sft(source)
    tokenizer = setup.ensure_tokenizer(config, tmp_path)
    questions = setup.load_questions(config, tokenizer).train
    longest = max(
        len(prompt_tokens(question.text, config.data.prompt_template, tokenizer))
        for question in questions
    )
    tight = replace(config, data=replace(config.data, max_prompt_tokens=longest))
    assert setup.load_questions(tight, tokenizer).train == questions
