"""Verifiers: functions (reference, output) -> Judgement or bool, built in or the user's own."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache

from rft_jax.records import Judgement, Verdict
from rft_jax.verification.answers import (
    NO_ANSWER,
    NOT_A_NUMBER,
    TEXT_AFTER_ANSWER,
    TWO_ANSWERS,
    AnswerError,
    hash_answer,
    reference_answer,
)
from rft_jax.verification.compare import Number, parse_number

Verifier = Callable[[str, str], Judgement | bool]
"""(reference, output) -> verdict; True is CORRECT, False INCORRECT."""

TRUNCATED = "truncated"
BAD_REFERENCE = "reference is not a number"

_UNPARSED = frozenset({NO_ANSWER, TWO_ANSWERS, NOT_A_NUMBER, TEXT_AFTER_ANSWER, TRUNCATED})


class VerifierError(ValueError):
    """A verifier cannot be used, or its workers cannot run."""


def is_parsed(judgement: Judgement) -> bool:
    """Whether an answer was found in the output and judged, right or wrong."""
    return judgement.verdict is not Verdict.UNDECIDED and judgement.reason not in _UNPARSED


def hash_rule(reference: str, output: str) -> Judgement:
    """Compare the number after the output's last `####` with the reference, exactly.

    A reference that states no number leaves every output undecided: it says nothing about them.
    """
    expected = _reference_number(reference)
    if expected is None:
        return Judgement(Verdict.UNDECIDED, BAD_REFERENCE)
    answer, reason = hash_answer(output)
    if answer is None:
        return Judgement(Verdict.INCORRECT, reason)
    if parse_number(answer) == expected:
        return Judgement(Verdict.CORRECT, "equal")
    return Judgement(Verdict.INCORRECT, "not equal")


# The G outputs of a question come one after the other and share their reference.
@lru_cache(maxsize=1024)
def _reference_number(reference: str) -> Number | None:
    try:
        return parse_number(reference_answer(reference))
    except AnswerError:
        return None


RULES: dict[str, Verifier] = {"hash": hash_rule}


def load_verifier(name: str) -> Verifier:
    """The built-in rule `name`, or the function that `module:function` names (imports the module).

    Raises VerifierError, in one line, when there is none.
    """
    if name in RULES:
        return RULES[name]
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise VerifierError(
            f"verification.verifier is {name!r}: it must be a built-in rule "
            f"({', '.join(RULES)}) or a function of yours as module:function."
        )
    try:
        module = importlib.import_module(module_name)
    except BaseException as error:  # a module may also call sys.exit
        found = " ".join(f"{type(error).__name__}: {error}".split())
        raise VerifierError(
            f"verification.verifier is {name!r}: module {module_name} cannot be imported in a "
            f"worker ({found}); it must lie in the current folder or on the Python path."
        ) from error
    verifier = getattr(module, function_name, None)
    if not callable(verifier):
        found = "does not exist" if verifier is None else f"is a {type(verifier).__name__}"
        raise VerifierError(
            f"verification.verifier is {name!r}: {module_name}.{function_name} {found}; it must be "
            "a function (reference, output) -> bool or Judgement."
        )
    return verifier
