"""Surplus in checkpoints: written, read and refused; a killed run with refill resumes alike."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tiny_experiment
from hypothesis import given
from hypothesis import strategies as st
from refilling import NO, OPEN, YES, output, settings
from steps import rollouts
from test_run import equal, final_state, lines

from rft_jax.checkpoint import integrity as checkpoint_health
from rft_jax.config import Config, RefillConfig, RolloutConfig
from rft_jax.errors import CheckpointError
from rft_jax.rollout.engine import Rollout
from rft_jax.runs import loop as steps_of
from rft_jax.runs import run as loop
from rft_jax.runs.run import RunResult
from rft_jax.training.batch_filling import Carried, from_json, to_json
from rft_jax.types import Question, Sample


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(3, 5), st.text(), *[st.floats(1, 1e6)] * 2))
)
def test_the_surplus_goes_through_json_exactly(
    drawn: list[tuple[int, int, str, float, float]],
) -> None:
    surplus = tuple(
        Carried(
            replace(output(question, 3, step=step, text=text), log_probs=()), outputs, questions
        )
        for question, step, text, outputs, questions in drawn
    )
    saved = json.loads(json.dumps(to_json(surplus)))
    refilled = settings(accepted=1, max_staleness=3)
    restored = from_json(saved, refilled, step=6, question_ids=range(10), source="here")
    assert restored == surplus


SAVED = to_json((Carried(replace(output(4, 1, step=5), log_probs=()), 2.5, 1.5),))[0] | {
    "tokens": [2, 0]  # as JSON has it
}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "surplus is None, expected a list"),
        ([{}], "surplus[0] must have the fields question_id, sample_index, step, text, tokens, "
               "finished, reason, verdict, outputs, questions, coefficient, decided_tokens only"),
        ([SAVED, SAVED | {"log_probs": []}], "surplus[1] must have the fields question_id, "
         "sample_index, step, text, tokens, finished, reason, verdict, outputs, questions, "
         "coefficient, decided_tokens only"),
        ([SAVED | {"step": 5.0}], "surplus[0].step is 5.0, expected int"),
        ([SAVED | {"tokens": [1, "2"]}], "surplus[0].tokens is [1, '2'], expected token ids"),
        ([SAVED | {"outputs": math.inf}], "surplus[0] stands for inf outputs and 1.5 questions, "
         "expected at least 1 of each"),
        ([SAVED | {"step": 3}], "surplus[0] is of step 3, to be trained on in step 6 or later, "
         "and refill.max_staleness is 2"),
        ([SAVED | {"step": 6}], "surplus[0] is of step 6, to be trained on in step 6 or later, "
         "and refill.max_staleness is 2"),
        ([SAVED | {"question_id": 10}], "surplus[0] answers question 10, which a does not have"),
    ],
)  # fmt: skip
def test_surplus_that_cannot_be_trained_on_is_refused(values: object, message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        from_json(
            values, settings(accepted=1, max_staleness=2), step=6, question_ids=range(10),
            source="checkpoints/6",
        )  # fmt: skip
    assert str(error.value) == (
        f"checkpoints/6: {message}: bring back the data or the version that wrote it, or start "
        "over with another --workdir."
    )


def made_up_rollout(questions: Sequence[Question], **options: Any) -> Rollout:
    """Random outputs that depend on their address only, as those of one policy do."""
    samples, sampling = [], options["sampling"]
    for question in questions:
        rng = np.random.default_rng([options["step"], question.id])
        for index in range(options["num_samples"]):
            drawn = rng.integers(4, sampling.tokenizer.vocab_size, rng.integers(1, 8)).tolist()
            tokens = (*drawn, sampling.tokenizer.eos_id)
            verdict = (YES, NO, NO, OPEN)[rng.integers(4)]
            log_probs = tuple(rng.normal(-3, 1, len(tokens)).tolist())
            text = sampling.tokenizer.decode(drawn)
            address = (question.id, index, options["step"])
            samples.append(Sample(*address, text, tokens, log_probs, True, verdict, ""))
    return Rollout(samples, samples, np.full(len(samples), 0.5), 1.0, 0.0, 0.0, ())


@pytest.fixture
def experiment(tmp_path: Path) -> Iterator[dict[str, Config]]:
    """A short SFT run and six steps with refill after it, without evaluation."""
    source = tiny_experiment.write_questions(tmp_path)
    short: dict[str, Any] = {}
    base = tiny_experiment.sft(source)
    short["evaluation"] = replace(base.evaluation, every_steps=0)
    short["data"] = replace(base.data, test="")
    refilled = tiny_experiment.online_rft(
        source,
        steps=6,
        rollout=RolloutConfig(questions_per_step=4, samples_per_question=4),
        refill=RefillConfig(accepted=10, max_sampled=64, max_staleness=2),
        **short,
    )
    with rollouts(made_up_rollout):
        yield {"sft": tiny_experiment.sft(source, steps=3, **short), "refilled": refilled}


@pytest.mark.slow
def test_a_run_that_is_killed_ends_with_the_same_bits(
    experiment: dict[str, Config], tmp_path: Path
) -> None:
    """The surplus is part of what a checkpoint holds: checkpoints of steps 2, 4 and 6, death in
    steps 4 and 5 of 6."""
    whole, again = tmp_path / "whole", tmp_path / "again"
    for workdir in (whole, again):
        loop.run("sft", experiment, workdir)
    assert loop.run("refilled", experiment, whole) == RunResult(6, True)
    step = steps_of.step
    for death in (3, 4):

        def dies(run: Any, source: Any, state: steps_of.State, death: int = death) -> Any:
            if state.step == death:
                raise KeyboardInterrupt
            return step(run, source, state)

        with mock.patch.object(steps_of, "step", dies), pytest.raises(KeyboardInterrupt):
            loop.run("refilled", experiment, again)
        host = again / "refilled/checkpoints" / str(death // 2 * 2) / "host/metadata"
        assert json.loads(host.read_text())["surplus"]  # what a resumed run must not lose
    assert loop.run("refilled", experiment, again) == RunResult(2, True)

    folders = [workdir / "refilled" for workdir in (whole, again)]
    ours, theirs = (final_state(folder, experiment["refilled"]) for folder in folders)
    assert equal(ours[0], theirs[0])
    assert equal(ours[1], theirs[1])
    logs = [tiny_experiment.lasting(lines(folder, "train")) for folder in folders]
    assert logs[0] == logs[1]
    hosts = [json.loads((folder / "checkpoints/6/host/metadata").read_text()) for folder in folders]
    assert hosts[0]["surplus"] == hosts[1]["surplus"]
    for path in sorted((whole / "refilled/rollouts").iterdir()):
        assert path.read_bytes() == (again / "refilled/rollouts" / path.name).read_bytes()

    # The log-probs of carried outputs are another policy's: nothing to compare with.
    assert any(line["refill/trained_carried"] for line in logs[0])
    for line in logs[0]:
        compared = line["policy/log_prob_mismatch_max"] is not None
        assert compared == (line["refill/trained_carried"] == 0)
        assert line["update/sequences"] == line["refill/trained"] <= 10


@pytest.mark.slow
def test_a_checkpoint_without_surplus_is_refused(
    experiment: dict[str, Config], tmp_path: Path
) -> None:
    loop.run("sft", experiment, tmp_path)
    loop.run("refilled", experiment, tmp_path)
    (tmp_path / "refilled/finished.json").unlink()
    host = tmp_path / "refilled/checkpoints/6/host/metadata"
    saved = json.loads(host.read_text())
    del saved["surplus"]
    host.write_text(json.dumps(saved))
    checkpoint_health.write_record(tmp_path / "refilled/checkpoints/6", None)
    with pytest.raises(CheckpointError, match="checkpoints/6: surplus is None, expected a list: "):
        loop.run("refilled", experiment, tmp_path)
