"""Word problems in the style of GSM8K, generated: the task of the first study.

A problem tells of one person's things: a start, then events that amount to 2 to 4 additions,
subtractions and multiplications whose running value stays within 1 to 99, then the question. Its
solution is one operation a line and the answer:

    Mia has 12 shells. She buys 3 bags of 6 and loses 5. How many shells does she have?

    3*6=18
    12+18=30
    30-5=25
    #### 25

The splits `reworded_*` tell gains, losses and growth in words that the others do not have: a second
family, for studies of questions that change.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

SEED = 20240203
"""Seed of the published splits; another value makes another data set."""

SPLITS = {
    "demonstrations": 2000, "train": 8192, "validation": 1024, "test": 2048,
    "reworded_train": 8192, "reworded_validation": 1024, "reworded_test": 2048,
}  # fmt: skip
"""Number of problems in each split."""

SMALLEST, LARGEST = 1, 99
STARTS = range(5, 31)
AMOUNTS = range(3, 21)
FACTORS = range(2, 10)
NUM_OPERATIONS = range(2, 5)

NAMES = {
    "She": ("Ada", "Eva", "Ida", "Kim", "Lea", "Mia", "Nora", "Rosa", "Zoe"),
    "He": ("Ali", "Ben", "Dan", "Ivan", "Leo", "Max", "Omar", "Sam", "Tom"),
}
OBJECTS = (
    "apples", "balls", "beads", "books", "cards", "coins", "cups", "eggs", "figs", "hats", "keys",
    "kites", "lemons", "nuts", "pears", "pens", "plums", "rings", "shells", "stamps", "stones",
    "toys",
)  # fmt: skip


class Words(NamedTuple):
    """How events are told."""

    gains: tuple[str, ...] = ("finds", "gets", "makes", "wins")
    losses: tuple[str, ...] = ("loses", "sells", "breaks", "uses")
    growths: tuple[str, ...] = ("soon has", "then has", "later has")


PLAIN = Words()
REWORDED = Words(
    gains=("picks", "earns", "bakes", "draws"),
    losses=("drops", "eats", "spends", "throws"),
    growths=("now has", "next has", "at last has"),
)
CONTAINERS = ("bags", "boxes", "packs")
RECEIVERS = ("friends", "cousins", "boys", "girls")
QUESTIONS = (
    "How many {objects} does {pronoun} have?",
    "How many {objects} are there now?",
    "How many {objects} are left?",
)

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Problem:
    """A question, its bare answer and the worked solution that ends in `#### answer`."""

    question: str
    answer: str
    solution: str


class _Event(NamedTuple):
    """Something that happens: what is told, its operations one a line, the new running value."""

    told: str
    operations: tuple[str, ...]
    value: int


def problems(seed: int, count: int) -> Iterator[Problem]:
    """`count` problems, a pure function of the seed; a longer stream begins with a shorter one.

    No two share a solution, so that a held-out problem is never a known one in other words; hence
    no two share a question.
    """
    return islice(_distinct_problems(seed, PLAIN, set()), count)


def splits() -> dict[str, list[Problem]]:
    """The published data: consecutive pieces of one stream for each family, in the order of their
    row numbers. No two problems share a solution, of whichever family they are."""
    seen = set[str]()
    plain, reworded = (
        _distinct_problems(SEED + family, words, seen)
        for family, words in enumerate((PLAIN, REWORDED))
    )
    return {
        name: list(islice(reworded if name.startswith("reworded") else plain, size))
        for name, size in SPLITS.items()
    }


def _distinct_problems(seed: int, words: Words, seen: set[str]) -> Iterator[Problem]:
    source = random.Random(seed)
    while True:
        problem = _problem(source, words)
        if problem.solution not in seen:
            seen.add(problem.solution)
            yield problem


def _pick(source: random.Random, choices: Sequence[Choice]) -> Choice:
    """One of the choices. Only `random()` promises its values to every Python version."""
    return choices[int(source.random() * len(choices))]


def _problem(source: random.Random, words: Words) -> Problem:
    pronoun = _pick(source, tuple(NAMES))
    name, objects = _pick(source, NAMES[pronoun]), _pick(source, OBJECTS)
    start = value = _pick(source, STARTS)
    wanted = _pick(source, NUM_OPERATIONS)
    told: list[str] = []
    operations: list[str] = []
    while len(operations) < wanted:
        event = _pick(source, EVENTS)(source, value, words)
        fits = len(operations) + len(event.operations) <= wanted
        if fits and SMALLEST <= event.value <= LARGEST:
            told.append(event.told)
            operations.extend(event.operations)
            value = event.value
    events = " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
    asked = _pick(source, QUESTIONS).format(objects=objects, pronoun=pronoun.lower())
    return Problem(
        question=f"{name} has {start} {objects}. {pronoun} {events}. {asked}",
        answer=str(value),
        solution="\n".join([*operations, f"#### {value}"]),
    )


def _gain(source: random.Random, value: int, words: Words) -> _Event:
    n = _pick(source, AMOUNTS)
    return _Event(f"{_pick(source, words.gains)} {n}", (f"{value}+{n}={value + n}",), value + n)


def _loss(source: random.Random, value: int, words: Words) -> _Event:
    n = _pick(source, AMOUNTS)
    return _Event(f"{_pick(source, words.losses)} {n}", (f"{value}-{n}={value - n}",), value - n)


def _growth(source: random.Random, value: int, words: Words) -> _Event:
    k = _pick(source, FACTORS)
    told = f"{_pick(source, words.growths)} {k} times as many"
    return _Event(told, (f"{k}*{value}={k * value}",), k * value)


def _purchase(source: random.Random, value: int, words: Words) -> _Event:
    k, m = _pick(source, FACTORS), _pick(source, FACTORS)
    new = value + k * m
    told = f"buys {k} {_pick(source, CONTAINERS)} of {m}"
    return _Event(told, (f"{k}*{m}={k * m}", f"{value}+{k * m}={new}"), new)


def _gift(source: random.Random, value: int, words: Words) -> _Event:
    k, m = _pick(source, FACTORS), _pick(source, FACTORS)
    new = value - k * m
    told = f"gives {m} to each of {k} {_pick(source, RECEIVERS)}"
    return _Event(told, (f"{k}*{m}={k * m}", f"{value}-{k * m}={new}"), new)


EVENTS: tuple[Callable[[random.Random, int, Words], _Event], ...] = (
    _gain, _loss, _growth, _purchase, _gift,
)  # fmt: skip
