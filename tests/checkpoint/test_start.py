"""What a run starts from."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import tiny_experiment

from rft_jax.checkpoint.start import load_start
from rft_jax.config import Config, MeshConfig
from rft_jax.distributed.mesh import make_mesh
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.state import Layout, make_layout, shardings


@pytest.fixture
def source(tmp_path: Path) -> str:
    return tiny_experiment.write_questions(tmp_path)


def layout_of(config: Config) -> tuple[Layout, optax.GradientTransformation]:
    optimizer = make_optimizer(config.optimizer, config.steps)
    return make_layout(config.model, make_mesh(config.mesh), optimizer, 274), optimizer


@pytest.mark.slow
def test_random_parameters_come_from_the_seed(source: str, tmp_path: Path) -> None:
    def start(seed: int, mesh: MeshConfig) -> list[np.ndarray]:
        config = tiny_experiment.sft(source, seed=seed, mesh=mesh)
        layout, _ = layout_of(config)
        frozen, params = load_start(config, tmp_path, layout)
        assert frozen == {}
        assert shardings(params) == shardings(layout.base)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]

    first = start(0, MeshConfig())
    for ours, theirs in zip(first, start(0, MeshConfig(2, 2, 2)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert any((a != b).any() for a, b in zip(first, start(1, MeshConfig()), strict=True))
