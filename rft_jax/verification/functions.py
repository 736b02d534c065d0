"""Checkers of the user's own: found by name, called with what they ask for, their results as
judgements, several of them as one. Imports no jax.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from rft_jax.errors import VerifierError
from rft_jax.types import Judgement, Verdict
from rft_jax.verification.board import MAX_STEPS

Checker = Callable[..., Any]
"""(reference, output, question, columns of its row) -> what `as_judgement` takes."""

GIVEN = ("question", "reference", "output")
"""What a checker is given by name, beside the other columns of the row."""
SIGNATURE = "(question, reference, output, **fields) -> bool, float or Verdict"
RESULTS = "True, False, a number in [0, 1], a Verdict, or one of these with the answer it read"
FAILED = "failed "
"""What the reason begins with, before the name of the check, where only that does not accept."""
MOST_EXAMPLES = 256
"""Of a module, that are tried."""
_NOTHING: Mapping[str, Any] = {}
AS_EXPECTED = Judgement(Verdict.CORRECT, "as expected")

_REASONS = {
    Verdict.CORRECT: "accepted",
    Verdict.INCORRECT: "rejected",
    Verdict.UNDECIDED: "undecided by the function",
}


class WrongResultError(TypeError):
    """A verifier or a check returned what is no verdict."""


class Example(NamedTuple):
    """In place of a reference: the checker is to be tried on this one of its module's examples."""

    number: int


def as_judgement(result: object, threshold: float = 1.0, who: str = "the verifier") -> Judgement:
    """What a checker returned, as a judgement; WrongResultError where it is none.

    threshold: the least reward with which an output is correct; who: returned it.
    """
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], str | None):
        return replace(as_judgement(result[0], threshold, who), answer=result[1])
    if isinstance(result, Judgement):
        if (
            type(result.verdict) is Verdict
            and type(result.reason) is str
            and type(result.answer) is type(result.reward) is type(None)
        ):
            return result
        if result.verdict not in tuple(Verdict):
            known = ", ".join(Verdict)
            raise WrongResultError(f"{who}'s verdict is {result.verdict!r}, not one of {known}")
        reward = None if result.reward is None else as_judgement(result.reward, who=who).value
        answer = None if result.answer is None else str(result.answer)
        verdict = Verdict(result.verdict)
        return Judgement(verdict, str(result.reason), False, answer, reward, result.steps)
    value, kind = result, type(result)
    # numpy's, which workers do not import.
    if any(base.__name__ == "generic" for base in kind.__mro__):
        value = value.item()  # type: ignore[attr-defined]
    if isinstance(value, bool):
        value = Verdict.CORRECT if value else Verdict.INCORRECT
    if isinstance(value, Verdict):
        return Judgement(value, _REASONS[value])
    if isinstance(value, float | int) and 0 <= value <= 1:
        verdict = Verdict.CORRECT if value >= threshold else Verdict.INCORRECT
        return Judgement(verdict, _REASONS[verdict], reward=float(value))
    shown = " ".join(repr(result)[:60].split())
    raise WrongResultError(f"{who} returned {shown} ({kind.__name__}), not {RESULTS}")


def _with_steps(judgement: Judgement, output: str) -> Judgement:
    """The judgement of an output with its steps as they should be; WrongResultError where they are
    none."""
    said = judgement.steps
    if type(said) is tuple and not said:
        return judgement
    try:
        steps = tuple((operator.index(end), float(0 + reward)) for end, reward in said)
    except (TypeError, ValueError, OverflowError):
        steps = ((0, math.nan),)
    ends = [0, *(end for end, _ in steps)]
    increasing = all(first < second for first, second in itertools.pairwise(ends))
    finite = all(math.isfinite(reward) for _, reward in steps)
    if not (increasing and finite and ends[-1] <= len(output) and len(steps) <= MAX_STEPS):
        shown = " ".join(repr(said)[:60].split())
        raise WrongResultError(
            f"the verifier's steps are {shown}, not at most {MAX_STEPS} pairs of an end and a "
            f"finite reward, with ends that increase from 1 to at most {len(output)}, the "
            "characters of the output"
        )
    return replace(judgement, steps=steps)


def load_checker(field: str, name: str, expected: str, threshold: float) -> Checker:
    """The user's function of this name as a checker; one of (reference, output) is called so.

    Args:
        field, expected: for messages: the setting, and what it must be.
        name: `module:function`.
        threshold: as of as_judgement.

    Raises VerifierError.
    """
    module, function = _find(field, name, expected)
    parameters = _parameters(function)
    by_name = set(GIVEN) <= set(parameters)
    if problem := _misfit(function, None if by_name else ("reference", "output")):
        raise VerifierError(
            f"{field} is {name!r}: {name.replace(':', '.')} {problem}; it must be a function "
            f"{SIGNATURE}."
        )
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())

    def judge(
        reference: Any, output: str, question: str = "", columns: Mapping[str, Any] = _NOTHING
    ) -> Judgement:
        if isinstance(reference, Example):
            # An older function's module may have something else of this name.
            examples = getattr(module, "examples", ()) if by_name else ()
            return _tried(judge, examples, reference.number)
        if not by_name:
            return _with_steps(as_judgement(function(reference, output), threshold), output)
        taken = {name: columns[name] for name in columns if takes_all or name in parameters}
        result = function(question=question, reference=reference, output=output, **taken)
        return _with_steps(as_judgement(result, threshold), output)

    return judge


