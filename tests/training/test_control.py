"""What follows the measured entropy: the weight of the bonus and the temperature."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny

from rft_jax.config import Config, ObjectiveConfig
from rft_jax.training.control import Control


def config(temperature_target: float = 0.0, **objective: float) -> Config:
    base = tiny.online_rft(objective=ObjectiveConfig(**objective))  # type: ignore[arg-type]
    assert base.rollout is not None
    step = 0.25 if temperature_target else 0.0
    changes = {"temperature_target": temperature_target, "temperature_step": step}
    return replace(base, rollout=replace(base.rollout, **changes))


def history(run: Config, entropies: list[float]) -> list[tuple[float | None, float]]:
    """Temperature and bonus of rollouts that have these entropies."""
    control, found = Control(), []
    for entropy in entropies:
        control = control.next(run)._replace(entropy=entropy)
        found.append((control.temperature, control.bonus(run)))
    return found


def test_nothing_moves_without_a_target() -> None:
    run = config(entropy_coefficient=0.01)
    assert history(run, [0.1, 5.0]) == [(None, 0.01)] * 2
    assert Control().next(run) == Control()


def test_the_weight_rises_below_the_target_and_acts_there_only() -> None:
    run = config(entropy_coefficient=0.01, entropy_target=0.2, entropy_step=0.005)
    found = [bonus for _, bonus in history(run, [0.1, 0.1, 0.3, 0.2, 0.2, 0.3, 0.3, 0.3, 0.3, 0.1])]
    # c: .01 .015 .02 .015 .015 .015 .01 .005 0 0; 0 where the entropy is above the target.
    assert found == pytest.approx([0.01, 0.015, 0, 0.015, 0.015, 0, 0, 0, 0, 0], abs=1e-15)


def test_the_temperature_moves_towards_the_target_and_stays_positive() -> None:
    run = config(temperature_target=0.5)
    found = [at for at, _ in history(run, [0.4, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6])]
    assert found == [None, 1.25, 1.5, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25]
    assert history(run, [0.6] * 9)[-1][0] == 0.25


def test_it_settles_where_the_entropy_is_the_target() -> None:
    """A policy whose entropy grows with the temperature."""
    run, control = config(temperature_target=0.5), Control()
    scores = np.array([3.0, 1.0, 0.0])
    for _ in range(40):
        control = control.next(run)
        chances = np.exp(scores / (control.temperature or 1.0))
        chances /= chances.sum()
        control = control._replace(entropy=float(-(chances * np.log(chances)).sum()))
    assert control.entropy == pytest.approx(0.5, abs=0.2)
