"""Each alarm on a series that it is for, and on noise, where none is raised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from rft_jax.config import AlarmsConfig
from rft_jax.config.alarms import SIGNS
from rft_jax.observe.alarms import ALARMS, Alarm, Lines, measured, raised

STEPS, EVERY = 80, 10
CONFIG = AlarmsConfig(patience=5)

Change = Callable[[float], float]
"""A value by the share of the run that is behind."""


def series(seed: int = 0, **changes: Change) -> list[dict[str, Any]]:
    """The lines of a run in which nothing happens but noise, and what changes: by the part of a
    metric's name behind the slash."""
    rng = np.random.default_rng(seed)
    steady = {
        "train": {
            "pass_rate": (0.4, 0.07), "policy/entropy": (0.3, 0.02),
            "questions/reward_deviation": (0.25, 0.03), "funnel/sampled": (256, 0),
            "funnel/finished": (250, 3), "optimizer/gradient_norm": (0.2, 0.04),
            "policy/log_prob_mismatch_mean": (0.01, 0.002),
            "policy/log_prob_incorrect": (-0.4, 0.03),
        },
        "validation": {
            "greedy/accuracy": (0.5, 0.02), "greedy/standard_error": (0.03, 0),
            "calibration/error": (0.1, 0.01), "calibration/confidence": (0.6, 0.01),
            "questions/lost": (0.1, 0.03), "questions/solved_change": (0.0, 0.02),
            "questions/solved_change_error": (0.02, 0), "questions/distinct_change": (0.0, 0.02),
            "questions/distinct_change_error": (0.02, 0),
        },
    }  # fmt: skip
    lines: list[dict[str, Any]] = []
    for step in range(STEPS + 1):
        for kind, metrics in steady.items():
            if step == 0 if kind == "train" else step % EVERY:
                continue
            line = {"step": step, "kind": kind}
            for name, (mean, noise) in metrics.items():
                change = changes.get(name.partition("/")[2] or name)
                line[name] = (change(step / STEPS) if change else mean) + noise * rng.normal()
            lines.append(line)
    return lines


def falling(start: float, end: float) -> Change:
    """From the start's value to the end's, from a quarter of the run to three quarters."""
    return lambda share: start + (end - start) * float(np.clip(2 * share - 0.5, 0, 1))


def spiking(share: float) -> float:
    return 3.0 if share in (0.5, 0.525) else 0.2


CASES: dict[str, dict[str, Change]] = {
    "collapse": {"reward_deviation": falling(0.25, 0.05), "entropy": falling(0.3, 0.1)},
    "diversity": {"distinct_change": falling(0, -0.2)},
    "forgetting": {"lost": falling(0.1, 0.5), "solved_change": falling(0, -0.2)},
    "pass_rate": {"pass_rate": falling(0.4, 0.15)},
    "entropy": {"entropy": falling(0.3, 0.9), "pass_rate": falling(0.4, 0.2)},
    "gradient_norm": {"gradient_norm": spiking},
    "truncation": {"finished": falling(250, 200)},
    "overconfidence": {"error": falling(0.1, 0.3), "confidence": falling(0.6, 0.9)},
    "overconfidence of wrong outputs": {"log_prob_incorrect": falling(-0.4, -0.1)},
    "mismatch": {"log_prob_mismatch_mean": falling(0.01, 0.1)},
    "no_improvement": {"accuracy": falling(0.5, 0.3)},
}


def names(found: list[Alarm]) -> set[str]:
    return {alarm.name for alarm in found}


