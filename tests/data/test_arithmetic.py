"""The generated word problems: right, distinct, within their bounds, the same for ever."""

import hashlib
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.data.arithmetic import PLAIN, REWORDED, SEED, problems, splits

OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


@pytest.fixture(scope="module")
def published():
    return splits()


def check(problem):
    """Every line computes; values stay within 1 to 99; the last one is the answer."""
    *lines, last = problem.solution.split("\n")
    assert 2 <= len(lines) <= 4
    for line in lines:
        left, sign, right, result = re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+)", line).groups()
        assert OPERATIONS[sign](int(left), int(right)) == int(result)
        assert 1 <= int(result) <= 99
    assert last == f"#### {problem.answer}" == f"#### {result}"


def retold(question):
    """The answer from the question's words alone."""
    told, events, asked = re.fullmatch(r"(.*?\.) (.*\.) (How many .*\?)", question).groups()
    value = int(re.fullmatch(r"[A-Z]\w+ has (\d+) \w+\.", told)[1])
    for event in re.split(r", | and ", re.fullmatch(r"(?:She|He) (.*)\.", events)[1]):
        numbers = [int(digits) for digits in re.findall(r"\d+", event)]
        match event.split()[0]:
            case "buys":
                value += numbers[0] * numbers[1]
            case "gives":
                value -= numbers[0] * numbers[1]
            case "soon" | "then" | "later" | "now" | "next" | "at":
                value *= numbers[0]
            case word if word in PLAIN.gains + REWORDED.gains:
                value += numbers[0]
            case word if word in PLAIN.losses + REWORDED.losses:
                value -= numbers[0]
            case other:
                raise AssertionError(other)
        assert 1 <= value <= 99
    assert told.split()[-1].strip(".") == asked.split()[2]
    return str(value)


@pytest.mark.slow
def test_every_problem_is_right(published):
    for problem in (problem for split in published.values() for problem in split):
        check(problem)
        assert retold(problem.question) == problem.answer


@pytest.mark.slow
def test_splits_have_their_sizes_and_share_nothing(published):
    assert {name: len(rows) for name, rows in published.items()} == {
        "demonstrations": 2000, "train": 8192, "validation": 1024, "test": 2048,
        "reworded_train": 8192, "reworded_validation": 1024, "reworded_test": 2048,
    }  # fmt: skip
    rows = [problem for split in published.values() for problem in split]
    assert len({problem.question for problem in rows}) == len(rows)
    assert len({problem.solution for problem in rows}) == len(rows)


@pytest.mark.slow
def test_splits_are_pieces_of_one_stream(published):
    assert list(problems(SEED, 2100)) == published["demonstrations"] + published["train"][:100]


@pytest.mark.slow
def test_splits_are_alike(published):
    """Pieces of one stream: the same share of problems of each length in each. The second family
    has fewer short ones: their solutions are taken."""
    for name, rows in published.items():
        reworded = name.startswith("reworded")
        lengths = Counter(problem.solution.count("\n") for problem in rows)
        assert set(lengths) == {2, 3, 4}
        for number in lengths.values():
            assert 0.28 - 0.04 * reworded < number / len(rows) < 0.38 + 0.02 * reworded


def test_the_vocabulary_is_small(published):
    words = {
        word
        for problem in published["train"]
        for word in re.findall(r"[A-Za-z]+", problem.question)
    }
    assert 70 <= len(words) <= 130
    assert max(len(problem.question) for problem in published["train"]) < 160


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.integers(0, 60), st.integers(0, 60))
def test_problems_are_a_function_of_the_seed(seed, shorter, longer):
    many = list(problems(seed, shorter + longer))
    assert len(many) == shorter + longer
    assert list(problems(seed, shorter)) == many[:shorter]
    assert len({problem.question for problem in many}) == len(many)
    for problem in many:
        check(problem)


def test_seeds_differ():
    assert list(problems(0, 20)) != list(problems(1, 20))


def test_the_published_splits_never_change(published):
    """Golden digest, made by this generator. Prepared copies of the data carry VERSION of
    arithmetic_builder.py and are not made again: who changes the problems must raise VERSION."""
    for reworded, golden in enumerate(GOLDEN):
        digest = hashlib.sha256()
        for name, rows in published.items():
            if name.startswith("reworded") == bool(reworded):
                digest.update(name.encode())
                for problem in rows:
                    said = (problem.question, problem.answer, problem.solution)
                    digest.update(repr(said).encode())
        assert digest.hexdigest() == golden


GOLDEN = (
    "3723c345c6f5eb3e972b3de3442da73f15b1e55ca08ae48086293fc2877d8b68",
    "74f672efd5357c28dbee93e83086003b88091a6c756f149f80d978f353393042",
)


def test_most_reworded_problems_have_a_word_that_the_others_do_not(published):
    new, old = ({word for words in family for word in words} for family in (REWORDED, PLAIN))
    assert not new & old

    def share(split):
        told = [problem.question for problem in published[split]]
        return sum(any(word in question for word in new) for question in told) / len(told)

    assert share("reworded_train") > 0.85
    assert share("demonstrations") == share("train") == 0