def load_check(name: str, expected: str, threshold: float) -> Checker:
    """The user's check of this name as a checker; it may also be a function of the output only."""
    field = "verification.checks"
    _, function = _find(field, name, expected)
    if set(GIVEN) <= set(_parameters(function)):
        return load_checker(field, name, expected, threshold)
    if problem := _misfit(function, ("output",)):
        raise VerifierError(
            f"{field} is {name!r}: {name.replace(':', '.')} {problem}; it must be a function "
            f"(output) -> bool or {SIGNATURE}."
        )
    return of_output(function)


def of_output(check: Callable[[str], object]) -> Checker:
    """A function of the output only, as a checker."""
    return lambda reference, output, *row: check(output)


def combined(
    verifier: Checker, checks: Mapping[str, Checker], weights: Sequence[float], threshold: float
) -> Checker:
    """One checker of several.

    Without weights each must accept: the first that does not decides, and the reward is the
    smallest. With them the reward is the weighted mean, and the threshold decides.

    Args:
        verifier: the first of them; the answer read and the steps are its own.
        checks: the others by name.
        weights: of the verifier and of each check, or none.
        threshold: as of as_judgement.
    """

    def judge(*item: Any) -> Judgement:
        first = as_judgement(verifier(*item), threshold)
        if isinstance(item[0], Example):  # of the verifier only
            return first
        judged, failed = [first], ""
        for name, check in checks.items():
            last = judged[-1].verdict
            if last is Verdict.UNDECIDED or (last is Verdict.INCORRECT and not weights):
                break
            judged.append(as_judgement(check(*item), threshold, f"the check {name}"))
            if judged[-1].verdict is Verdict.INCORRECT:
                failed = failed or f"{FAILED}{name}"
        if judged[-1].verdict is Verdict.UNDECIDED:
            return judged[-1]
        rewards = [one.value for one in judged]
        if weights:
            total = math.fsum(weights)
            reward = math.fsum(w * r for w, r in zip(weights, rewards, strict=True)) / total
        else:
            reward = min(rewards)
        accepted = reward >= threshold
        return replace(
            first,
            verdict=Verdict.CORRECT if accepted else Verdict.INCORRECT,
            reason=first.reason if accepted or first.verdict is Verdict.INCORRECT else failed,
            reward=reward if weights or any(one.reward is not None for one in judged) else None,
        )

    return judge


def _find(field: str, name: str, expected: str) -> tuple[Any, Any]:
    """(module, function in it)."""
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
    return module, getattr(module, function_name, None)


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return {} if isinstance(function, type) else inspect.signature(function).parameters
    except (TypeError, ValueError):  # no function, or one of C that does not tell its arguments
        return {}


def _misfit(function: Any, arguments: Sequence[str] | None) -> str:
    """Why this is no function of these arguments; empty where it may be. None: known to fit."""
    if function is None:
        return "does not exist"
    if isinstance(function, type):
        return "is a class"
    if not callable(function):
        return f"is a {type(function).__name__}"
    if any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
        return "is an async function"
    if arguments is None:
        return ""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        return f"cannot be called with {', '.join(arguments)} ({error})"
    except ValueError:  # one of C that does not tell its arguments
        pass
    return ""


class KnownItem(NamedTuple):
    """An example: an output of a row, and the verdict that it must get."""

    reference: Any
    output: str
    question: str
    columns: Mapping[str, Any]
    expected: Verdict


def known_item(row: object) -> KnownItem:
    """An example of its row: `reference`, `output`, `expected` (a verdict), and whatever else the
    checker is given; ValueError for what is none."""
    given = {"question": "", **row} if isinstance(row, Mapping) else {}
    missing = [name for name in ("reference", "output", "expected") if name not in given]
    if missing:
        raise ValueError(f"an object with reference, output and expected is needed, not {row!r}")
    columns = {name: given[name] for name in given if name not in (*GIVEN, "expected")}
    output, expected = given["output"], given["expected"]
    if not isinstance(output, str) or expected not in tuple(Verdict):
        raise ValueError(f"output must be text and expected one of {', '.join(Verdict)}: {row!r}")
    return KnownItem(given["reference"], output, given["question"], columns, Verdict(expected))


def _tried(judge: Callable[..., Judgement], examples: Any, number: int) -> Judgement:
    """Whether an example gets its verdict; what else it gets is the reason. One that is not there
    does."""
    if number >= len(examples):
        return AS_EXPECTED
    *item, columns, expected = known_item(examples[number])
    judged = judge(*item, columns)
    if judged.verdict is expected:
        return AS_EXPECTED
    return Judgement(Verdict.INCORRECT, disagreement(expected, judged, item[1]))


def disagreement(expected: Verdict, judged: Judgement, output: str) -> str:
    """How an example was judged."""
    shown = output if len(output) <= 80 else "..." + output[-77:]
    return f"{shown!r} is {judged.verdict} ({judged.reason}), not {expected}"
