"""The verifier's fault injection and fuzzing, in small."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.contest import ROOT


def run(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # verifiers of the fault injection print there
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_poison_harms_only_itself() -> None:
    shown = run("verifier_faults", "--items", "3000", "--workers", "4")
    assert "all checks passed" in shown
    assert shown.count("\n| ") == 9


@pytest.mark.slow
@pytest.mark.parametrize("comparison", ["exact", "math"])
def test_hostile_texts_are_judged_calmly(comparison: str) -> None:
    shown = run("verifier_fuzz", "--inputs", "20000", "--workers", "2", "--comparison", comparison)
    assert "failures: 0" in shown


def test_rates_are_measured() -> None:
    shown = run("verifier_rate", "--items", "2000", "--rounds", "1", "--workers", "2")
    assert "1 % pathological" in shown


@pytest.mark.slow
def test_the_hunt_finds_nothing() -> None:
    shown = run("verifier_hunt", "--mutants", "4000", "--pairs", "100")
    assert ", 0 judged otherwise" in shown.splitlines()[-1]
    assert "date: another value" in shown
