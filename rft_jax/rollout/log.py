"""rollouts/: every sampled output of a run, one JSON object a line, one file a rollout; of a job of
several processes one file for each of them.

The log is data: RFT can be run from it (pool.from_rollouts), and the report browses it.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import NamedTuple

from rft_jax.distributed.collectives import is_main
from rft_jax.errors import DataError
from rft_jax.io.jsonl import JSON, Fields, numbered_lines, parse_line
from rft_jax.io.paths import Folder, folder_of, make, write_atomically
from rft_jax.keys import Purpose
from rft_jax.types import Question, Sample, Verdict

_PURPOSES: dict[str, Purpose] = {purpose.name.lower(): purpose for purpose in Purpose}
_FIELDS: Fields = {
    "question_id": int,
    "sample_index": int,
    "step": int,
    "text": str,
    "tokens": list,
    "log_probs": list,
    "finished": bool,
    "verdict": str,
    "reason": str,
    "question": str,
    "answer": JSON,
    "seed": int,
}

logger = logging.getLogger(__name__)


class Writer(NamedTuple):
    """Which process of how many writes; they are numbered from 0."""

    process: int = 0
    processes: int = 1


_ALONE = Writer()


def path_of(folder: Folder, step: int, writer: Writer = _ALONE) -> Folder:
    """The file of one rollout, or a process's part of it."""
    name = f"step-{step:06d}"
    if writer.processes > 1:
        name += f".{writer.process:03d}-of-{writer.processes:03d}"
    return folder / f"{name}.jsonl"


_NAME = re.compile(r"step-([0-9]+)(?:\.[0-9]+-of-([0-9]+))?\.jsonl")


def _files(folder: Folder, pattern: str) -> dict[int, list[Folder]]:
    """The files of each rollout that is whole, by step, in the order of processes."""
    sets: dict[tuple[int, int], list[Folder]] = {}
    for path in sorted(folder.glob(pattern)):
        if found := _NAME.fullmatch(path.name):
            sets.setdefault((int(found[1]), int(found[2] or 1)), []).append(path)
    whole = [(step, paths) for (step, count), paths in sorted(sets.items()) if len(paths) == count]
    return dict(reversed(whole))  # of several sets of a step the one of fewest processes


def remove_from(folder: Folder, step: int) -> None:
    """Remove the rollouts of this step and later ones."""
    for path in list(folder.glob("step-*.jsonl")):
        if (named := _NAME.fullmatch(path.name)) and int(named[1]) >= step:
            path.unlink()


def is_whole(folder: Folder, step: int, outputs: int) -> bool:
    """Whether all outputs of a rollout are there; warns of one whose files are and hold others.

    outputs: how many it has.
    """
    files = _files(folder, f"step-{step:06d}*.jsonl").get(step, [])
    if not files:
        return False
    try:
        damage = _damage(files, [one for file in files for one in _read(file)], outputs)
    except DataError as error:
        damage = str(error)
    if damage:
        where = ", ".join(map(str, files))
        logger.warning("%s: sampled again, as it is damaged: %s", where, damage)
    return not damage


def _damage(files: Sequence[Folder], drawn: Sequence[_Drawn], outputs: int | None) -> str:
    """What is wrong with the files of a rollout, by what they hold; empty for nothing."""
    if not drawn or (outputs is not None and len(drawn) != outputs):
        expected = "" if outputs is None else f" instead of {outputs}"
        return f"{len(drawn)} outputs are there{expected}"
    named = _NAME.fullmatch(files[0].name)
    assert named is not None, files
    if others := {one.sample.step for one in drawn} - {int(named[1])}:
        return f"outputs of step {max(others)} are there"
    places = {(one.sample.question_id, one.sample.sample_index) for one in drawn}
    return "an output is there twice" if len(places) < len(drawn) else ""


