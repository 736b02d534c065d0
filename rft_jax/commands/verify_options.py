"""The verifier that options name, those of `rft-jax verify` and of `rft-jax evaluate`."""

from __future__ import annotations

import os
from typing import Any

from rft_jax.commands.options import Judging
from rft_jax.verification import symbolic
from rft_jax.verification.rules import Limits, VerifierSpec


def judge(judging: Judging) -> tuple[VerifierSpec, Limits]:
    """The verifier and its limits where no run has any: what is not given has its own default."""
    comparison: Any = "math" if symbolic.available() else "exact"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return override(VerifierSpec("auto", comparison), Limits(cores or 1, 10.0), judging)


def override(spec: VerifierSpec, limits: Limits, judging: Judging) -> tuple[VerifierSpec, Limits]:
    """A verifier and its limits with what is given in place of their own."""
    of_spec: dict[str, Any] = {
        "name": judging.rule,
        "comparison": judging.comparison,
        "checks": judging.checks,
        "tolerance": judging.tolerance,
    }
    of_limits: dict[str, Any] = {
        "workers": judging.workers,
        "timeout_seconds": None if judging.timeout is None else float(judging.timeout),
    }
    return spec._replace(**_given(of_spec)), limits._replace(**_given(of_limits))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
