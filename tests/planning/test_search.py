"""Meshes ranked by the count, and what to change where a run does not fit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from planned import config

from rft_jax.config import MeshConfig
from rft_jax.config import experiment as experiments
from rft_jax.config.serialize import replace_fields
from rft_jax.planning import roofline, search, targets
from rft_jax.planning.memory import Shards
from rft_jax.planning.roofline import Supposed
from rft_jax.planning.targets import Target

SUPPOSED = Supposed(4, 50, 0.5, 10, 10)
EIGHT = targets.counted("8xh100")


def small(share: float) -> Target:
    """Eight devices with that share of the memory that the run needs."""
    return replace(EIGHT, memory=share * search.peak(config(), EIGHT))


def test_all_factorisations_are_meshes() -> None:
    assert len(list(search.meshes(8))) == 10
    assert all(math.prod(mesh) == 8 for mesh in search.meshes(8))


@pytest.mark.slow
def test_only_meshes_that_split_the_model_are_ranked() -> None:
    """Two kv heads, a width of 24, 64 rows of the vocabulary."""
    found = search.search(config(), EIGHT, SUPPOSED)
    assert {one.mesh for one in found} == {
        (8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1), (4, 1, 2), (2, 2, 2), (1, 4, 2),
    }  # fmt: skip
    steps = [one.step for one in found]
    assert steps == sorted(steps)


@pytest.mark.slow
def test_a_microbatch_has_rows_for_all_of_the_mesh() -> None:
    """And more, where weights are gathered less often then; as many logits at once on a device."""
    narrow = replace_fields(config(), {"update.rows_per_microbatch": 2})
    for one in search.search(narrow, EIGHT, SUPPOSED):
        rows, least = one.config.update.rows_per_microbatch, max(2, one.mesh.batch)
        assert rows in [times * least for times in search.ROWS]
        logits = narrow.update.logits_at_once * least // 2
        assert one.config.update.logits_at_once in [times * logits for times in search.LOGITS]
        assert one.changes.get("update.rows_per_microbatch", 2) == rows


@pytest.mark.slow
def test_what_fits_comes_before_what_is_fast() -> None:
    target = small(0.5)
    found = search.search(config(), target, SUPPOSED)
    assert [one.fits for one in found] == sorted((one.fits for one in found), reverse=True)
    for one in found:
        assert one.fits == (one.peak <= search.MARGIN * target.memory)
        assert replace_fields(config(), one.changes) == one.config


def test_single_changes_are_listed_with_what_they_save() -> None:
    found = search.advise(config(), small(0.5))
    assert [one.peak for one in found] == sorted(one.peak for one in found)
    before = search.peak(config(), EIGHT)
    for one in found:
        assert one.saves == pytest.approx(before - one.peak)
        assert search.peak(replace_fields(config(), one.changes), EIGHT) == one.peak
    assert {"rollout.slots": 16} not in [dict(one.changes) for one in found]  # 8 a device at least


def test_relief_is_no_more_than_is_needed() -> None:
    assert search.relieve(config(), EIGHT) == (config(), {})
    alone = replace(targets.counted("t4"), memory=0.0)
    whole = search.peak(config(), alone)
    changed, changes = search.relieve(config(), replace(alone, memory=0.9 * whole))
    assert changes
    assert search.peak(changed, alone) <= 0.9 * whole
    assert changed.mesh == MeshConfig()
    # Nothing helps enough: the run stays as it is.
    assert search.relieve(config(), replace(alone, memory=1.0)) == (config(), {})


def test_a_mesh_that_splits_unevenly_is_known() -> None:
    assert search.divides(config(), Shards(1, 8, 1))
    assert not search.divides(config(), Shards(1, 16, 1))
    assert not search.divides(config(), Shards(1, 1, 4))


def test_names_of_chips() -> None:
    assert targets.counted("t4").count == 1
    assert targets.counted("8xa100-80gb").what == "8 x NVIDIA A100 80GB"
    assert targets.at_hand().count == 8
    assert targets.at_hand().chip is None


@pytest.mark.slow
def test_nothing_is_computed_again_where_there_is_memory_to_keep_it() -> None:
    path = Path(__file__).parents[2] / "experiments" / "gsm8k_qwen2.5_1.5b.py"
    full = replace_fields(experiments.load(path)["online_rft"], {"model.remat": "full"})
    alone, supposed = targets.counted("1xh100"), Supposed(100, 200, 0.5, 10, 10)
    (found,) = search.search(full, alone, supposed)
    assert found.changes["model.remat"] == "none"
    again = replace_fields(found.config, {"model.remat": "full"})
    costs = roofline.costs_of(again, Shards(1, 1, 1), supposed)
    speeds = alone.speeds(Shards(1, 1, 1), "bfloat16")
    assert found.step < sum(roofline.seconds_of(costs, speeds).values())
    (found,) = search.search(full, replace(alone, memory=1.0), supposed)
    assert found.config.model.remat == "full"
