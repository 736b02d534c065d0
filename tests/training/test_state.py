"""Where parameters and optimizer state live."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import tiny_experiment
from jax.sharding import PartitionSpec

from rft_jax.checkpoint.start import load_start
from rft_jax.config import Config, MeshConfig, OptimizerConfig
from rft_jax.distributed.mesh import make_mesh
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.state import Layout, fresh_state, make_layout


@pytest.fixture
def source(tmp_path: Path) -> str:
    return tiny_experiment.write_questions(tmp_path)


def layout_of(config: Config) -> tuple[Layout, optax.GradientTransformation]:
    optimizer = make_optimizer(config.optimizer, config.steps)
    return make_layout(config.model, make_mesh(config.mesh), optimizer, 274), optimizer


def test_moments_lie_where_their_parameters_lie(source: str) -> None:
    config = tiny_experiment.sft(source, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    layout, _ = layout_of(config)
    adam = next(part for part in layout.state.optimizer[1] if hasattr(part, "mu"))
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, layout.trained)
    assert specs["embedding"] == PartitionSpec("tensor", "fsdp")
    for moments in (adam.mu, adam.nu):
        assert jax.tree.map(lambda leaf: leaf.sharding.spec, moments) == specs
    assert adam.count.sharding.spec == layout.state.step.sharding.spec == PartitionSpec()
    # The rollout's layout keeps the width whole: its decode loop gathers no weights.
    assert layout.rollout["embedding"].spec == PartitionSpec("tensor", None)


@pytest.mark.slow
def test_the_fresh_state(source: str, tmp_path: Path) -> None:
    config = tiny_experiment.sft(source, optimizer=OptimizerConfig())
    layout, optimizer = layout_of(config)
    state = fresh_state(load_start(config, tmp_path, layout).trained, optimizer, layout)
    abstract = layout.state
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (
            wanted.shape, wanted.dtype, wanted.sharding,
        )  # fmt: skip
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.optimizer))
    assert int(state.step) == 0
