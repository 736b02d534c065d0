"""Selection: which accepted outputs are kept."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.config import SelectionConfig
from rft_jax.training.selection import (
    capped,
    distinct,
    equations,
    equations_key,
    reduced,
    text_key,
)
from rft_jax.types import Sample, Verdict

TEXTS = ["1+1=2", "1 + 1 = 2", "so 1+1=2", "none", "no  ne", "no ne", "", "2+1=3"]


def sample(question: int, text: str, index: int = 0) -> Sample:
    return Sample(question, index, 0, text, (1,), (0.0,), True, Verdict.CORRECT, "equal")


SPECS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(TEXTS)), max_size=20)
DEDUPE = st.sampled_from(["none", "text", "equations"])
KEYS = {"none": id, "text": text_key, "equations": equations_key}


def made(specs: list[tuple[int, str]]) -> list[Sample]:
    """Samples of (question, text); the type checker draws random numbers, so not in a strategy."""
    return [sample(*spec, index) for index, spec in enumerate(specs)]


def is_subsequence(part: list[Sample], whole: list[Sample]) -> bool:
    rest = iter(whole)
    return all(any(one is other for other in rest) for one in part)


@given(SPECS, DEDUPE)
def test_distinct_keeps_the_first_of_each_key(specs: list[tuple[int, str]], dedupe: str) -> None:
    samples = made(specs)
    kept = distinct(samples, dedupe)
    assert is_subsequence(kept, samples)
    assert distinct(kept, dedupe) == kept
    if dedupe == "none":
        assert kept == samples
        return
    keys = [(one.question_id, KEYS[dedupe](one.text)) for one in kept]
    assert len(set(keys)) == len(keys)
    assert set(keys) == {(one.question_id, KEYS[dedupe](one.text)) for one in samples}
    for one, key in zip(kept, keys, strict=True):
        first = next(s for s in samples if (s.question_id, KEYS[dedupe](s.text)) == key)
        assert one is first


@given(SPECS, st.integers(1, 5))
def test_a_cap_keeps_the_first_of_each_question(specs: list[tuple[int, str]], most: int) -> None:
    samples = made(specs)
    kept = capped(samples, most)
    assert is_subsequence(kept, samples)
    assert capped(kept, most) == kept
    counts = Counter(one.question_id for one in samples)
    assert Counter(one.question_id for one in kept) == {
        question: min(count, most) for question, count in counts.items()
    }
    assert capped(samples, 0) == samples


@given(SPECS, DEDUPE, st.integers(0, 3))
def test_select_dedupes_and_then_caps(specs: list[tuple[int, str]], dedupe: str, most: int) -> None:
    samples = made(specs)
    unique, kept = reduced(samples, SelectionConfig(dedupe=dedupe, max_per_question=most))
    assert kept == capped(distinct(samples, dedupe), most)
    assert len(kept) <= len(unique) == len(distinct(samples, dedupe)) <= len(samples)


def test_equal_outputs_of_different_questions_are_both_kept() -> None:
    samples = [sample(0, "1+1=2"), sample(1, "1+1=2")]
    for dedupe in ("text", "equations"):
        assert distinct(samples, dedupe) == samples


@given(st.text(alphabet="ab \n\t"))
def test_white_space_alone_makes_no_text_distinct(text: str) -> None:
    assert text_key(f"  {text}\n") == text_key(text) == text_key(text.replace(" ", " \n "))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
            "She sold 48+24 = <<48+24=72>>72 clips altogether.\n#### 72",
            ["48/2=24", "48+24=72"],
        ),
        ("3 + 4 = 7\n7 * 2 = 14\n#### 14", ["3+4=7", "7*2=14"]),
        ("(3 + 4) * 2 = 14", ["(3+4)*2=14"]),
        ("0.5 * 3 = 1.5.", ["0.5*3=1.5"]),
        ("500 * 3 = 1,500", ["500*3=1,500"]),
        ("3 - 5 = -2", ["3-5=-2"]),
        ("1 + 2 = 3 + 4 = 7", ["1+2=3", "+4=7"]),
        ("x = 3 + 4 = 7", ["3+4=7"]),
        ("He is 5\n3 + 4 = 7", ["3+4=7"]),  # an equation lies on one line
        ("x = 3", []),
        ("3 + 4 = x", []),
        ("She pays 12 dollars. #### 12", []),
        ("", []),
    ],
)
def test_equations_of_a_solution(text: str, expected: list[str]) -> None:
    assert equations(text) == expected


def test_the_words_around_equations_do_not_matter_their_order_does() -> None:
    first = "May: 48/2 = <<48/2=24>>24.\nAll: 48+24=<<48+24=72>>72\n#### 72"
    again = "In May she sold <<48/2=24>>24 and so <<48 + 24 = 72>>72 in all.\n#### 72"
    swapped = "<<48+24=72>> <<48/2=24>>\n#### 72"
    assert equations_key(first) == equations_key(again) != equations_key(swapped)


def test_outputs_without_equations_are_told_apart_by_their_text() -> None:
    samples = [sample(0, "it is\n#### 5"), sample(0, "five\n#### 5"), sample(0, "it is #### 5")]
    assert distinct(samples, "equations") == samples[:2]
    # Nor can a text pass for a list of equations.
    assert equations_key("1+1=2") != text_key("1+1=2") != equations_key("equations:1+1=2 x")


@pytest.mark.slow
@pytest.mark.parametrize("piece", ["1 ", "1", "+ 1", ". ", "=", "= 1", "1=", "=1,"])
def test_degenerate_outputs_take_no_time(piece: str) -> None:
    """A policy that repeats itself must not hold up the run.

    At this length a search that is not linear would never end.
    """
    assert equations_key(piece * 200_000)