def test_every_alarm_has_a_threshold_and_a_case() -> None:
    assert {*SIGNS, "no_improvement"} == set(ALARMS) == {case.partition(" ")[0] for case in CASES}
    assert {item.name for item in fields(AlarmsConfig)} == {
        "action", "window", "evaluations", "patience", *SIGNS
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_alarm_is_raised_by_what_it_is_for(case: str) -> None:
    found, name = raised(Lines(series(**CASES[case])), CONFIG), case.partition(" ")[0]
    (alarm, *_) = [alarm for alarm in found if alarm.name == name]
    assert 20 < alarm.since <= STEPS
    if name != "gradient_norm":  # which is over, the others last
        assert alarm.until is None
    off = {"patience" if name == "no_improvement" else name: 0}
    assert name not in names(raised(Lines(series(**CASES[case])), replace(CONFIG, **off)))


@pytest.mark.parametrize("seed", range(20))
def test_noise_raises_no_alarm(seed: int) -> None:
    # Of noise alone no evaluation need be better than the first.
    assert raised(Lines(series(seed)), AlarmsConfig()) == []


@pytest.mark.parametrize(
    "healthy",
    [
        {"entropy": falling(0.3, 0.1)},
        {"entropy": falling(0.3, 0.9)},
        {"reward_deviation": falling(0.25, 0.05)},
        # What is learnt leaves less variance, and entropy falls with it.
        {
            "reward_deviation": falling(0.25, 0.15), "entropy": falling(0.3, 0.1),
            "pass_rate": falling(0.4, 0.9),
        },
        {"log_prob_incorrect": falling(-0.4, -0.1), "pass_rate": falling(0.4, 0.6)},
        {
            "reward_deviation": falling(0.25, 0.0), "entropy": falling(0.3, 0.1),
            "pass_rate": lambda share: 0.4 if share < 0.3 else 0.97,
        },
        # More is gained than lost.
        {"lost": falling(0.1, 0.5), "solved_change": falling(0, 0.2)},
        # Sure, and right.
        {
            "error": falling(0.1, 0.2), "confidence": falling(0.6, 0.9),
            "accuracy": falling(0.5, 0.8),
        },
    ],
)  # fmt: skip
def test_one_sign_of_two_raises_no_alarm(healthy: dict[str, Change]) -> None:
    assert raised(Lines(series(**healthy)), AlarmsConfig()) == []


def test_an_alarm_ends_and_is_raised_again() -> None:
    def twice(share: float) -> float:
        return 150.0 if 0.25 < share < 0.4 or 0.7 < share < 0.8 else 250.0

    found = raised(Lines(series(finished=twice)), AlarmsConfig())
    first, second = found
    assert names(found) == {"truncation"}
    assert first.until is not None
    assert first.since < first.until < second.since
    assert "share of outputs cut at the limit is" in str(first)


def test_alarms_follow_from_the_lines_so_far() -> None:
    lines = series(pass_rate=falling(0.4, 0.15))
    whole = raised(Lines(lines), AlarmsConfig())
    for count in range(len(lines)):
        step = lines[count]["step"]
        known = [(alarm.name, alarm.since) for alarm in whole if alarm.since < step]
        part = raised(Lines(lines[:count]), AlarmsConfig())
        assert known == [(alarm.name, alarm.since) for alarm in part if alarm.since < step]


def test_metrics_that_are_missing_raise_nothing() -> None:
    lines = [{"step": line["step"], "kind": line["kind"]} for line in series()]
    assert raised(Lines(lines), CONFIG) == []
    assert raised(Lines([]), CONFIG) == []
    undefined = [line | {"pass_rate": None, "greedy/accuracy": None} for line in series()]
    assert raised(Lines(undefined), CONFIG) == []


def test_a_measure_is_one_metric_or_the_mean_of_several() -> None:
    metrics = {"greedy/accuracy": 0.4, "pass_at/16": 0.8, "pass_at/4": None}
    assert measured(metrics, "greedy/accuracy") == 0.4
    assert measured(metrics, "greedy/accuracy+pass_at/16") == pytest.approx(0.6)
    assert np.isnan(measured(metrics, "pass_at/4"))

    lines = series(accuracy=falling(0.5, 0.9))
    for line in lines:
        line["pass_at/16"] = 1 - line["step"] / 100
    mixed = Lines(lines, "greedy/accuracy+pass_at/16")
    config = AlarmsConfig(patience=3)
    assert "no_improvement" not in names(raised(Lines(lines), config))
    assert "no_improvement" in names(raised(Lines(lines, "pass_at/16"), config))
    (alarm,) = raised(mixed, config)
    assert alarm.what == "greedy/accuracy + pass_at/16"
