"""Runs that train adapters: what they save, how they go on, and what may start from them."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_experiment

from rft_jax.checkpoint import manager as checkpoint
from rft_jax.checkpoint.start import Start, load_start
from rft_jax.config import Config, MeshConfig, ModelConfig, ObjectiveConfig
from rft_jax.config.experiment import check
from rft_jax.distributed.mesh import make_mesh
from rft_jax.errors import ConfigError
from rft_jax.models import adapters
from rft_jax.observe import log as metrics
from rft_jax.runs import run as loop
from rft_jax.runs.run import RunResult
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.state import make_layout
from rft_jax.types import Params

pytestmark = pytest.mark.slow

RANK = 2


def with_lora(config: Config, **changes: Any) -> Config:
    model = replace(
        config.model, lora_rank=RANK, lora_alpha=4.0, lora_targets=("query", "output", "up")
    )
    return replace(config, model=model, **changes)


def experiment_of(source: str) -> dict[str, Config]:
    """SFT of everything; SFT of adapters from it; Online RFT that goes on with them; Online RFT of
    everything from them merged."""
    sft = tiny_experiment.sft(source)
    quiet = {
        "data": replace(sft.data, test=""),
        "evaluation": replace(sft.evaluation, every_steps=0),
    }
    sft, online = replace(sft, **quiet), tiny_experiment.online_rft(source, **quiet)
    return {
        "sft": sft,
        "lora_sft": with_lora(sft, init_from="run:sft"),
        "lora_online": with_lora(
            online,
            init_from="run:lora_sft",
            steps=4,
            objective=ObjectiveConfig(kl_coefficient=0.01),
            mesh=MeshConfig(data=2, fsdp=2, tensor=2),
        ),
        "online": replace(online, init_from="run:lora_sft", steps=2),
    }


@dataclass(frozen=True)
class Study:
    """A carried-out experiment."""

    workdir: Path
    experiment: dict[str, Config]

    def start(self, **changes: Any) -> Start:
        """What a run with these settings would start from."""
        config = replace(self.experiment["lora_sft"], **changes)
        optimizer = make_optimizer(config.optimizer, config.steps)
        layout = make_layout(config.model, make_mesh(config.mesh), optimizer, 274)
        return load_start(config, self.workdir, layout)

    def lines(self, name: str) -> list[dict[str, Any]]:
        found = metrics.read(self.workdir / name / "metrics.jsonl")
        return [line for line in found if line["kind"] == "train"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("lora")
    experiment = experiment_of(tiny_experiment.write_questions(folder))
    check(experiment)
    for name, config in experiment.items():
        assert loop.run(name, experiment, folder / "work") == RunResult(config.steps, True)
    return Study(folder / "work", experiment)


def saved(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters in the newest checkpoint."""
    steps = [int(path.name) for path in (folder / "checkpoints").iterdir()]
    with contextlib.closing(ocp.StandardCheckpointHandler()) as handler:
        tree = handler.metadata(folder / "checkpoints" / str(max(steps)) / "params").tree
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(part.key for part in path): leaf.shape for path, leaf in leaves}


def same(one: Params, other: Params) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_only_adapters_are_saved(study: Study) -> None:
    for name in ("lora_sft", "lora_online"):
        assert saved(study.workdir / name) == {
            "blocks.attention.query_a": (2, RANK, 16),
            "blocks.attention.query_b": (2, 2, 8, RANK),
            "blocks.attention.output_a": (2, RANK, 2, 8),
            "blocks.attention.output_b": (2, 16, RANK),
            "blocks.mlp.up_a": (2, RANK, 16),
            "blocks.mlp.up_b": (2, 24, RANK),
        }
    assert "blocks.mlp.up_a" not in saved(study.workdir / "online")


def test_they_learn_and_the_sampler_samples_from_them(study: Study) -> None:
    values = [line["objective/value"] for line in study.lines("lora_sft")]
    assert values[-1] > values[0]
    worst = [line["policy/log_prob_mismatch_max"] for line in study.lines("lora_online")]
    assert 0 < max(worst) < 1e-4


def test_adapters_are_gone_on_with_on_the_same_base(study: Study) -> None:
    fresh, further = study.start(), study.start(init_from="run:lora_sft")
    sft = study.start(init_from="run:sft", model=study.experiment["sft"].model)
    assert sft.frozen == {}
    assert same(fresh.frozen, sft.trained)
    assert same(further.frozen, sft.trained)
    assert not same(fresh.trained, further.trained)
    again = study.start(init_from="run:lora_online")
    assert same(again.frozen, sft.trained)
    assert not same(again.trained, further.trained)


def test_a_run_that_trains_everything_starts_from_the_merged_policy(study: Study) -> None:
    config = study.experiment["lora_sft"].model
    further = study.start(init_from="run:lora_sft")
    merged = study.start(init_from="run:lora_sft", model=config.without_adapters())
    expected = adapters.merge(adapters.join(*further), config)
    assert merged.frozen == {}
    for one, other in zip(jax.tree.leaves(merged.trained), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_base_is_kept_in_the_compute_type(study: Study) -> None:
    model = replace(study.experiment["lora_sft"].model, compute_dtype="bfloat16")
    frozen, trained = study.start(model=model)
    types = {path[-1].key: leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(frozen)}
    assert types.pop("scale") == np.float32
    assert {str(dtype) for dtype in types.values()} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(trained)} == {"float32"}


def test_a_killed_run_goes_on_at_the_same_bits(study: Study, tmp_path: Path) -> None:
    """From its checkpoint before the last."""
    shutil.copytree(study.workdir, tmp_path / "work")
    folder = tmp_path / "work" / "lora_online"
    (folder / "finished.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "4")
    found = loop.run("lora_online", study.experiment, tmp_path / "work")
    assert found == RunResult(2, True)
    ends = []
    for workdir in (study.workdir, tmp_path / "work"):
        config = study.experiment["lora_online"]
        optimizer = make_optimizer(config.optimizer, config.steps)
        layout = make_layout(config.model, make_mesh(config.mesh), optimizer, 274)
        path = workdir / "lora_online" / "checkpoints"
        with checkpoint.open_manager(path, config.checkpoint) as manager:
            restored = checkpoint.restore(manager, layout.state)
        assert restored is not None
        ends.append(restored[1].state)
    assert same(*ends)


def test_other_adapters_than_those_of_the_start_are_refused(study: Study) -> None:
    config = study.experiment["lora_online"]
    other = replace(config, model=replace(config.model, lora_rank=3))
    with pytest.raises(ConfigError, match=r"model.lora_rank is 3 but 2 in run lora_sft"):
        check(study.experiment | {"lora_online": other})
    model: ModelConfig = replace(config.model, lora_alpha=5.0)
    with pytest.raises(ConfigError, match=r"model.lora_alpha is 5.0 .* was trained with 4.0"):
        study.start(init_from=f"workdir:{study.workdir}/lora_sft", model=model)
