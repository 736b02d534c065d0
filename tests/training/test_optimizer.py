"""Schedules, clipping, weight decay and AdamW, against a plain numpy version in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
import tiny

from rft_jax.config import OptimizerConfig
from rft_jax.models import transformer
from rft_jax.training.optimizer import decay_mask, make_optimizer, schedule

SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "constant after warm-up": {"warmup_steps": 4},
    "one step of warm-up": {"warmup_steps": 1, "schedule": "linear"},
    "cosine": {"schedule": "cosine"},
    "cosine to a tenth": {"schedule": "cosine", "warmup_steps": 3, "final_fraction": 0.1},
    "linear": {"schedule": "linear", "warmup_steps": 2},
    "linear to a half": {"schedule": "linear", "final_fraction": 0.5},
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [5, 12])
def test_learning_rates(name: str, steps: int) -> None:
    config = OptimizerConfig(learning_rate=0.2, **SCHEDULES[name])
    rate = schedule(config, steps)
    found = [float(rate(np.int32(update))) for update in range(steps + 3)]
    expected = [reference.learning_rate(config, steps, update) for update in range(steps + 3)]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_the_first_update_moves_and_the_last_of_warm_up_is_the_peak() -> None:
    rate = schedule(OptimizerConfig(learning_rate=0.4, warmup_steps=4, schedule="linear"), 8)
    values = [float(rate(np.int32(update))) for update in range(9)]
    assert values == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.3, 0.2, 0.1, 0.0])


def test_norms_alone_are_exempt_from_weight_decay() -> None:
    shapes = transformer.abstract_params(config=tiny.model(), vocab_size=5)
    exempt = {name for name, decays in reference.named(decay_mask(shapes)).items() if not decays}
    assert exempt == {
        "['final_norm']['scale']",
        "['blocks']['attention_norm']['scale']",
        "['blocks']['mlp_norm']['scale']",
    }


def test_equal_settings_give_the_same_optimizer() -> None:
    """So that an update with it is compiled once."""
    assert make_optimizer(OptimizerConfig(), 5) is make_optimizer(OptimizerConfig(), 5)
    assert make_optimizer(OptimizerConfig(), 5) is not make_optimizer(OptimizerConfig(), 6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"weight_decay": 0.1, "clip_norm": 0.0},
        {"clip_norm": 1e-3, "weight_decay": 0.02, "schedule": "cosine", "warmup_steps": 2},
        {"clip_norm": 3.0, "schedule": "linear", "b1": 0.0, "b2": 0.5, "eps": 1e-2},
    ],
)
def test_steps_are_those_of_adamw(changes: dict[str, Any]) -> None:
    """Relative to the change of the parameters, not to the parameters."""
    config, steps = OptimizerConfig(learning_rate=0.05, **changes), 6
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 2), "norm": (2,)}
    with jax.enable_x64(True):
        params = {
            "w": jnp.asarray(rng.normal(size=shapes["w"])),
            "norm": {"scale": jnp.asarray(rng.normal(size=shapes["norm"]))},
        }
        optimizer = make_optimizer(config, steps)
        state = optimizer.init(params)
        expected, moments = reference.named(params), None
        for update in range(steps):
            before = reference.named(params)
            slopes = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
            change, state = optimizer.update(slopes, state, params)
            params = optax.apply_updates(params, change)
            expected, moments = reference.adamw(
                before, reference.named(slopes), moments, update, config, steps
            )
            for name, value in reference.named(params).items():
                moved = expected[name] - before[name]
                error = np.abs(value - expected[name]).max() / np.abs(moved).max()
                assert error < 1e-6, (name, update)
