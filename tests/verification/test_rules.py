"""Built-in rules, the funnel's `parsed`, and the names of verifiers."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from rft_jax.errors import VerifierError
from rft_jax.types import Judgement, Verdict
from rft_jax.verification.extract import reference_answer
from rft_jax.verification.functions import WrongResultError, as_judgement
from rft_jax.verification.rules import (
    TRUNCATED,
    VerifierSpec,
    is_parsed,
    load_verifier,
)

GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k"


@pytest.mark.parametrize(
    ("reference", "output", "verdict", "reason", "parsed"),
    [
        ("18", "so\n#### 18", Verdict.CORRECT, "equal", True),
        ("9 + 9 = 18\n#### 18", "#### $18.00", Verdict.CORRECT, "equal", True),
        ("18", "#### 19", Verdict.INCORRECT, "not equal", True),
        ("18", "18", Verdict.INCORRECT, "no answer", False),
        ("5", "#### 5 or 6", Verdict.INCORRECT, "two answers", False),
        ("5", "#### five", Verdict.INCORRECT, "not a number", False),
        ("5", "#### 5\nor five", Verdict.INCORRECT, "text after answer", False),
        ("", "#### ", Verdict.UNDECIDED, "reference not understood", False),
        ("five", "#### five", Verdict.CORRECT, "equal", True),
    ],
)
def test_rule(reference: str, output: str, verdict: Verdict, reason: str, parsed: bool) -> None:
    judgement = load_verifier(VerifierSpec("hash"))(reference, output)
    assert isinstance(judgement, Judgement)
    assert judgement == Judgement(verdict, reason)
    assert is_parsed(judgement) is parsed


@pytest.mark.parametrize("reason", ["timeout", "crashed", "error: KeyError"])
def test_undecided_is_not_parsed(reason: str) -> None:
    assert not is_parsed(Judgement(Verdict.UNDECIDED, reason))


def test_truncated_is_not_parsed() -> None:
    assert not is_parsed(Judgement(Verdict.INCORRECT, TRUNCATED))


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_gsm8k_solution_is_right_for_its_own_answer_only(split: str) -> None:
    path = GSM8K / f"{split}.jsonl"
    if not path.exists():
        pytest.skip(f"GSM8K's {split}.jsonl is not in {GSM8K}")
    with path.open(encoding="utf-8") as file:
        solutions = [json.loads(line)["answer"] for line in file]
    assert len(solutions) == {"train": 7473, "test": 1319}[split]
    rule = load_verifier(VerifierSpec("auto"))
    for solution in solutions:
        answer = reference_answer(solution)
        assert rule(answer, solution) == Judgement(Verdict.CORRECT, "equal"), solution
        assert rule(solution, solution) == Judgement(Verdict.CORRECT, "equal"), solution
        other = str(int(answer.replace(",", "")) + 1)
        assert rule(other, solution) == Judgement(Verdict.INCORRECT, "not equal"), solution


def test_a_verifier_is_loaded_by_name() -> None:
    assert load_verifier(VerifierSpec("misbehaving:act"))("same", "same").verdict is Verdict.CORRECT


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *[
            (
                name,
                f"verification.verifier is {name!r}: it must be a built-in rule (auto, hash, "
                "boxed, tagged, lenient_last_number, random, reasoning_gym) or a function of yours "
                "as module:function.",
            )
            for name in ("", "hsh", "module:", ":function", "misbehaving.act")
        ],
        (
            "no_such_module:f",
            "verification.verifier is 'no_such_module:f': module no_such_module cannot be imported "
            "in a worker (ModuleNotFoundError: No module named 'no_such_module'); it must lie in "
            "the current folder or on the Python path.",
        ),
        (
            "misbehaving:missing",
            "verification.verifier is 'misbehaving:missing': misbehaving.missing does not exist; "
            "it must be a function (question, reference, output, **fields) -> bool, float or "
            "Verdict.",
        ),
        (
            "misbehaving:NOT_A_FUNCTION",
            "verification.verifier is 'misbehaving:NOT_A_FUNCTION': misbehaving.NOT_A_FUNCTION is "
            "a int; it must be a function (question, reference, output, **fields) -> bool, float "
            "or Verdict.",
        ),
    ],
)
def test_bad_names(name: str, message: str) -> None:
    with pytest.raises(VerifierError) as raised:
        load_verifier(VerifierSpec(name))
    assert str(raised.value) == message


def test_numpy_s_bool_is_a_bool() -> None:
    assert as_judgement(np.bool_(True)) == Judgement(Verdict.CORRECT, "accepted")
    assert as_judgement(np.bool_(False)) == Judgement(Verdict.INCORRECT, "rejected")


@pytest.mark.parametrize(
    "result", [None, 2, -1, 1.5, float("nan"), "yes", np.float64(7.0), np.array(True), [True]]
)
def test_what_is_no_verdict(result: object) -> None:
    with pytest.raises(WrongResultError):
        as_judgement(result)


def test_checks_apply_whatever_form_the_verdict_has(monkeypatch: pytest.MonkeyPatch) -> None:
    own = types.ModuleType("own_of_a_user")
    own.numpy = lambda reference, output: np.bool_(True)  # type: ignore[attr-defined]
    text = Judgement(Verdict.CORRECT, "so")
    object.__setattr__(text, "verdict", "correct")
    own.text = lambda reference, output: text  # type: ignore[attr-defined]
    own.no = lambda output: np.bool_(False)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_of_a_user", own)
    for name in ("numpy", "text"):
        verifier = load_verifier(
            VerifierSpec(f"own_of_a_user:{name}", checks=("own_of_a_user:no",))
        )
        assert verifier("1", "1") == Judgement(Verdict.INCORRECT, "failed own_of_a_user:no")
