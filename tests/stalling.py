"""Verifiers for jobs in which one process is unlike the others."""

from __future__ import annotations

import os
import time

from tiny_experiment import even_length

VARIABLE = "RFT_JAX_TEST_STALLS"
"""In the environment of the process whose verifier does not come back."""


def even_length_or_never(reference: str, output: str) -> bool:
    """tiny_experiment's verifier, that blocks for an hour where the variable is set; not on the
    solutions that it is tried on before the first step."""
    if os.environ.get(VARIABLE) and "####" not in output:
        time.sleep(3600)
    return even_length(reference, output)
