"""The verifiers of a run: the canary, the alarm, and the settings they are made from."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_experiment

from rft_jax.config import Config, EvaluationConfig, VerificationConfig
from rft_jax.errors import ConfigError, VerifierError
from rft_jax.types import Question, Sample, Verdict
from rft_jax.verification.canary import open_verifiers, watch_undecided

GSM8K = [
    Question(number, f"{number} + 1?", str(number + 1), f"so it is\n#### {number + 1}")
    for number in range(40)
]
BARE = [replace(question, solution=None) for question in GSM8K]


def config(tmp_path: Path, **settings: object) -> Config:
    verification = VerificationConfig(workers=1, **settings)  # type: ignore[arg-type]
    return tiny_experiment.sft(tiny_experiment.write_questions(tmp_path), verification=verification)


def try_on(config: Config, questions: list[Question]) -> None:
    with open_verifiers(config, questions):
        pass


@pytest.mark.parametrize("rule", ["auto", "hash"])
def test_a_fitting_rule_passes(tmp_path: Path, rule: str) -> None:
    try_on(config(tmp_path, verifier=rule), GSM8K)


@pytest.mark.parametrize("rule", ["auto", "hash", "boxed", "tagged"])
def test_bare_answers_are_put_in_the_form_of_the_rule(tmp_path: Path, rule: str) -> None:
    try_on(config(tmp_path, verifier=rule), BARE)
    try_on(config(tmp_path, verifier=rule, canary="answers"), GSM8K)


def test_a_rule_that_does_not_read_the_data_is_found(tmp_path: Path) -> None:
    with pytest.raises(VerifierError) as raised:
        try_on(config(tmp_path, verifier="boxed"), GSM8K)
    assert str(raised.value).startswith(
        "verification.verifier is 'boxed': of 40 outputs of the data known to be right, 40 are "
        "judged otherwise. The first, 'so it is\\n#### 1' with the reference '1', is incorrect "
        "(no answer). Choose the rule that reads such answers, or set verification.canary"
    )


def test_a_verifier_that_accepts_everything_is_found(tmp_path: Path) -> None:
    with pytest.raises(VerifierError, match="known to be wrong, 40 are judged otherwise"):
        try_on(config(tmp_path, verifier="tiny_experiment:everything"), GSM8K)


def test_a_reference_that_is_not_understood_is_found(tmp_path: Path) -> None:
    odd = [replace(question, answer=r"\zzz{", solution=None) for question in GSM8K]
    with pytest.raises(VerifierError, match="reference not understood"):
        try_on(config(tmp_path), odd)


def test_a_demonstration_may_fail_a_check(tmp_path: Path) -> None:
    odd = [replace(question, solution="<<1+1=3>>\n#### 5", answer="5") for question in GSM8K[:1]]
    try_on(config(tmp_path, checks=("equations",)), [*odd, *GSM8K])


def test_what_cannot_be_tried_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        try_on(config(tmp_path, verifier="tiny_experiment:everything"), BARE)
    assert "cannot be tried on known answers" in caplog.text


def test_the_canary_can_be_off(tmp_path: Path) -> None:
    try_on(config(tmp_path, verifier="boxed", canary="off"), GSM8K)


def test_evaluation_has_a_verifier_of_its_own(tmp_path: Path) -> None:
    control = config(tmp_path, verifier="hash", canary="answers")
    control = replace(control, evaluation=EvaluationConfig(verifier="lenient_last_number"))
    with open_verifiers(control, GSM8K) as (training, evaluation):
        assert (training.name, evaluation.name) == ("hash", "lenient_last_number")
    with open_verifiers(replace(control, evaluation=EvaluationConfig()), GSM8K) as (one, other):
        assert one is other


def samples(decided: int, *undecided: str) -> list[Sample]:
    known = Sample(0, 0, 0, "", (), (), True, Verdict.INCORRECT, "no answer")
    unknown = [replace(known, verdict=Verdict.UNDECIDED, reason=reason) for reason in undecided]
    return [known] * decided + unknown


def test_the_alarm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = config(tmp_path, warn_undecided=0.1, stop_undecided=0.5)
    with caplog.at_level(logging.WARNING):
        watch_undecided(samples(9, "timeout"), settings, "step 1")
        watch_undecided([], settings, "step 1")
        assert not caplog.records
        watch_undecided(samples(8, "timeout", "timeout"), settings, "step 2")
    assert "step 2: 20.0% of 10 outputs are undecided (2 timeout); they are left" in caplog.text
    reasons = [
        "crashed",
        "error: KeyError: 'a' (my.py:3)",
        "error: KeyError: 'b' (my.py:3)",
        "timeout",
    ]
    with pytest.raises(VerifierError, match=r"step 3: 60.0% .* above verification.stop_") as raised:
        watch_undecided(samples(4, "too long", "too long", *reasons), settings, "step 3")
    assert "(2 too long; 1 crashed; 1 error: KeyError: 'a' (my.py:3); 2 other reasons)" in str(
        raised.value
    )


@pytest.mark.parametrize("canary", ["solutions", "off"])
@pytest.mark.parametrize(
    ("function", "returned"), [("none", "None (NoneType)"), ("two", "2 (int)")]
)
def test_a_function_that_returns_no_verdict_is_found(
    tmp_path: Path, function: str, returned: str, canary: str
) -> None:
    with pytest.raises(VerifierError) as raised:
        try_on(config(tmp_path, verifier=f"misbehaving:{function}", canary=canary), GSM8K)
    assert str(raised.value) == (
        f"verification.verifier is 'misbehaving:{function}': with the reference '1' and the output "
        f"'so it is\\n#### 1' the verifier returned {returned}, not True, False, a number in "
        "[0, 1], a Verdict, or one of these with the answer it read."
    )


def test_a_check_that_returns_no_verdict_is_found(tmp_path: Path) -> None:
    with pytest.raises(VerifierError, match=r"the check misbehaving:check_none returned None"):
        try_on(config(tmp_path, checks=("misbehaving:check_none",)), GSM8K)


def test_a_function_that_fails_is_found(tmp_path: Path) -> None:
    with pytest.raises(
        VerifierError, match=r"it failed: TypeError: not 'so it is.*misbehaving.py:"
    ):
        try_on(config(tmp_path, verifier="misbehaving:fails"), GSM8K)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"verifier": "lenient_last_number"}, "accepts guesses"),
        ({"verifier": "random"}, "name the rule that evaluates"),
        ({"verifier": "m:f", "comparison": "math"}, "comparison does nothing beside verifier"),
        ({"random_rate": 0.3}, "random_rate acts only with the verifier 'random'"),
        ({"warn_undecided": 1.5}, "warn_undecided is 1.5: it must lie in"),
        ({"memory_mb": 0}, "verification.memory_mb is 0"),
    ],
)
def test_bad_settings(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **settings)


def test_an_evaluation_by_lot_is_refused() -> None:
    with pytest.raises(ConfigError, match="an evaluation with random verdicts says nothing"):
        EvaluationConfig(verifier="random")