def write(
    folder: Folder,
    step: int,
    samples: Iterable[Sample],
    questions: Sequence[Question],
    *,
    seed: int,
    purpose: Purpose = Purpose.ROLLOUT,
    writer: Writer = _ALONE,
    outputs: int | None = None,
) -> None:
    """Write one rollout's file, whole or not at all; one from a killed attempt is replaced.

    Process 0 removes what an attempt with another number of processes has left.

    Args:
        folder: RUN/rollouts.
        step: of the rollout.
        samples: of this process.
        questions: those of the samples, and others.
        seed: of the run.
        purpose: of the samples' keys.
        writer: this process.
        outputs: of the rollout in all processes; None for as many as there are samples.
    """
    make(folder)
    samples = list(samples)
    by_id = {question.id: question for question in questions}
    path = path_of(folder, step, writer)
    if writer.process == 0:
        mine = {path_of(folder, step, Writer(n, writer.processes)) for n in range(writer.processes)}
        for old in set(folder.glob(f"step-{step:06d}*.jsonl")) - mine:
            old.unlink()
    lines = []
    for sample in samples:
        question = by_id[sample.question_id]
        facts = {
            "question": question.text,
            "answer": question.answer,
            "seed": seed,
            "purpose": purpose.name.lower(),
            "outputs": len(samples) if outputs is None else outputs,
        }
        told = {name: value for name, value in asdict(sample).items() if value is not None}
        if not sample.steps:
            del told["steps"]
        lines.append(json.dumps(told | facts, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(lines))


def read_step(folder: Folder, step: int, outputs: int) -> list[tuple[Question, Sample]]:
    """One rollout's samples, each with its question, one process's after the other's.

    outputs: how many it has. Raises DataError as `read` does, and where some are missing.
    """
    return [(one.question, one.sample) for one in _whole(_of_step(folder, step), outputs)]


def _whole(files: Sequence[Folder], outputs: int | None = None) -> list[_Drawn]:
    """What the files of one rollout hold; DataError where that are not all of its outputs.

    outputs: how many these are; None for what the lines say, where they do.
    """
    drawn = [one for file in files for one in _read(file)]
    expected = outputs or max((one.outputs for one in drawn if one.outputs), default=None)
    if reason := _damage(files, drawn, expected):
        where = ", ".join(map(str, files))
        raise DataError(f"{where}: {reason}: copy the file again, or sample in a new --workdir.")
    return drawn


def _of_step(folder: Folder, step: int) -> list[Folder]:
    return _files(folder, f"step-{step:06d}*.jsonl").get(step, [path_of(folder, step)])


def purpose_of(folder: Folder, step: int) -> Purpose:
    """What the keys of a rollout were for."""
    drawn = (one.purpose for file in _of_step(folder, step) for one in _read(file))
    return next(drawn, Purpose.POOL)


def read(path: Folder) -> list[tuple[Question, Sample]]:
    """One rollout's samples, each with its question (without solution).

    Raises DataError, naming file and line, for a damaged line.
    """
    return [(drawn.question, drawn.sample) for drawn in _read(path)]


class _Drawn(NamedTuple):
    """A line of a log. seed and purpose: of the sample's keys; outputs: of its rollout, None where
    an earlier version did not say."""

    question: Question
    sample: Sample
    seed: int
    purpose: Purpose
    outputs: int | None


def _read(path: Folder) -> list[_Drawn]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such rollout file; name a RUN/rollouts folder.")
    drawn = []
    for number, line in numbered_lines(path):
        where = f"{path}:{number}"
        row = parse_line(line, where, _FIELDS)
        if row["verdict"] not in list(Verdict):
            raise DataError(
                f"{where}: field 'verdict' is {row['verdict']!r}, expected one of "
                f"{', '.join(Verdict)}: remove the line."
            )
        tokens, log_probs = row["tokens"], row["log_probs"]
        numbers = all(type(token) is int for token in tokens) and all(
            type(log_prob) in (int, float) for log_prob in log_probs
        )
        reward = row.get("reward")  # only where a checker says one
        if reward is not None and type(reward) not in (int, float):
            raise DataError(
                f"{where}: field 'reward' is {reward!r}, expected a number: remove the line."
            )
        steps = row.get("steps", [])  # likewise
        if not _are_steps(steps, len(tokens)):
            raise DataError(
                f"{where}: field 'steps' is {steps!r}, expected pairs of a token's index and a "
                "number: remove the line."
            )
        if not numbers or len(tokens) != len(log_probs):
            raise DataError(
                f"{where}: 'tokens' and 'log_probs' must be equally many token ids and numbers: "
                "remove the line."
            )
        question = Question(id=row["question_id"], text=row["question"], answer=row["answer"])
        sample = Sample(
            question_id=row["question_id"],
            sample_index=row["sample_index"],
            step=row["step"],
            text=row["text"],
            tokens=tuple(tokens),
            log_probs=tuple(log_probs),
            finished=row["finished"],
            verdict=Verdict(row["verdict"]),
            reason=row["reason"],
            stated=row.get("stated"),
            reward=reward,
            steps=tuple((end, value) for end, value in steps),
        )
        # Lines of earlier versions say nothing: theirs were all sampled as rollouts.
        purpose = _PURPOSES.get(str(row.get("purpose", "rollout")))
        if purpose is None:
            raise DataError(
                f"{where}: field 'purpose' is {row['purpose']!r}, expected one of "
                f"{', '.join(_PURPOSES)}: remove the line."
            )
        outputs = row.get("outputs")
        outputs = outputs if type(outputs) is int else None
        drawn.append(_Drawn(question, sample, row["seed"], purpose, outputs))
    return drawn


def _are_steps(value: object, length: int) -> bool:
    """Whether it is a list of steps of an output of this many tokens."""
    if not isinstance(value, list):
        return False
    ends = [-1]
    for step in value:
        match step:
            case [int(end), float(reward)] if math.isfinite(reward):
                ends.append(end)
            case _:
                return False
    return all(a < b for a, b in itertools.pairwise(ends)) and ends[-1] < length


def read_folders(folders: Sequence[str]) -> list[tuple[Question, Sample]]:
    """All samples of several runs' logs, in the order of folders and steps.

    Warns of outputs of two logs that have the same keys. Raises DataError for a folder without
    rollouts, for a damaged one, and when two logs use one question id for different questions (they
    come from different sources and cannot be united).
    """
    pairs: list[tuple[Question, Sample]] = []
    keys: dict[tuple[int, ...], int] = {}
    shared: Counter[tuple[str, str]] = Counter()
    for place, folder in enumerate(folders):
        steps = _files(folder_of(folder), "step-*.jsonl")
        if not steps:
            raise DataError(f"{folder}: no step-*.jsonl here; name a RUN/rollouts folder.")
        for step in sorted(steps):
            for one in _whole(steps[step]):
                pairs.append((one.question, one.sample))
                address = (one.sample.step, one.sample.question_id, one.sample.sample_index)
                first = keys.setdefault((one.seed, one.purpose, *address), place)
                shared[folders[first], folder] += first != place
    seen: dict[int, str] = {}
    for question, _ in pairs:
        if seen.setdefault(question.id, question.text) != question.text:
            raise DataError(
                f"{', '.join(folders)}: question {question.id} stands for two different questions;"
                " unite only logs of runs on one source."
            )
    for (first_folder, folder), count in shared.items():
        if count and is_main():
            logger.warning(
                "%d outputs of %s were sampled with the same keys as outputs of %s, in runs of one "
                "seed: they are correlated, and the same where the policies are; unite logs of "
                "runs of different seeds.",
                count, folder, first_folder,
            )  # fmt: skip
    return pairs
