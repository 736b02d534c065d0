"""How our verifier of mathematical answers agrees with math-verify on math-verify's own tests.

    pip download --no-deps --no-binary :all: math-verify==0.9.0 && tar xf math_verify-0.9.0.tar.gz
    python -m benchmarks.verifier_agreement --tests math_verify-0.9.0/tests

The cases (gold, prediction, expected) are read from the files as literals; no test is run, and
cases that are computed are left out. Both sides get what stands in `\\boxed{}` or `$...$`, since
finding the answer in a text is another job; cases whose text states no single answer are left out.
"""

from __future__ import annotations

import argparse
import ast
import logging
import re
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from rft_jax.types import Verdict
from rft_jax.verification import symbolic
from rft_jax.verification.compare import NOT_UNDERSTOOD, compare

_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<![\\$])\$([^$\n]+?)(?<!\\)\$|\\\(([^\n]+?)\\\)|\\\[(.+?)\\\]", re.DOTALL
)
Compare = Callable[[str, str], bool | None]


class Case(NamedTuple):
    """A pair with the label that math-verify's authors gave it."""

    reference: str
    answer: str
    expected: bool


def read_cases(folder: Path) -> list[Case]:
    """The cases of all test files in a folder, each once."""
    found: dict[Case, None] = {}
    for path in sorted(folder.glob("test_*.py")):
        for names, values in _parameters(ast.parse(path.read_text(encoding="utf-8"))):
            if names[:2] not in (["gold", "pred"], ["gold", "prediction"]):
                continue
            settings = dict(zip(names, values, strict=True))
            # Other settings than the usual ones ask for tolerance or for looser comparison.
            if settings.get("precision", 6) != 6 or settings.get("strict", True) is not True:
                continue
            expected = settings.get("expected", settings.get("result"))
            reference, answer = stated(str(values[0])), stated(str(values[1]))
            if expected is not None and reference and answer:
                found[Case(reference, answer, bool(expected))] = None
    return list(found)


def stated(text: str) -> str:
    """What the one box or the one formula of a text says; the text itself when it is short and has
    neither; empty when it states several things or is prose."""
    boxes = list(_boxes(text))
    if boxes:
        return boxes[0].strip() if len(set(boxes)) == 1 else ""
    formulas = list(_FORMULA.finditer(text))
    if formulas:
        around = text.replace(formulas[0][0], "")
        alone = len(formulas) == 1 and not re.search("[0-9$]", around)
        return "".join(formulas[0].groups("")).strip() if alone else ""
    prose = re.search(r"[A-Za-z]{3,} [A-Za-z]|\$|[a-z] :", text)
    return text.strip() if len(text) < 40 and not prose else ""


def _boxes(text: str) -> Iterator[str]:
    for match in re.finditer(r"\\boxed\s*\{", text):
        depth, start = 1, match.end()
        for at in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if not depth:
                yield text[start:at]
                break


def _parameters(tree: ast.Module) -> Iterator[tuple[list[str], tuple[object, ...]]]:
    """(names, values) of each literal row of each `pytest.mark.parametrize(names, rows)`."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if node.func.attr != "parametrize" or len(node.args) != 2:
            continue
        try:
            names = [name.strip() for name in ast.literal_eval(node.args[0]).split(",")]
        except (ValueError, AttributeError):
            continue
        for row in getattr(node.args[1], "elts", []):
            try:
                values = ast.literal_eval(row)
            except ValueError:  # computed
                continue
            if isinstance(values, tuple) and len(values) == len(names):
                yield names, values


def ours(answer: str, reference: str) -> bool | None:
    """What `comparison="math"` says of the pair; None for undecided or not understood."""
    judged = compare(answer, reference, math=True, tolerance=Fraction(0))
    understood = judged.verdict is not Verdict.UNDECIDED and judged.reason != NOT_UNDERSTOOD
    return judged.verdict is Verdict.CORRECT if understood else None


def exact(answer: str, reference: str) -> bool | None:
    """The same without math-verify."""
    judged = compare(answer, reference, math=False, tolerance=Fraction(0))
    understood = judged.verdict is not Verdict.UNDECIDED and judged.reason != NOT_UNDERSTOOD
    return judged.verdict is Verdict.CORRECT if understood else None


def math_verify(answer: str, reference: str) -> bool:
    """math-verify as its documentation has it called, on the two formulas."""
    from math_verify import parse, verify

    return bool(
        verify(
            parse(f"${reference}$", parsing_timeout=None),
            parse(f"${answer}$", parsing_timeout=None),
            timeout_seconds=None,
        )
    )


def timed(decide: Compare, cases: list[Case]) -> tuple[list[bool | None], float]:
    """The verdicts, and pairs per second of the processor; nothing of a pair is known before."""
    decide("x + 1", "1 + x")  # whatever is loaded on first use
    start = time.process_time()
    verdicts = [decide(case.answer, case.reference) for case in cases]
    return verdicts, len(cases) / (time.process_time() - start)


def main() -> None:
    """Print agreement, rates and a table of the disagreements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--tests", type=Path, required=True, help="tests folder of math-verify")
    cases = read_cases(parser.parse_args().tests)
    if not cases:
        raise SystemExit("--tests: no cases there; give the tests folder of math-verify's sdist.")
    if not symbolic.available():
        raise SystemExit("math-verify is not installed: pip install math-verify==0.9.0")
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of having no time limit
    symbolic.warm_up()
    exactly, exact_rate = timed(exact, cases)
    decided, our_rate = timed(ours, cases)
    theirs, their_rate = timed(math_verify, cases)
    labels = [case.expected for case in cases]
    count = len(cases)
    print(f"{count} pairs; decided by the exact layer: {sum(v is not None for v in exactly)}")
    for name, verdicts in (("ours", decided), ("math-verify", theirs)):
        agreeing = sum(bool(one) == label for one, label in zip(verdicts, labels, strict=True))
        print(f"{name}: {agreeing} of {count} as labelled (undecided counts as unequal)")
    print(f"ours: {our_rate:,.0f} pairs/s of processor time ({exact_rate:,.0f} in the exact layer)")
    print(f"math-verify: {their_rate:,.0f} pairs/s; ratio {our_rate / their_rate:,.1f}\n")
    print("| reference | answer | label | ours | math-verify | who is right |\n|" + " --- |" * 6)
    for case, one, other in zip(cases, decided, theirs, strict=True):
        if bool(one) != case.expected or bool(one) != other:
            cells = [f"`{text}`".replace("|", "\\|") for text in case[:2]]
            print(f"| {' | '.join(cells)} | {case.expected} | {one} | {other} | |")


if __name__ == "__main__":
    main()
