"""Runs with --profile, end to end: what is in their traces, and what their lines say of work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import pytest
import tiny_experiment

from rft_jax.config import Config
from rft_jax.config.steps import Steps
from rft_jax.data.prompts import prompt_tokens
from rft_jax.observe import log as metrics
from rft_jax.observe.flops import Model
from rft_jax.observe.profiling import PHASES, STEP
from rft_jax.rollout import log as rollout_log
from rft_jax.runs import setup
from rft_jax.runs.run import RunResult, run
from rft_jax.runs.utilization import sampling_cost
from rft_jax.types import Decoded

pytestmark = pytest.mark.slow

SHARES = {
    "utilization/update_mfu", "utilization/sampling_mfu", "utilization/decode_bandwidth"
}  # fmt: skip
OF_UPDATES = {"utilization/update_flops", "utilization/update_mfu"}
OF_SAMPLING = {
    "utilization/sampling_flops", "utilization/sampling_mfu", "utilization/decode_bytes",
    "utilization/decode_bandwidth",
}  # fmt: skip


@dataclass(frozen=True)
class Profiled:
    """Runs `sft` and `online_rft` of three steps, steps 2 and 3 traced."""

    workdir: Path
    experiment: dict[str, Config]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Profiled:
    folder = tmp_path_factory.mktemp("profiled")
    source = tiny_experiment.write_questions(folder)
    experiment = {
        name: replace(
            config,
            steps=3,
            optimizer=replace(config.optimizer, warmup_steps=0),
            evaluation=replace(config.evaluation, every_steps=2, samples_per_question=0),
            data=replace(config.data, test=""),
        )
        for name, config in tiny_experiment.experiment(source).items()
        if name != "rft"
    }
    for name in experiment:
        assert run(name, experiment, folder / "work", Steps(2, 3)) == RunResult(3, True)
    return Profiled(folder / "work", experiment)


def events(folder: Path) -> list[tuple[str, float, float, Any]]:
    """(name, start, end, step number) of the loop's own events in the one trace below `folder`."""
    (path,) = folder.rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(path))
    found = [event for plane in data.planes for line in plane.lines for event in line.events]
    return sorted(
        [
            (event.name, event.start_ns, event.start_ns + event.duration_ns,
             dict(event.stats).get("step_num"))
            for event in found
            if event.name in (STEP, *PHASES)
        ],
        key=lambda event: event[1],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "phases"),
    [
        ("sft", {"updating"}),
        ("online_rft", {"sampling", "verifying", "updating"}),
    ],
)
def test_steps_and_their_phases_are_in_the_trace(
    profiled: Profiled, name: str, phases: set[str]
) -> None:
    found = events(profiled.workdir / name / "profile")
    steps = {number: (start, end) for event, start, end, number in found if event == STEP}
    assert list(steps) == [2, 3]
    within = {
        number: {event for event, first, last, _ in found if start <= first and last <= end}
        for number, (start, end) in steps.items()
    }
    # Step 2 evaluates, which samples and verifies too, and both steps save.
    evaluating = {"evaluating", "sampling", "verifying", "checkpointing"}
    assert within[2] == {STEP, "updating"} | evaluating
    assert within[3] == {STEP, "checkpointing"} | phases


def test_every_line_of_training_says_how_much_work_it_was(profiled: Profiled) -> None:
    for name in profiled.experiment:
        expected = OF_UPDATES | (OF_SAMPLING if name == "online_rft" else set())
        lines = metrics.read(profiled.workdir / name / "metrics.jsonl")
        for line in (line for line in lines if line["kind"] == "train"):
            found = {metric for metric in line if metric.startswith("utilization/")}
            assert found == expected
            # A CPU's rates are not known.
            assert all((line[metric] is None) == (metric in SHARES) for metric in found)


def test_sampling_counts_what_the_log_of_rollouts_has(profiled: Profiled) -> None:
    config = profiled.experiment["online_rft"]
    tokenizer = setup.ensure_tokenizer(config, profiled.workdir)
    model = Model(config.model, setup.vocab_size(config.model, tokenizer))
    folder = profiled.workdir / "online_rft"
    lines = metrics.read(folder / "metrics.jsonl")
    for step, line in enumerate(line for line in lines if line["kind"] == "train"):
        pairs = list(rollout_log.read(rollout_log.path_of(folder / "rollouts", step)))
        prompts = {q.id: len(prompt_tokens(q.text, config.data, tokenizer)) for q, _ in pairs}
        outputs = {id: tuple(len(s.tokens) for q, s in pairs if q.id == id) for id in prompts}
        # A question for each of the eight devices, which runs as long as its longest output.
        assert len(prompts) == jax.device_count()
        at_least = sum(max(lengths) for lengths in outputs.values())
        found = Decoded(tuple(prompts.values()), tuple(outputs.values()), at_least)
        cost = sampling_cost(model, found)
        assert line["utilization/sampling_flops"] == cost.flops
        assert line["utilization/decode_bytes"] == cost.bytes


def test_a_finished_run_has_nothing_to_trace(
    profiled: Profiled, caplog: pytest.LogCaptureFixture
) -> None:
    result = run("sft", profiled.experiment, profiled.workdir, Steps(1, 2))
    assert result == RunResult(0, True)
    (message,) = [record.message for record in caplog.records]
    assert message.startswith(
        "sft: --profile is 'steps 1..2' and 3 steps are done already: nothing"
    )
