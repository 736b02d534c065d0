"""Schedules and curricula as settings: what they mean, and what is refused in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import tiny

from rft_jax.config import (
    ConfigError,
    CurriculumConfig,
    EvaluationConfig,
    PoolConfig,
    ScheduleConfig,
    Study,
)
from rft_jax.config.experiment import override
from rft_jax.config.serialize import build, differences, plain

AB = {"sources": ("b=jsonl:b.jsonl",), "weights": ("0: 1, 0", "2: 0, 3")}


def schedule(**changes: Any) -> ScheduleConfig:
    return ScheduleConfig(**{**AB, **changes})


def test_shares_follow_the_points() -> None:
    abrupt = schedule()
    assert [abrupt.shares(step) for step in range(4)] == [(1, 0), (1, 0), (0, 1), (0, 1)]
    ramp = schedule(weights=("0: 1, 0", "4: 1, 1", "8: 0, 1"), change="linear")
    assert [ramp.shares(step)[1] for step in (0, 2, 4, 6, 8, 99)] == [0, 0.25, 0.5, 0.75, 1, 1]
    rotation = schedule(
        sources=("b=jsonl:b", "c=jsonl:c"),
        weights=("0: 1, 0, 0", "2: 0, 1, 0", "4: 0, 0, 1"),
        repeat_every=6,
    )
    asked = [rotation.shares(step).index(1) for step in range(14)]
    assert asked == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2, 0, 0]
    assert rotation.names == ("train", "b", "c")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ()}, "schedule.sources is empty: name a source beside data.train"),
        ({"sources": ("jsonl:b",)}, "schedule.sources holds 'jsonl:b': NAME=SOURCE is expected"),
        ({"sources": ("train=jsonl:b",)}, "which is data.train: choose another name."),
        ({"sources": ("pass_at=jsonl:b",)}, "and none of greedy, sampled, pass_at"),
        ({"sources": ("b=a", "b=c"), "weights": ("0: 1, 1, 1",)}, "names a source twice"),
        ({"weights": ("1: 1, 0",)}, "the first point must be at step 0."),
        ({"weights": ()}, "the first point must be at step 0."),
        (
            {"weights": ("0: 1, 1",), "repeat_every": 5},
            "has one point: give another one, or set it",
        ),
        ({"weights": ("0: 1, 1", "5: 1, 0", "5: 0, 1")}, "a point at step 5 after one at 5: give"),
        (
            {"weights": ("0: 1",)},
            "schedule.weights holds '0: 1': `STEP: W, W, ...` is expected, 2 ",
        ),
        ({"weights": ("0: 0, 0",)}, "weights of 0 or more (data.train's and one for each of"),
        ({"weights": ("0: 1, -1",)}, "`STEP: W, W, ...` is expected"),
        ({"weights": ("0: 1, nan",)}, "`STEP: W, W, ...` is expected"),
        ({"weights": ("0 1, 0",)}, "`STEP: W, W, ...` is expected"),
        ({"weights": ("0: 1, 0",)}, "schedule.weights gives b weight 0 at every point: leave it"),
        ({"weights": ("0: 1, 1",), "change": "linear"}, "is 'linear' and schedule.weights has one"),
        ({"repeat_every": 2}, "schedule.repeat_every is 2: it must be above the last point's step"),
        ({"repeat_every": -1}, "schedule.repeat_every is -1: it must be 0 or more."),
    ],
)
def test_a_schedule_that_means_nothing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        schedule(**changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "curriculum sets no question aside: lower curriculum.retire_above"),
        ({"retire_above": 1.5}, "curriculum.retire_above is 1.5: it must lie in [0, 1]."),
        ({"retire_above": 0.2, "drop_below": 0.3}, "curriculum.drop_below is 0.3: it must be at m"),
        ({"retire_above": 0.5, "review_share": 1.0}, "curriculum.review_share is 1: it must be be"),
    ],
)
def test_a_curriculum_that_means_nothing_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        CurriculumConfig(**changes)
    assert message in str(error.value)


def test_the_band_includes_its_bounds() -> None:
    band = CurriculumConfig(retire_above=0.75, drop_below=0.25)
    assert [band.sets_aside(rate / 8) for rate in (0, 1, 2, 6, 7, 8)] == [True] * 2 + [
        False, False, True, True,
    ]  # fmt: skip


def test_where_they_would_do_nothing_they_are_refused() -> None:
    named = {"schedule": schedule()}
    aside = {"curriculum": CurriculumConfig(retire_above=0.5)}
    logged = tiny.rft(pool=PoolConfig(from_rollouts=("a",)), rollout=None)
    for base, changes, message in (
        (tiny.sft(), named, "schedule asks the questions of rollouts, and method sft makes none"),
        (logged, named, "schedule asks the questions of rollouts, and method rft makes none"),
        (tiny.rft(), aside, "curriculum goes by pass rates of the policy, and method rft does not"),
        (tiny.online_rft(steps=2), named, "schedule has a point, or begins again, after the last"),
        (
            tiny.online_rft(),
            {"schedule": schedule(repeat_every=3)},
            "schedule has a point, or begins again, after the last of 3 steps",
        ),
        (
            tiny.sft(),
            {"data": replace(tiny.sft().data, more_validation=("b=jsonl:b",))},
            "data.more_validation does nothing, as evaluation.every_steps is 0",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            replace(base, **changes)
        assert message in str(error.value)
    with pytest.raises(ConfigError, match=r"^data.more_test is evaluated with data.test, which is"):
        replace(tiny.sft().data, more_test=("b=jsonl:b",))
    tiny.rft(**named)
    tiny.online_rft(**named, **aside)


def test_they_are_set_by_options_and_saved() -> None:
    changed = override(
        tiny.experiment(),
        {
            "online_rft.schedule.sources": ["b=jsonl:b.jsonl"],
            "online_rft.schedule.weights": ["0: 1, 0", "2: 0, 3"],
            "online_rft.curriculum.retire_above": 0.9,
        },
    )["online_rft"]
    assert changed.schedule == schedule()
    assert changed.curriculum == CurriculumConfig(retire_above=0.9)
    again, defaults = build(json.loads(json.dumps(plain(changed))))
    assert (differences(again, changed), defaults) == ({}, ())


def test_a_study_evaluates_all_arms_on_the_same_sets() -> None:
    def arm(**more: Any) -> Any:
        base = tiny.online_rft()
        return replace(
            base,
            data=replace(base.data, test="jsonl:t", **more),
            evaluation=EvaluationConfig(every_steps=1),
        )

    sets = {"more_validation": ("b=jsonl:b",), "more_test": ("b=jsonl:c",)}
    starts = {"sft": tiny.sft()}
    study = Study(
        arms={"one": arm(**sets), "other": arm(**sets)}, starts=starts,
        grid={"optimizer.learning_rate": (1e-3, 1e-4)},
    )  # fmt: skip
    runs = study.runs()
    assert runs["one_seed0_try0"].data.more_test == ()  # what chooses does not see test questions
    assert runs["one_seed1_try0"].data.more_test == sets["more_test"]
    for changes in ({"more_validation": ("b=jsonl:d",)}, {"more_test": ()}):
        with pytest.raises(ConfigError, match=r"^other: data.more_.*compared on the same questi"):
            Study(arms={"one": arm(**sets), "other": arm(**(sets | changes))}, starts=starts)
