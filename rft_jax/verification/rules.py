"""Verifiers: the built-in rules, or the user's own (functions.py), made from a specification."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

from rft_jax.errors import VerifierError
from rft_jax.types import Judgement, Verdict
from rft_jax.verification import reasoning, symbolic
from rft_jax.verification.checks import CHECKS
from rft_jax.verification.compare import BAD_REFERENCE, NOT_A_NUMBER, NOT_UNDERSTOOD, compare
from rft_jax.verification.extract import (
    EXTRACTIONS,
    UNREAD,
    AnswerError,
    Extraction,
    reference_answer,
)
from rft_jax.verification.functions import (
    FAILED,
    Checker,
    combined,
    load_check,
    load_checker,
    of_output,
)

Verifier = Callable[..., Judgement | bool]
"""(reference, output), and of a checker of the user's own also the question and the other columns
of its row -> verdict; True is CORRECT, False INCORRECT."""

Comparison = Literal["exact", "math"]

RANDOM = "random"
BUILT_IN = (*EXTRACTIONS, RANDOM, reasoning.NAME)

TRUNCATED = "truncated"
TOO_LONG = "too long"

ERROR = "error: "
"""What the reason begins with where a verifier failed."""
NO_VERDICT = f"{ERROR}no verdict: "
"""The same where it returned what is none."""

_UNPARSED = UNREAD | {NOT_A_NUMBER, NOT_UNDERSTOOD, TRUNCATED}


class Limits(NamedTuple):
    """Limits of a pool and of each of its workers.

    workers: processes that judge at the same time.
    timeout_seconds: wall time that one item may take, counted from when its work begins.
    memory_mb: address space in MiB that a worker may add to what it has once its verifier is
    loaded; an item that asks for more is undecided ("out of memory").
    max_characters: length of the longest reference or output that is judged; an item above it is
    undecided ("too long") and reaches no worker.
    """

    workers: int
    timeout_seconds: float
    memory_mb: int = 2048
    max_characters: int = 200_000


class VerifierSpec(NamedTuple):
    """Which verifier; small and picklable, so that every worker makes the same one of it.

    name: a built-in rule, or a function of the user's as `module:function`.
    comparison: `exact`, or `math` for math-verify where the exact layers cannot decide.
    checks: what a correct output must also pass; of CHECKS, or the user's.
    tolerance: largest relative difference of two plain numbers; 0 (always in training) for none.
    random_rate: share of outputs that `random` accepts.
    threshold: least reward of a correct output.
    weights: of the verifier and of each check in the reward; none: each must accept.
    """

    name: str
    comparison: Comparison = "exact"
    checks: tuple[str, ...] = ()
    tolerance: Fraction = Fraction(0)
    random_rate: float = 0.5
    threshold: float = 1.0
    weights: tuple[float, ...] = ()

    @property
    def is_built_in(self) -> bool:
        """Whether all code of it is this package's; otherwise a module of the user's is loaded."""
        return not any(":" in name for name in (self.name, *self.checks))

    @property
    def is_rule(self) -> bool:
        """Whether one of the built-in rules finds the answer in the output."""
        return self.name in EXTRACTIONS

    def is_of_check(self, reason: str) -> bool:
        """Whether an output is incorrect for a check only: its answer is right."""
        return reason in {f"{FAILED}{name}" for name in self.checks}

    @property
    def takes_any_answer(self) -> bool:
        """Whether a reference may be other than text."""
        return self.name == reasoning.NAME or ":" in self.name

    @property
    def reads_rows(self) -> bool:
        """Whether any of it may read the question and the other columns of its row."""
        return self.name == reasoning.NAME or not self.is_built_in


def is_parsed(judgement: Judgement) -> bool:
    """Whether an answer was found in the output and judged, right or wrong."""
    return judgement.verdict is not Verdict.UNDECIDED and judgement.reason not in _UNPARSED


def load_verifier(spec: VerifierSpec) -> Verifier:
    """The verifier of a specification; imports the user's modules, if it names any.

    Raises VerifierError, in one line, when there is none.
    """
    verifier = _named(spec)
    if not spec.reads_rows and not spec.checks:
        return verifier
    if spec.name in EXTRACTIONS or spec.name == RANDOM:
        rule, verifier = verifier, lambda reference, output, *row: rule(reference, output)
    checks = {name: _check(name, spec.threshold) for name in spec.checks}
    return combined(verifier, checks, spec.weights, spec.threshold) if checks else verifier


def _named(spec: VerifierSpec) -> Verifier:
    if spec.name in EXTRACTIONS:
        if spec.comparison == "math":
            if not symbolic.available():
                raise VerifierError(
                    "verification.comparison is 'math', which needs math-verify: "
                    "pip install \"rft_jax[math]\", or choose 'exact'."
                )
            symbolic.warm_up()
        return _rule(EXTRACTIONS[spec.name], spec)
    if spec.name == RANDOM:
        return _random(spec.random_rate)
    if spec.name == reasoning.NAME:
        return reasoning.load(spec.threshold)
    expected = f"a built-in rule ({', '.join(BUILT_IN)}) or a function of yours as module:function"
    return load_checker("verification.verifier", spec.name, expected, spec.threshold)


def _rule(extract: Extraction, spec: VerifierSpec) -> Verifier:
    math, tolerance = spec.comparison == "math", spec.tolerance

    # The outputs of a question state the same few answers over and over.
    @lru_cache(maxsize=8192)
    def compared(answer: str, reference: str) -> Judgement:
        return compare(answer, reference, math=math, tolerance=tolerance)

    def agree(one: str, other: str) -> bool:
        return compared(one, other).verdict is Verdict.CORRECT

    def judge(reference: str, output: str) -> Judgement:
        """Compare the answer that the output states with the reference.

        A reference that states none leaves every output undecided: it says nothing about them.
        """
        expected = _expected(reference)
        if expected is None:
            return Judgement(Verdict.UNDECIDED, BAD_REFERENCE)
        answer, reason = extract(output, agree)
        if answer is None:
            return Judgement(Verdict.INCORRECT, reason)
        return compared(answer, expected)

    return judge


# The G outputs of a question come one after the other and share their reference.
@lru_cache(maxsize=1024)
def _expected(reference: str) -> str | None:
    try:
        return reference_answer(reference)
    except AnswerError:
        return None


def _random(rate: float) -> Verifier:
    """Random verdicts, the same for the same texts: a control that tells learning from artefact."""

    def judge(reference: str, output: str) -> bool:
        text = f"{reference}\0{output}".encode("utf-8", "surrogatepass")
        drawn = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
        return drawn < rate

    return judge


def _check(name: str, threshold: float) -> Checker:
    if name in CHECKS:
        return of_output(CHECKS[name])
    expected = f"one of {', '.join(CHECKS)} or a function of yours as module:function"
    return load_check(name, expected, threshold)
