"""Expected coefficients on mixed groups, as docs/methods.md states them under batch filling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from rft_jax.config.method import Coefficient
from rft_jax.training.expectation import expected_coefficients
from rft_jax.training.methods import METHODS, is_mixed
from rft_jax.types import Facts

G = 8


def _on_mixed_groups(coefficient: Coefficient, facts: Facts) -> np.ndarray:
    found = np.asarray(coefficient(facts))
    return np.where(is_mixed(facts).reshape(-1, *[1] * (found.ndim - 1)), found, 0.0)


def _factor(name: str, p: float, *, mixed: bool) -> float:
    """Of grad p, over all groups or over mixed ones only, divided by all outputs."""
    row = METHODS[name]
    if mixed:
        row = replace(row, coefficient=partial(_on_mixed_groups, row.coefficient))
    correct, wrong = expected_coefficients(row, row.denominator, p, G)
    return correct - wrong


def _positive(p: float) -> float:
    return 1 - p ** (G - 1)


def _negative(p: float) -> float:
    return _positive(1 - p)


CHANGED: dict[str, Callable[[float], float]] = {
    "online_rft": _positive,
    "raft++": _positive,
    "psr": _positive,
    "nsr": _negative,
    "w_reinforce": lambda p: 0.1 * _positive(p) + _negative(p),
    "ppo": lambda p: (1 - p) * _positive(p) + p * _negative(p),
    "maxrl_positive": lambda p: (1 - (1 - p) ** G) / p - p ** (G - 1),
}
SAME = ("grpo", "gspo", "cispo", "dapo", "dr_grpo", "reinforce", "rloo", "maxrl",
        "reinforce_rej", "reinforce_rej_released", "online_dpo")  # fmt: skip


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_what_mixed_groups_make_of_a_row(p: float) -> None:
    for name, formula in CHANGED.items():
        assert _factor(name, p, mixed=True) == pytest.approx(formula(p), rel=1e-6), name
    for name in SAME:
        assert _factor(name, p, mixed=True) == _factor(name, p, mixed=False), name
