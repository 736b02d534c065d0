r"""The MATH problems (Hendrycks et al., arXiv 2103.03874) as train.jsonl and test.jsonl.

    python experiments/math_data.py MATH data/math --leave-out-unread --longest 1200

MATH is the official folder: train/SUBJECT/N.json and test/SUBJECT/N.json, each with problem, level,
type and solution. A row has question, answer, solution, level and subject. The answer is what the
rule `boxed` reads in the solution, as it will in an output: the last \boxed{}, or the list of all
boxes where they differ. TeX lets `\boxed 2` stand for `\boxed{2}`: the braces are added.

Rows are in a random order, the same every time, so that a slice such as [-256:] is a sample of all
subjects and levels. `--longest` leaves out problems of more characters: those with drawings have
some thousand, and every prompt takes the memory of the longest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rft_jax.checkpoint.provenance import write_atomically
from rft_jax.types import Judgement, Verdict
from rft_jax.verification.extract import boxed_answer
from rft_jax.verification.rules import Verifier, VerifierSpec, load_verifier

SPLITS = ("train", "test")
FIELDS = ("problem", "level", "type", "solution")
_BARE_BOX = re.compile(r"\\(boxed|fbox)\s+([^\s{}\\$])")


class MathDataError(ValueError):
    """A file of MATH cannot be used; the message names it and the remedy."""


class Unread(NamedTuple):
    """A problem whose own solution the rule does not judge correct, and why."""

    path: Path
    reason: str


class Split(NamedTuple):
    """The rows of a split, the problems that make none, and how many are too long."""

    rows: list[dict[str, str]]
    unread: list[Unread]
    too_long: int


def read_split(folder: Path, longest: int = 0) -> Split:
    """The problems of FOLDER/SUBJECT/N.json, those of more than `longest` characters left out; 0
    for all.

    Raises MathDataError when there are none, or for a file that is no such problem.
    """
    paths = sorted(folder.glob("*/*.json"), key=lambda path: _order(path, folder))
    if not paths:
        raise MathDataError(
            f"{folder}: it holds no SUBJECT/N.json: name the folder that MATH was unpacked into, "
            "with train and test in it."
        )
    judge = load_verifier(VerifierSpec("boxed"))
    rows, unread, too_long = list[dict[str, str]](), list[Unread](), 0
    for path in paths:
        problem = _problem(path)
        if longest and len(problem["problem"]) > longest:
            too_long += 1
            continue
        solution = _BARE_BOX.sub(r"\\\1{\2}", problem["solution"])
        answer, reason = boxed_answer(solution)
        if answer is not None:
            reason = _disagreement(judge, answer, solution)
        if answer is None or reason:
            unread.append(Unread(path, reason))
            continue
        rows.append(
            {
                "question": problem["problem"],
                "answer": answer,
                "solution": solution,
                "level": problem["level"],
                "subject": problem["type"],
            }
        )
    return Split(rows, unread, too_long)


def _order(path: Path, folder: Path) -> str:
    """A pseudorandom sort key: a digest of the file's name within the folder."""
    return hashlib.sha256(path.relative_to(folder).as_posix().encode()).hexdigest()


def _disagreement(judge: Verifier, answer: str, solution: str) -> str:
    """Why the rule does not judge a solution correct that states the answer; empty if it does."""
    judgement = judge(answer, solution)
    assert isinstance(judgement, Judgement)
    return "" if judgement.verdict is Verdict.CORRECT else judgement.reason


def _problem(path: Path) -> dict[str, str]:
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MathDataError(
            f"{path}: cannot be read as JSON ({error}): unpack MATH again."
        ) from error
    if not isinstance(value, dict):
        raise MathDataError(
            f"{path}: it is a JSON {type(value).__name__}, expected an object with "
            f"{', '.join(FIELDS)}: unpack MATH again."
        )
    for field in FIELDS:
        text = value.get(field)
        if not isinstance(text, str) or not text.strip():
            raise MathDataError(
                f"{path}: {field} is {text!r}, expected text: unpack MATH again, or remove the "
                "file to do without the problem."
            )
    return value


def convert(
    source: Path, target: Path, *, leave_out_unread: bool, longest: int = 0
) -> dict[str, Split]:
    """Write TARGET/train.jsonl and TARGET/test.jsonl. longest: see `read_split`.

    Raises:
        MathDataError: as in read_split, and for problems that make no row, unless
            leave_out_unread is set.
    """
    splits = {name: read_split(source / name, longest) for name in SPLITS}
    unread = [one for split in splits.values() for one in split.unread]
    if unread and not leave_out_unread:
        raise MathDataError(
            f"{unread[0].path}: the rule boxed cannot read the answer of its solution "
            f"({unread[0].reason}), the first of {len(unread)} such files: fix them, or leave "
            "these problems out with --leave-out-unread."
        )
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, split in splits.items():
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in split.rows]
            write_atomically(target / f"{name}.jsonl", "".join(lines))
    except OSError as error:
        raise MathDataError(
            f"{target}: cannot write here ({error.strerror}): name another folder."
        ) from error
    return splits


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert; print how many problems made a row and which did not. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("source", type=Path, metavar="MATH", help="the official folder")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder for the two files")
    parser.add_argument(
        "--leave-out-unread",
        action="store_true",
        help="leave out problems whose answer the rule boxed cannot read, and list them",
    )
    parser.add_argument(
        "--longest",
        type=int,
        default=0,
        metavar="CHARACTERS",
        help="leave out problems of more characters; 0 (the default) for none",
    )
    given = parser.parse_args(arguments)
    if given.longest < 0:
        parser.error(f"--longest is {given.longest}: it must be 0 or more.")
    try:
        splits = convert(
            given.source,
            given.target,
            leave_out_unread=given.leave_out_unread,
            longest=given.longest,
        )
    except MathDataError as error:
        print(f"math_data: error: {error}", file=sys.stderr)
        return 2
    for name, split in splits.items():
        total = len(split.rows) + len(split.unread) + split.too_long
        long = f"; {split.too_long} are too long" if split.too_long else ""
        print(f"{given.target / name}.jsonl: {len(split.rows)} of {total} problems{long}")
        for one in split.unread:
            print(f"  left out: {one.path} ({one.reason})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
