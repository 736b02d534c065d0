"""The scores of reasoning-gym (an optional extra) for the tasks that it generates. No jax.

The answer is what stands in the last `<answer></answer>`, as in reasoning-gym's own prompts. Some
of its tasks have an answer evaluated as Python: there its code is run, see sandbox.forbid_code.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from rft_jax.errors import VerifierError
from rft_jax.types import Judgement, Verdict
from rft_jax.verification.extract import NO_ANSWER
from rft_jax.verification.functions import as_judgement

NAME = "reasoning_gym"
FORM = "<answer>{answer}</answer>"


def load(threshold: float) -> Callable[..., Judgement]:
    """The checker; VerifierError where reasoning-gym is not installed."""
    try:
        from reasoning_gym import create_dataset
        from reasoning_gym.utils import extract_answer
    except ImportError as error:
        raise VerifierError(
            f"verification.verifier is {NAME!r}, which needs reasoning-gym ({error}): "
            'pip install "rft_jax[reasoning-gym]".'
        ) from error

    @functools.lru_cache(maxsize=64)
    def task(name: str, settings: str) -> Any:
        return create_dataset(name, **json.loads(settings))

    def judge(reference: Any, output: str, question: str, columns: Mapping[str, Any]) -> Judgement:
        if "task" not in columns:
            raise ValueError(f"the row is none of a source {NAME}:NAME?size=..&seed=..")
        answer = extract_answer(output)
        if answer is None:
            return Judgement(Verdict.INCORRECT, NO_ANSWER, reward=0.0)
        entry = {"question": question, "answer": reference, "metadata": columns["metadata"]}
        score = task(columns["task"], columns["settings"]).score_answer(answer, entry)
        return as_judgement((float(score), answer), threshold)

    return judge
