"""Checkers of a user's own: what they are given, what they return, several of them, examples."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_experiment

from rft_jax.commands.verify import verify
from rft_jax.config import Config, VerificationConfig
from rft_jax.config.serialize import check_value
from rft_jax.errors import ConfigError, DataError, VerifierError
from rft_jax.evaluation.voting import cast_votes
from rft_jax.types import Judgement, Question, Sample, Verdict
from rft_jax.verification.canary import FirstOutputs, open_verifiers, try_examples
from rft_jax.verification.functions import WrongResultError, as_judgement
from rft_jax.verification.pool import Item, VerifierPool
from rft_jax.verification.rules import Limits, VerifierSpec, load_verifier

CORRECT, INCORRECT, UNDECIDED = Verdict
LIMITS = Limits(1, 60.0)


def judged(name: str, *item: Any, **settings: Any) -> Judgement:
    verifier = load_verifier(VerifierSpec(f"own_checkers:{name}", **settings))
    return as_judgement(verifier(*item))


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (True, Judgement(CORRECT, "accepted")),
        (Verdict.UNDECIDED, Judgement(UNDECIDED, "undecided by the function")),
        (1.0, Judgement(CORRECT, "accepted", reward=1.0)),
        (0.5, Judgement(INCORRECT, "rejected", reward=0.5)),
        (0, Judgement(INCORRECT, "rejected", reward=0.0)),
        (np.float32(1.0), Judgement(CORRECT, "accepted", reward=1.0)),
        ((False, "7"), Judgement(INCORRECT, "rejected", answer="7")),
        ((0.5, None), Judgement(INCORRECT, "rejected", reward=0.5)),
    ],
)
def test_what_a_checker_may_return(result: object, expected: Judgement) -> None:
    assert as_judgement(result) == expected


def test_the_threshold_decides() -> None:
    assert as_judgement(0.5, 0.5).verdict is CORRECT
    assert judged("short", "", "a long output", threshold=0.5).verdict is CORRECT


def test_what_a_checker_is_given() -> None:
    row = ("4", "so 4", "2 + 2?", {"tests": ["4", "5"], "id": 9})
    assert judged("tests_passed", *row).reward == 0.5
    with pytest.raises(ValueError, match=r"2 \+ 2\?\|4\|so 4\|\[\('id', 9\), \('tests', \['4'"):
        judged("everything", *row)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'tests'"):
        judged("tests_passed", *row[:3], {})


@pytest.mark.parametrize(
    ("output", "settings", "expected"),
    [
        # All of them: the first that does not accept decides, and the reward is the smallest.
        ("4", {"checks": ("own_checkers:short",)}, (CORRECT, "accepted", 1.0)),
        ("it is about 4", {"checks": ("own_checkers:short",)},
         (INCORRECT, "failed own_checkers:short", 0.5)),
        ("it is about 4", {"checks": ("own_checkers:short",), "threshold": 0.5},
         (CORRECT, "accepted", 0.5)),
        ("5", {"checks": ("own_checkers:short",)}, (INCORRECT, "rejected", None)),
        ("4", {"checks": ("own_checkers:unsure",)},
         (UNDECIDED, "undecided by the function", None)),
        # Weighted: every one counts.
        ("it is about 4", {"checks": ("own_checkers:short",), "weights": (3.0, 1.0)},
         (INCORRECT, "failed own_checkers:short", 0.875)),
        ("it is about 4",
         {"checks": ("own_checkers:short",), "weights": (3.0, 1.0), "threshold": 0.875},
         (CORRECT, "accepted", 0.875)),
        ("5", {"checks": ("own_checkers:short", "ends_with_answer"), "weights": (2.0, 1.0, 1.0)},
         (INCORRECT, "rejected", 0.25)),
        ("4", {"checks": ("own_checkers:short",), "weights": (0.1, 0.3)},
         (CORRECT, "accepted", 1.0)),
    ],
)  # fmt: skip
def test_several_checkers(
    output: str, settings: dict[str, Any], expected: tuple[Verdict, str, float | None]
) -> None:
    found = judged("number", "4", output, "", {}, **settings)
    assert (found.verdict, found.reason, found.reward) == expected


def test_a_rule_and_a_checker() -> None:
    verifier = load_verifier(VerifierSpec("boxed", checks=("own_checkers:short",)))
    row = ("", {})
    assert verifier("4", r"\boxed{4}", *row).verdict is CORRECT
    assert verifier("4", r"it is \boxed{4}", *row).reason == "failed own_checkers:short"
    assert verifier("4", r"it is \boxed{5}", *row).reason == "not equal"


def test_rewards_and_answers_come_back_from_a_worker() -> None:
    with VerifierPool(VerifierSpec("own_checkers:reasoned"), LIMITS) as pool:
        long = "x" * 600
        texts = ["a", "", "b" * 496, long, long[:-1] + "y"]
        found = pool.verify([Item("a", text, True) for text in texts])
    assert [one.answer for one in found[:3]] == texts[:3]
    assert len({one.answer for one in found[3:]}) == 2
    assert found[0] == Judgement(CORRECT, "failed to say so", answer="a", reward=0.25)
    assert {one.reward for one in found} == {0.25}


def test_rows_of_verify_are_what_a_checker_is_given() -> None:
    rows = [
        {"question": "?", "reference": None, "output": "a b", "tests": ["a", "b"]},
        {"question": "?", "reference": {"x": 1}, "output": "a", "tests": ["a", "b"]},
    ]
    found = verify(rows, verifier="own_checkers:tests_passed", workers=1)
    assert [(one.verdict, one.reward) for one in found] == [(CORRECT, 1.0), (INCORRECT, 0.5)]
    with pytest.raises(DataError, match=r"rows\[0\]: field 'reference' must be text"):
        verify(rows, verifier="hash", workers=1)


def group(pool: VerifierPool, question: Question, texts: list[str]) -> list[Sample]:
    judged = pool.verify([Item.of(question, text) for text in texts])
    return [
        Sample(0, n, 0, text, (1,), (-1.0,), True, one.verdict, one.reason, one.answer, one.reward)
        for n, (text, one) in enumerate(zip(texts, judged, strict=True))
    ]


def test_votes_are_by_the_checkers_own_equality() -> None:
    question = Question(0, "?", "4")
    with VerifierPool(VerifierSpec("own_checkers:number"), LIMITS) as pool:
        samples = group(pool, question, ["is 4", "4.0", "is 5", "5.0", "5.00", "7", "no number"])
        votes = cast_votes([samples], pool, [question])
    assert votes is not None
    answers = votes[0].answers
    assert answers[0] == answers[1] != answers[2]
    assert answers[2] == answers[3] == answers[4] != answers[5]
    assert answers[6] is None
    assert votes[0].correct == [True, True, False, False, False, False, False]


def test_a_reason_of_a_users_own_is_no_failed_check() -> None:
    question = Question(0, "?", "4")
    with VerifierPool(VerifierSpec("own_checkers:reasoned"), LIMITS) as pool:
        votes = cast_votes([group(pool, question, ["4", "5"])], pool, [question])
    assert votes is not None
    assert votes[0].answers[0] != votes[0].answers[1]


def test_examples_of_the_module_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with VerifierPool(VerifierSpec("own_checkers:one_of"), LIMITS) as pool:
        try_examples(pool)
    with (
        VerifierPool(VerifierSpec("own_checkers:reasoned"), LIMITS) as pool,
        pytest.raises(VerifierError) as raised,
    ):
        try_examples(pool)
    assert str(raised.value) == (
        "verification.verifier is 'own_checkers:reasoned': 1 of its examples are judged otherwise "
        "than they say: own_checkers.examples[0]: 'so it is 4' is incorrect (failed to say so), "
        "not correct: fix the verifier or the examples."
    )


def test_the_documented_checker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "verification.md").read_text(encoding="utf-8")
    code = page.partition("## A checker of your own")[2].partition("```python\n")[2]
    (tmp_path / "my_checker.py").write_text(code.partition("```")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with VerifierPool(VerifierSpec("my_checker:reward"), LIMITS) as pool:
        try_examples(pool)
        found = pool.verify([Item([2, 3], "3.0", True, "", {"unit": "cm", "id": 7})])
    assert found == [Judgement(INCORRECT, "rejected", answer="3.0", reward=0.5)]


def test_the_documented_checker_of_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "verification.md").read_text(encoding="utf-8")
    code = page.partition("### Rewards of steps")[2].partition("```python\n")[2]
    (tmp_path / "my_lines.py").write_text(code.partition("```")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with VerifierPool(VerifierSpec("my_lines:by_line"), LIMITS) as pool:
        found = pool.verify([
            Item("6", "<<1+2=3>>\n<<3+3=7>>\n#### 6", True),
            Item("6", "<<1+2=3>>\n#### 7", True),
            Item("6", "", True),
        ])  # fmt: skip
    assert found == [
        Judgement(CORRECT, "by line", steps=((10, 1.0), (20, 0.0), (26, 1.0))),
        Judgement(INCORRECT, "by line", steps=((10, 1.0), (16, 0.0))),
        Judgement(INCORRECT, "by line"),
    ]


def test_steps_come_back_from_a_worker() -> None:
    items = [Item(n, "x" * n, True) for n in (0, 1, 7, 1024)]
    with VerifierPool(VerifierSpec("own_checkers:every_character"), LIMITS) as pool:
        found = pool.verify(items)
    for item, one in zip(items, found, strict=True):
        expected = tuple((end, end / 8 - 3) for end in range(1, item.reference + 1))
        assert one == Judgement(CORRECT, "each", reward=0.5, answer="a", steps=expected)


@pytest.mark.parametrize(
    ("steps", "shown"),
    [
        ([(0, 1.0)], r"\[\(0, 1.0\)\]"),
        ([(5, 1.0)], r"\[\(5, 1.0\)\]"),
        ([(2, 1.0), (2, 1.0)], r"\[\(2, 1.0\), \(2, 1.0\)\]"),
        ([(3, 1.0), (2, 1.0)], r"\[\(3, 1.0\), \(2, 1.0\)\]"),
        ([(2, float("nan"))], r"\[\(2, nan\)\]"),
        ([(2, float("inf"))], r"\[\(2, inf\)\]"),
        ([(2, "1")], r"\[\(2, '1'\)\]"),
        ([(2.0, 1.0)], r"\[\(2.0, 1.0\)\]"),
        ([2, 3], r"\[2, 3\]"),
        (7, "7"),
    ],
)
def test_steps_that_are_none_are_no_verdict(steps: Any, shown: str) -> None:
    with pytest.raises(
        WrongResultError,
        match=f"^the verifier's steps are {shown}, not at most 1024 pairs of an end and a finite "
        "reward, with ends that increase from 1 to at most 4, the characters of the output$",
    ):
        judged("stepped", steps, "four")


def test_steps_may_be_of_numpy_and_any_sequence() -> None:
    steps = np.array([[1, 0.5]]), [np.array((2, 1))], ((np.int64(2), np.float32(0.5)),)
    found = [judged("stepped", one, "four").steps for one in steps[1:]]
    assert found == [((2, 1.0),), ((2, 0.5),)]
    assert all(type(value) in (int, float) for of_one in found for pair in of_one for value in pair)


def test_steps_stay_the_verifiers_beside_checks() -> None:
    for settings in ({}, {"weights": (1.0, 1.0)}):
        found = judged(
            "stepped", [(4, 2.0)], "four, five", "", {}, checks=("own_checkers:short",), **settings
        )
        assert found.steps == ((4, 2.0),)


def test_examples_of_a_file_are_tried(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    rows = [
        {"reference": "4", "output": "#### 4", "expected": "correct", "why": "so"},
        {"reference": "4", "output": "#### 5", "expected": "incorrect"},
        {"reference": "4", "output": "#### 4.0", "expected": "incorrect"},
    ]
    with VerifierPool(VerifierSpec("hash"), LIMITS) as pool:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]), encoding="utf-8")
        try_examples(pool, str(path))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with pytest.raises(VerifierError, match=r"1 of its examples .*jsonl:3: '#### 4.0' is corr"):
            try_examples(pool, str(path))
        path.write_text('{"reference": "4", "output": "4", "expected": "yes"}\n', encoding="utf-8")
        with pytest.raises(DataError, match=r"examples.jsonl:1: output must be text and expected"):
            try_examples(pool, str(path))
        with pytest.raises(DataError, match=r"verification.examples is 'gone', which cannot be"):
            try_examples(pool, "gone")


def settings(tmp_path: Path, **changes: Any) -> Config:
    source = tiny_experiment.write_questions(tmp_path)
    verification = VerificationConfig(workers=1, **changes)
    return tiny_experiment.online_rft(source, verification=verification)


def test_examples_are_tried_before_the_canary(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text('{"reference": "4", "output": "4", "expected": "correct"}\n', encoding="utf-8")
    config = settings(tmp_path, verifier="hash", examples=str(path))
    with pytest.raises(VerifierError, match="1 of its examples"), open_verifiers(config, []):
        pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 0.5}, "threshold does nothing"),
        ({"threshold": 0.0}, "it must lie above 0"),
        (
            {"weights": (1.0,), "checks": ("equations",)},
            "for the verifier and for each of 1 checks",
        ),
        ({"weights": (1.0, 0.0), "checks": ("equations",)}, "a positive number"),
    ],
)
def test_bad_settings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path, **changes)


def test_weights_are_numbers() -> None:
    check_value("verification.weights", (1, 0.5))
    with pytest.raises(ConfigError, match="a tuple of numbers is expected"):
        check_value("verification.weights", ("1",))


SAMPLE = Sample(0, 0, 0, "so 5", (1,), (-1.0,), True, INCORRECT, "not equal")


def first(config: Config, *verdicts: Verdict, reward: float | None = None) -> None:
    watch = FirstOutputs(config)
    for verdict in verdicts:
        watch.see([replace(SAMPLE, verdict=verdict, text=f"it {{is}} {verdict}", reward=reward)])


def test_first_outputs_that_are_all_rejected_stop_the_run(tmp_path: Path) -> None:
    config = settings(tmp_path, verifier="hash", first_outputs=4)
    first(config, INCORRECT, INCORRECT, INCORRECT)  # too few to tell
    first(config, INCORRECT, INCORRECT, CORRECT, INCORRECT, INCORRECT)
    with pytest.raises(VerifierError) as raised:
        first(config, INCORRECT, INCORRECT, INCORRECT, UNDECIDED)
    assert str(raised.value) == (
        "of the first 4 outputs none is accepted (3 incorrect: not equal; 1 undecided: not equal), "
        "such as 'it {is} incorrect' (not equal) and 'it {is} undecided' (not equal): see that "
        "verification.verifier reads what the model writes, or start from a better model; "
        "verification.first_outputs=0 turns this off."
    )
    first(replace(config, verification=VerificationConfig(first_outputs=0)), *[INCORRECT] * 4)


def test_first_outputs_that_are_mostly_undecided_stop_the_run(tmp_path: Path) -> None:
    config = settings(tmp_path, verifier="hash", first_outputs=4)
    first(config, CORRECT, INCORRECT, UNDECIDED, UNDECIDED)
    with pytest.raises(VerifierError, match="of the first 4 outputs 3 are undecided"):
        first(config, CORRECT, UNDECIDED, UNDECIDED, UNDECIDED)


def test_first_outputs_that_are_all_accepted_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(tmp_path, verifier="hash", first_outputs=2)
    with caplog.at_level(logging.WARNING):
        first(config, CORRECT, INCORRECT)
        FirstOutputs(config, resumed=True).see([SAMPLE] * 4)
        assert not caplog.records
        first(config, CORRECT, CORRECT)
    assert "of the first 2 outputs every decided one is accepted" in caplog.text


def test_rewards_of_steps_are_enough_where_they_are_learnt_from(tmp_path: Path) -> None:
    config = settings(tmp_path, verifier="own_checkers:stepped", first_outputs=2)
    config = replace(config, method="grpo_process")
    FirstOutputs(config).see([SAMPLE, replace(SAMPLE, steps=((0, -1.0),))])
    for steps in ((), ((0, 0.0),)):
        with pytest.raises(VerifierError, match="2 outputs none has a step with a reward"):
            FirstOutputs(config).see([replace(SAMPLE, steps=steps, reward=0.5)] * 2)


def test_rewards_below_the_threshold_are_enough_where_they_are_learnt_from(tmp_path: Path) -> None:
    config = settings(tmp_path, verifier="hash", first_outputs=2)
    own = replace(config.row, name="own", trains_on="decided", rewards=True)
    first(replace(config, method=own), INCORRECT, INCORRECT, reward=0.5)
    with pytest.raises(VerifierError, match="none is accepted"):
        first(config, INCORRECT, INCORRECT, reward=0.5)
