"""rollouts/: every sampled output of a run, one JSON object a line, one file a rollout; of a job of
several processes one file for each of them.

The log is data: RFT can be run from it (pool.from_rollouts), and the report browses it. Every line
says how many outputs the rollout has in all its files, so that what is missing shows; versions up
to 0.1.0 did not.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import NamedTuple

from rft_jax.errors import DataError
from rft_jax.io.jsonl import numbered_lines, parse_line
from rft_jax.io.paths import Folder, folder_of, make, write_atomically
from rft_jax.types import Question, Sample, Verdict

logger = logging.getLogger(__name__)

_FIELDS = {
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
    "answer": str,
    "seed": int,
}


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


def is_whole(folder: Folder, step: int, outputs: int) -> bool:
    """Whether all outputs of a rollout are there; warns of one whose files are and hold others.

    outputs: how many it has.
    """
    files = _files(folder, f"step-{step:06d}*.jsonl").get(step, [])
    # Without parsing them: each line is written whole, with the newline that ends it.
    held = sum(file.read_bytes().count(b"\n") for file in files)
    if files and held != outputs:
        logger.warning("%s: sampled again, as it is damaged: %s", *_damage(files, held, outputs))
    return held == outputs


def _damage(files: Sequence[Folder], held: int, outputs: int | None) -> tuple[str, str]:
    """(the files of a rollout, what is wrong with them)."""
    expected = "" if outputs is None else f" instead of {outputs}"
    return ", ".join(map(str, files)), f"{held} outputs are there{expected}"


def write(
    folder: Folder,
    step: int,
    samples: Iterable[Sample],
    questions: Sequence[Question],
    *,
    seed: int,
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
            "outputs": len(samples) if outputs is None else outputs,
        }
        lines.append(json.dumps(asdict(sample) | facts, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(lines))


def read_step(folder: Folder, step: int, outputs: int) -> list[tuple[Question, Sample]]:
    """One rollout's samples, each with its question, one process's after the other's.

    outputs: how many it has. Raises DataError as `read` does, and where some are missing.
    """
    files = _files(folder, f"step-{step:06d}*.jsonl").get(step, [path_of(folder, step)])
    return _whole(files, outputs)


def _whole(files: Sequence[Folder], outputs: int | None = None) -> list[tuple[Question, Sample]]:
    """What the files of one rollout hold; DataError where that are not all of its outputs.

    outputs: how many these are; None for what the lines say, where they do.
    """
    told: set[int] = set()
    pairs = [pair for file in files for pair in read(file, told)]
    expected = outputs or max(told, default=None)
    if not pairs or (expected is not None and len(pairs) != expected):
        where, reason = _damage(files, len(pairs), expected)
        raise DataError(f"{where}: {reason}: copy the file again, or sample in a new --workdir.")
    return pairs


def read(path: Folder, told: set[int] | None = None) -> list[tuple[Question, Sample]]:
    """The samples of a file, each with its question (without solution).

    told: is given the numbers of outputs that lines say their rollout has. Raises DataError, naming
    file and line, for a damaged line.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such rollout file; name a RUN/rollouts folder.")
    pairs = []
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
        )
        pairs.append((question, sample))
        if told is not None and type(row.get("outputs")) is int:
            told.add(row["outputs"])
    return pairs


def read_folders(folders: Sequence[str]) -> list[tuple[Question, Sample]]:
    """All samples of several runs' logs, in the order of folders and steps.

    Raises DataError for a folder without rollouts, for a damaged one, and when two logs use one
    question id for different questions (they come from different sources and cannot be united).
    """
    pairs: list[tuple[Question, Sample]] = []
    for folder in folders:
        steps = _files(folder_of(folder), "step-*.jsonl")
        if not steps:
            raise DataError(f"{folder}: no step-*.jsonl here; name a RUN/rollouts folder.")
        for step in sorted(steps):
            pairs.extend(_whole(steps[step]))
    seen: dict[int, str] = {}
    for question, _ in pairs:
        if seen.setdefault(question.id, question.text) != question.text:
            raise DataError(
                f"{', '.join(folders)}: question {question.id} stands for two different questions;"
                " unite only logs of runs on one source."
            )
    return pairs
