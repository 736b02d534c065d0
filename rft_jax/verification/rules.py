"""Verifiers: functions (reference, output) -> Judgement or bool, built in or the user's own."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from rft_jax.errors import VerifierError
from rft_jax.types import Judgement, Verdict
from rft_jax.verification import symbolic
from rft_jax.verification.checks import CHECKS, Check
from rft_jax.verification.compare import BAD_REFERENCE, NOT_A_NUMBER, NOT_UNDERSTOOD, compare
from rft_jax.verification.extract import (
    EXTRACTIONS,
    UNREAD,
    AnswerError,
    Extraction,
    reference_answer,
)

Verifier = Callable[[str, str], Judgement | bool]
"""(reference, output) -> verdict; True is CORRECT, False INCORRECT."""

Comparison = Literal["exact", "math"]

RANDOM = "random"
BUILT_IN = (*EXTRACTIONS, RANDOM)

TRUNCATED = "truncated"
TOO_LONG = "too long"

ERROR = "error: "
"""What the reason begins with where a verifier failed."""
NO_VERDICT = f"{ERROR}no verdict: "
"""The same where it returned what is none."""
_ACCEPTED = Judgement(Verdict.CORRECT, "accepted")
_REJECTED = Judgement(Verdict.INCORRECT, "rejected")

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
    checks: what a correct output must also pass; of CHECKS, or (output) -> bool of the user's.
    tolerance: largest relative difference of two plain numbers; 0 (always in training) for none.
    random_rate: share of outputs that `random` accepts.
    """

    name: str
    comparison: Comparison = "exact"
    checks: tuple[str, ...] = ()
    tolerance: Fraction = Fraction(0)
    random_rate: float = 0.5

    @property
    def is_built_in(self) -> bool:
        """Whether all code of it is this package's; otherwise a module of the user's is loaded."""
        return not any(":" in name for name in (self.name, *self.checks))


class WrongResultError(TypeError):
    """A verifier or a check returned what is no verdict."""


def as_judgement(result: object) -> Judgement:
    """What a verifier returned, as a judgement; WrongResultError where it is no verdict."""
    if isinstance(result, Judgement):
        if type(result.verdict) is Verdict and type(result.reason) is str:
            return result
        if result.verdict not in tuple(Verdict):
            known = ", ".join(Verdict)
            raise WrongResultError(
                f"the verifier's verdict is {result.verdict!r}, not one of {known}"
            )
        return Judgement(Verdict(result.verdict), str(result.reason))
    return _ACCEPTED if _as_bool(result, "the verifier", "a bool or a Judgement") else _REJECTED


def _as_bool(result: object, what: str, expected: str) -> bool:
    if isinstance(result, bool):
        return result
    kind = type(result)
    if kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_"):  # workers import no numpy
        return bool(result)
    shown = " ".join(repr(result)[:60].split())
    raise WrongResultError(f"{what} returned {shown} ({kind.__name__}), not {expected}")


def is_parsed(judgement: Judgement) -> bool:
    """Whether an answer was found in the output and judged, right or wrong."""
    return judgement.verdict is not Verdict.UNDECIDED and judgement.reason not in _UNPARSED


def load_verifier(spec: VerifierSpec) -> Verifier:
    """The verifier of a specification; imports the user's modules, if it names any.

    Raises VerifierError, in one line, when there is none.
    """
    verifier = _named(spec)
    checks = {name: _check(name) for name in spec.checks}
    return _checked(verifier, checks) if checks else verifier


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
    expected = f"a built-in rule ({', '.join(BUILT_IN)}) or a function of yours as module:function"
    verifier: Verifier = _users_function(
        "verification.verifier", spec.name, expected, "(reference, output) -> bool or Judgement"
    )
    return verifier


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


def _check(name: str) -> Check:
    if name in CHECKS:
        return CHECKS[name]
    expected = f"one of {', '.join(CHECKS)} or a function of yours as module:function"
    check: Check = _users_function("verification.checks", name, expected, "(output) -> bool")
    return check


def _checked(verifier: Verifier, checks: dict[str, Check]) -> Verifier:
    def judge(reference: str, output: str) -> Judgement:
        judgement = as_judgement(verifier(reference, output))
        if judgement.verdict is Verdict.CORRECT:
            for name, check in checks.items():
                if not _as_bool(check(output), f"the check {name}", "a bool"):
                    return Judgement(Verdict.INCORRECT, f"failed {name}")
        return judgement

    return judge


def _users_function(field: str, name: str, expected: str, signature: str) -> Any:
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise VerifierError(f"{field} is {name!r}: it must be {expected}.")
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:  # a module may also call sys.exit
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise VerifierError(
            f"{field} is {name!r}: module {module_name} cannot be imported in a "
            f"worker ({problem}); it must lie in the current folder or on the Python path."
        ) from error
    function = getattr(module, function_name, None)
    if problem := _misfit(function, signature):
        raise VerifierError(
            f"{field} is {name!r}: {module_name}.{function_name} {problem}; it must be "
            f"a function {signature}."
        )
    return function


def _misfit(function: Any, signature: str) -> str:
    """Why this is no such function; empty where it may be."""
    if function is None:
        return "does not exist"
    if isinstance(function, type):
        return "is a class"
    if not callable(function):
        return f"is a {type(function).__name__}"
    if any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
        return "is an async function"
    arguments = signature[1 : signature.index(")")].split(", ")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        return f"cannot be called with {', '.join(arguments)} ({error})"
    except ValueError:  # one of C that does not tell its arguments
        pass
    return ""
