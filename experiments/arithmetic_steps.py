"""A verifier of arithmetic problems that says rewards of steps, for `grpo_process`.

verification=VerificationConfig(verifier="arithmetic_steps:by_line")
"""

from __future__ import annotations

from rft_jax.types import Judgement, Verdict
from rft_jax.verification.checks import equations_hold


def by_line(question: str, reference: str, output: str) -> Judgement:
    """1 for a line whose equation is true and for the right answer, 0 for any other line."""
    steps, end, right = [], 0, False
    for line in output.splitlines(keepends=True):
        end += len(line)
        text = line.strip()
        right = text == f"#### {reference}"
        steps.append((end, float(right or ("=" in text and equations_hold(f"<<{text}>>")))))
    return Judgement(Verdict.CORRECT if right else Verdict.INCORRECT, "by line", steps=steps)
