"""Settings with refill, and outputs told apart by their addresses."""

from __future__ import annotations

from dataclasses import replace

from enumeration import config

from rft_jax.config import Config, Denominator, RefillConfig, RolloutConfig, SelectionConfig
from rft_jax.types import Sample, Verdict

YES, NO, OPEN = Verdict.CORRECT, Verdict.INCORRECT, Verdict.UNDECIDED


def settings(
    *,
    accepted: int,
    rounds: int = 1,
    max_staleness: int = 0,
    questions: int = 2,
    samples: int = 2,
    selection: SelectionConfig | None = None,
    denominator: Denominator = "sampled",
) -> Config:
    """Online RFT with refill, `rounds` rounds of questions x samples at most."""
    return replace(
        config("online_rft", denominator, selection=selection),
        rollout=RolloutConfig(questions_per_step=questions, samples_per_question=samples),
        refill=RefillConfig(
            accepted=accepted,
            max_sampled=rounds * questions * samples,
            max_staleness=max_staleness,
        ),
    )


def output(
    question: int, index: int, verdict: Verdict = YES, *, step: int = 0, text: str = "2"
) -> Sample:
    """One output, told apart by its address."""
    return Sample(question, index, step, text, (2, 0), (-0.5, -0.25), True, verdict, "")


def group(question: int, *verdicts: Verdict, step: int = 0) -> list[Sample]:
    return [output(question, n, verdict, step=step) for n, verdict in enumerate(verdicts)]
