"""benchmarks/method_cost.py: what it measures, on a tiny run, and its table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_experiment

from benchmarks.method_cost import ALMOST_ZERO, config_of, measure, table
from benchmarks.results import spread
from rft_jax.config import EvaluationConfig
from rft_jax.runs.run import run
from rft_jax.training.methods import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_every_row_is_measured_on_the_same_samples(name: str, tmp_path: Path) -> None:
    config = config_of(name, tmp_path, 5)
    assert (config.method, config.seed, config.steps) == (name, 0, 5)
    assert config.optimizer.learning_rate == ALMOST_ZERO
    assert (config.evaluation.every_steps, config.data.test) == (0, "")
    same = config_of("online_rft", tmp_path, 5)
    assert config.rollout in (same.rollout, None)


@pytest.mark.slow
def test_a_run_is_measured(tmp_path: Path) -> None:
    source = tiny_experiment.write_questions(tmp_path)
    run("sft", {"sft": tiny_experiment.sft(source, steps=3)}, tmp_path)
    found = {}
    for name in ("online_rft", "rft"):
        config = replace(
            getattr(tiny_experiment, name)(source),
            init_from=f"workdir:{tmp_path / 'sft'}",
            steps=4,
            evaluation=EvaluationConfig(questions_per_batch=8),
        )
        config = replace(config, data=replace(config.data, test=""))
        one = found[name] = measure(config, tmp_path / name)
        assert one["step"] > one["sampling"] > 0
        assert one["sequences"] > 0
        parameters = 4 * 3  # float32, with two moments
        assert one["live_bytes"] > parameters * config.model.d_model**2
    record = {
        "rows": {
            name: {key: spread([value]) for key, value in one.items()}
            | {"step_ratio": spread([1.0]), "live_ratio": spread([1.0])}
            for name, one in found.items()
        }
    }
    lines = table(record).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| online_rft", "| rft"]
