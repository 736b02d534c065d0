"""Control: Online RFT on random verdicts, beside Online RFT itself, on the quickstart's problems.

Both runs start from the same SFT model and differ only in the verifier. What the control gains over
its start, if anything, is not learnt from right answers: it is the effect of training on the
policy's own samples. Both are evaluated by the true rule.

Reproduces: no published figure; the idea of random rewards is from arXiv 2506.10947.
Expect: on 1,024 test questions greedy accuracy of 64.4 ± 1.5 % after SFT, 69.3 ± 1.4 % after Online
    RFT and 0.0 ± 0.0 % after the control: with half of all outputs accepted, right or wrong, the
    policy is lost within 93 of 160 updates. The gain of Online RFT needs I(o).
Time: 3.2 minutes on 2 CPU cores (AMD EPYC).
Command: rft-jax run experiments/arithmetic_control.py
"""

from __future__ import annotations

from dataclasses import replace

import arithmetic

from rft_jax.config import Config


def experiment() -> dict[str, Config]:
    """The SFT start, Online RFT on true verdicts, and Online RFT on random verdicts."""
    runs = arithmetic.experiment()
    online = runs["online_rft"]
    control = replace(
        online,
        verification=replace(online.verification, verifier="random"),
        evaluation=replace(online.evaluation, verifier=online.verification.verifier),
    )
    return {"sft": runs["sft"], "online_rft": online, "online_rft_random": control}
