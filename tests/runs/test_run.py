"""The loop, end to end and in this process: the three methods, their ends, and what they log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny_experiment

from rft_jax.checkpoint import manager as checkpoint
from rft_jax.config import (
    CheckpointConfig,
    Config,
    MeshConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PoolConfig,
    SelectionConfig,
    VerificationConfig,
)
from rft_jax.distributed.mesh import make_mesh
from rft_jax.errors import ConfigError, UserError, VerifierError
from rft_jax.observe import log as metrics
from rft_jax.rollout import log as rollout_log
from rft_jax.runs import loop as steps_of
from rft_jax.runs import run as loop
from rft_jax.runs.state import RunResult
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.selection import reduced
from rft_jax.training.state import make_layout

pytestmark = pytest.mark.slow

NOTHING = VerificationConfig(verifier="tiny_experiment:nothing", canary="off", workers=1)

ALWAYS = {
    "objective/value", "optimizer/gradient_norm", "optimizer/learning_rate",
    "update/sequences", "update/padding_efficiency",
    "cost/sampled_tokens", "cost/sampled_outputs", "cost/updates", "cost/skipped_updates",
    "seconds/updating", "seconds/checkpointing", "seconds/compiling", "seconds/elapsed",
    "speed/tokens_per_second", "system/compilations", "system/peak_memory_bytes",
    "utilization/update_flops", "utilization/update_mfu",
}  # fmt: skip
FUNNEL = {
    "funnel/sampled", "funnel/finished", "funnel/parsed", "funnel/correct", "funnel/distinct",
    "funnel/kept", "funnel/undecided", "pass_rate", "questions/pass_rate_histogram",
    "questions/all_correct", "questions/none_correct", "questions/reward_deviation",
    "policy/log_prob_correct", "policy/log_prob_incorrect",
    "lengths/correct", "lengths/incorrect", "lengths/truncated", "cost/sampled_per_accepted_token",
    "seconds/sampling", "seconds/verifying", "seconds/verifying_hidden", "funnel/slow_verdicts",
}  # fmt: skip
ONLINE = {
    "policy/entropy", "policy/log_prob_mismatch_max", "policy/log_prob_mismatch_mean",
    "utilization/sampling_flops", "utilization/sampling_mfu", "utilization/decode_bytes",
    "utilization/decode_bandwidth",
}  # fmt: skip
EVALUATION = {
    "greedy/accuracy", "greedy/standard_error", "greedy/undecided", "pass_at/1", "pass_at/2",
    "sampled/standard_error", "policy/entropy", "questions/distinct_correct", "lengths/mean",
    "lengths/truncated", "seconds/evaluating", "seconds/elapsed", "cost/sampled_tokens",
    "cost/sampled_outputs", "cost/updates", "cost/skipped_updates",
}  # fmt: skip


TURNOVER = {"questions/gained", "questions/lost"} | {
    f"questions/{name}" + end
    for name in ("solved_change", "distinct_change")
    for end in ("", "_error")
}
"""On validation, after the start."""


@dataclass(frozen=True)
class Study:
    """A carried-out experiment."""

    workdir: Path
    source: str
    results: dict[str, RunResult]

    def lines(self, name: str, kind: str) -> list[dict[str, Any]]:
        return lines(self.workdir / name, kind)

    def carry_out(self, config: Config, workdir: Path) -> list[dict[str, Any]]:
        """Carry out one run of a new workdir from this study's SFT run; its training lines."""
        start = f"workdir:{self.workdir / 'sft'}"
        result = loop.run("x", {"x": replace(config, init_from=start)}, workdir)
        assert result == RunResult(config.steps, True)
        return lines(workdir / "x", "train")

    def online(self, **changes: Any) -> Config:
        """A short Online RFT run that does not evaluate."""
        base = tiny_experiment.online_rft(self.source)
        short = {"steps": 3, "evaluation": replace(base.evaluation, every_steps=0)}
        return replace(base, data=replace(base.data, test=""), **(short | changes))


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in metrics.read(folder / "metrics.jsonl") if line["kind"] == kind]


def final_state(folder: Path, config: Config) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Leaves of the parameters and of the optimizer's state in the newest checkpoint."""
    optimizer = make_optimizer(config.optimizer, config.steps)
    layout = make_layout(config.model, make_mesh(config.mesh), optimizer, 274)
    with checkpoint.open_manager(folder / "checkpoints", config.checkpoint) as manager:
        restored = checkpoint.restore(manager, layout.state)
    assert restored is not None
    state = restored[1].state
    return [
        [np.asarray(leaf) for leaf in jax.tree.leaves(part)]
        for part in (state.params, state.optimizer)
    ]  # type: ignore[return-value]


def equal(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    source = tiny_experiment.write_questions(folder)
    experiment = tiny_experiment.experiment(source)
    results = {name: loop.run(name, experiment, folder / "work") for name in experiment}
    return Study(folder / "work", source, results)


def test_the_three_methods(study: Study) -> None:
    assert study.results == dict.fromkeys(("sft", "rft", "online_rft"), RunResult(8, True))
    for name in study.results:
        folder = study.workdir / name
        assert [line["step"] for line in study.lines(name, "train") if line["step"]] == [
            *range(1, 9)
        ]
        assert [line["step"] for line in study.lines(name, "validation")] == [0, 3, 6]
        assert [line["step"] for line in study.lines(name, "test")] == [8]
        assert json.loads((folder / "config.json").read_text())["num_devices"] == 8
        found = {path.name for path in (folder / "evaluation").iterdir()}
        assert found == {*(f"validation-00000{step}.jsonl" for step in (0, 3, 6)), "test.jsonl"}
    # It learns: demonstrations get likelier, and so do outputs of even length.
    values = [line["objective/value"] for line in study.lines("sft", "train")]
    assert values[-1] > values[0] + 1
    rates = [line["pass_rate"] for line in study.lines("online_rft", "train")]
    assert np.mean(rates[-2:]) > np.mean(rates[:2])


def test_a_finished_run_returns_at_once(study: Study) -> None:
    experiment = tiny_experiment.experiment(study.source)
    before = (study.workdir / "sft/metrics.jsonl").stat().st_mtime_ns
    assert loop.run("sft", experiment, study.workdir) == RunResult(0, True)
    assert (study.workdir / "sft/metrics.jsonl").stat().st_mtime_ns == before


def test_names_of_metrics(study: Study) -> None:
    base = {"step", "kind"}
    for name, more in {"sft": set(), "rft": set(), "online_rft": FUNNEL | ONLINE}.items():
        for line in study.lines(name, "train"):
            if line["step"]:
                assert set(line) == base | ALWAYS | more, (name, line["step"])
        for line in study.lines(name, "validation"):
            assert set(line) == base | EVALUATION | (TURNOVER if line["step"] else set())
        for line in study.lines(name, "test"):
            assert set(line) == base | EVALUATION | {"pass_at/4"}
    costs = {name for name in ALWAYS if name.startswith("cost/")} | {"seconds/elapsed"}
    pooled = FUNNEL | {"utilization/sampling_flops"}
    assert set(study.lines("rft", "train")[0]) == base | pooled | costs


def test_costs_add_up(study: Study) -> None:
    sampled = rollout_log.read_folders([str(study.workdir / "online_rft/rollouts")])
    last = study.lines("online_rft", "train")[-1]
    assert last["cost/sampled_outputs"] == len(sampled) == 8 * 8 * 4
    assert last["cost/sampled_tokens"] == sum(len(sample.tokens) for _, sample in sampled)
    assert (last["cost/updates"], last["cost/skipped_updates"]) == (8, 0)
    pool = rollout_log.read_folders([str(study.workdir / "rft/rollouts")])
    # The pool is all that RFT ever samples.
    for line in study.lines("rft", "train"):
        assert line["cost/sampled_outputs"] == len(pool) == 4 * 8 * 4
    assert study.lines("sft", "train")[-1]["cost/sampled_tokens"] == 0
    # Steps after a checkpoint say how long it held them up; steps 2, 4, 6 and 8 save.
    for line in study.lines("sft", "train"):
        assert (line["seconds/checkpointing"] > 0) == (line["step"] in (3, 5, 7))


def test_the_log_of_rollouts_is_whole(study: Study) -> None:
    for folder in ("rft", "online_rft"):
        for path in sorted((study.workdir / folder / "rollouts").iterdir()):
            step = int(path.stem.removeprefix("step-"))
            for _, sample in rollout_log.read(path):
                assert sample.step == step
                assert len(sample.tokens) == len(sample.log_probs) <= 8
                assert sample.finished or not sample.accepted
                if sample.finished:
                    assert sample.accepted == (len(sample.text) % 2 == 0)


def test_rft_and_online_rft_ask_the_same_questions_with_keys_of_their_own(study: Study) -> None:
    """Same seed, same start, same questions; the samples are independent."""
    asked, texts = [], []
    for name in ("rft", "online_rft"):
        lines = (study.workdir / name / "rollouts/step-000000.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        asked.append([(row["question_id"], row["sample_index"]) for row in rows])
        texts.append([row["text"] for row in rows])
    assert asked[0] == asked[1]
    assert texts[0] != texts[1]


def test_sampler_and_trainer_agree(study: Study) -> None:
    worst = [line["policy/log_prob_mismatch_max"] for line in study.lines("online_rft", "train")]
    assert 0 < max(worst) < 1e-4


def test_the_second_step_compiles_nothing(study: Study) -> None:
    for name in study.results:
        steps = [line for line in study.lines(name, "train") if line["step"] > 0]
        compiled = [line["system/compilations"] for line in steps]
        assert compiled[0] == compiled[1], name
        # Orbax cuts the arrays for its first checkpoint, after step 2. From there on neither steps
        # nor evaluations nor checkpoints compile.
        assert len(set(compiled[2:])) == 1, name


def test_both_later_runs_start_from_the_sft_run(study: Study) -> None:
    rows = {
        name: (study.workdir / name / "evaluation/validation-000000.jsonl").read_bytes()
        for name in ("rft", "online_rft")
    }
    assert rows["rft"] == rows["online_rft"]
    # The first test questions are those of validation.
    first, last = (
        [json.loads(line)["greedy_text"] for line in content.splitlines()]
        for content in (rows["rft"], (study.workdir / "sft/evaluation/test.jsonl").read_bytes())
    )
    assert len(first) == 5
    assert first == last[:5]


def test_the_mesh_changes_no_sample(study: Study, tmp_path: Path) -> None:
    meshes = {"whole": MeshConfig(data=8), "split": MeshConfig(data=2, fsdp=2, tensor=2)}
    states = []
    # A large eps keeps Adam from magnifying the last bits of small gradients.
    optimizer = OptimizerConfig(learning_rate=1e-2, eps=1e-2)
    for name, mesh in meshes.items():
        config = study.online(mesh=mesh, optimizer=optimizer)
        study.carry_out(config, tmp_path / name)
        states.append(final_state(tmp_path / name / "x", config)[0])
    for ours, theirs in zip(*states, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    logs = [rollout_log.read_folders([str(tmp_path / name / "x/rollouts")]) for name in meshes]
    for (_, ours), (_, theirs) in zip(*logs, strict=True):
        assert ours.tokens == theirs.tokens
        assert ours.verdict == theirs.verdict
        np.testing.assert_allclose(ours.log_probs, theirs.log_probs, atol=1e-4)


def test_nothing_accepted_is_a_counted_skip(study: Study, tmp_path: Path) -> None:
    config = study.online(verification=NOTHING)
    with pytest.raises(UserError) as error:
        study.carry_out(config, tmp_path)
    assert str(error.value) == (
        "x: none of 3 steps had an output to train on, so nothing was learnt; look at the outputs "
        f"in {tmp_path}/x/rollouts, start from a better model or check verification.verifier."
    )
    assert not (tmp_path / "x/finished.json").exists()
    found = lines(tmp_path / "x", "train")
    assert [line["cost/skipped_updates"] for line in found] == [1, 2, 3]
    assert [line["cost/updates"] for line in found] == [0, 0, 0]
    assert [line["objective/value"] for line in found] == [None] * 3
    params, optimizer = final_state(tmp_path / "x", config)
    assert equal(params, final_state(study.workdir / "sft", tiny_experiment.sft(study.source))[0])
    assert not any(leaf.any() for leaf in optimizer)


def test_a_checker_of_ones_own_reads_rows_and_pays_rewards(study: Study, tmp_path: Path) -> None:
    """Its answers vote, its rewards are logged, and what it reads is what the run rests on."""
    rows = Path(study.source.removeprefix("jsonl:")).read_text(encoding="utf-8").splitlines()
    path = tmp_path / "rows.jsonl"

    def write(goal: int) -> None:
        content = [json.loads(row) for row in rows]
        content = [row | {"answer": int(row["answer"]), "goal": goal} for row in content]
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")

    write(0)
    source = f"jsonl:{path}"
    own = VerificationConfig(verifier="tiny_experiment:half", canary="off", workers=1)
    base = study.online(verification=own)
    evaluation = replace(base.evaluation, every_steps=3, samples_per_question=2)
    data = replace(base.data, train=source, validation=source)
    config = replace(base, data=data, evaluation=evaluation)
    found = study.carry_out(config, tmp_path)
    logged = [sample for _, sample in rollout_log.read_folders([str(tmp_path / "x/rollouts")])]
    finished = [sample for sample in logged if sample.finished]
    assert {sample.reward for sample in finished} == {0.5, 1.0}
    assert all(sample.stated == sample.text[:1] for sample in finished)
    assert all(sample.accepted == (sample.value == 1.0) for sample in logged)
    for line in found:
        values = [sample.value for sample in logged if sample.step == line["step"] - 1]
        assert line["reward"] == pytest.approx(np.mean(values))
        assert line["funnel/correct"] == sum(value == 1.0 for value in values)
    evaluated = lines(tmp_path / "x", "validation")
    assert {"maj_at/2", "greedy/reward"} <= set(evaluated[-1])
    write(1)
    with pytest.raises(ConfigError, match=r"other content now: data.train, other columns"):
        study.carry_out(replace(config, steps=4), tmp_path)


def test_first_outputs_that_pay_nothing_stop_a_run_and_a_pool(study: Study, tmp_path: Path) -> None:
    alarmed = replace(NOTHING, first_outputs=64)
    with pytest.raises(VerifierError, match="of the first 64 outputs none is accepted"):
        study.carry_out(study.online(verification=alarmed), tmp_path / "online")
    assert len(lines(tmp_path / "online" / "x", "train")) == 1
    config = tiny_experiment.rft(study.source, verification=alarmed)
    for _ in range(2):  # one that is started again stops at once
        with pytest.raises(VerifierError, match="of the first 64 outputs none is accepted"):
            study.carry_out(config, tmp_path)
        assert len(list((tmp_path / "x/rollouts").iterdir())) == 2
    goes_on = replace(config, verification=NOTHING)
    with pytest.raises(UserError, match="none of 128 sampled outputs is trained on"):
        study.carry_out(goes_on, tmp_path)


def test_a_run_whose_outputs_are_undecided_stops(study: Study, tmp_path: Path) -> None:
    broken = replace(NOTHING, verifier="tiny_experiment:broken", stop_undecided=0.1)
    with pytest.raises(VerifierError, match=r"^step 1: .* of 32 outputs are undecided"):
        study.carry_out(study.online(verification=broken), tmp_path)
    assert not (tmp_path / "x/finished.json").exists()


def test_a_verifier_that_does_not_fit_the_data_stops_the_run(study: Study, tmp_path: Path) -> None:
    boxed = VerificationConfig(verifier="boxed", workers=1)
    with pytest.raises(VerifierError, match="known to be right"):
        study.carry_out(study.online(verification=boxed), tmp_path)
    assert not (tmp_path / "x/metrics.jsonl").exists()


def test_an_evaluation_may_have_a_verifier_of_its_own(study: Study, tmp_path: Path) -> None:
    config = study.online(verification=NOTHING)
    lenient = replace(config.evaluation, every_steps=3, verifier="tiny_experiment:everything")
    config = replace(config, evaluation=lenient, objective=ObjectiveConfig(kl_coefficient=0.5))
    found = study.carry_out(config, tmp_path)
    assert {line["funnel/correct"] for line in found} == {0}
    evaluated = lines(tmp_path / "x", "validation")
    # Every finished output is right for this verifier, and none for that of training.
    assert max(line["greedy/accuracy"] for line in evaluated) > 0


def test_rft_with_nothing_accepted(study: Study, tmp_path: Path) -> None:
    config = tiny_experiment.rft(study.source, verification=NOTHING)
    with pytest.raises(UserError) as error:
        study.carry_out(config, tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/x/rollouts: none of 128 sampled outputs is trained on (method rft; "
        "0 are correct): look at them in the report, start from a better model, or sample more "
        "(pool.rollout_steps, rollout.samples_per_question)."
    )
    assert not (tmp_path / "x/finished.json").exists()


def test_a_gradient_that_is_not_finite(study: Study, tmp_path: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=1e38)
    short = {"data": study.online().data, "evaluation": study.online().evaluation}
    config = tiny_experiment.sft(study.source, optimizer=optimizer, **short)
    with pytest.raises(UserError) as error:
        loop.run("x", {"x": config}, tmp_path)
    assert str(error.value) == (
        "step 2: the gradient's norm is nan; nothing of this step is saved. Lower "
        "optimizer.learning_rate (1e+38) and start again in another --workdir, or remove the "
        "newest checkpoints to resume from an earlier one."
    )
    assert [line["step"] for line in lines(tmp_path / "x", "train")] == [1]
    assert not [path for path in (tmp_path / "x/checkpoints").iterdir() if path.name.isdigit()]


def test_parameters_that_are_not_finite(study: Study, tmp_path: Path) -> None:
    """Of a finite gradient: the step that makes them is named, and is not saved."""
    optimizer = OptimizerConfig(learning_rate=1e38, weight_decay=1e9)
    short = {"data": study.online().data, "evaluation": study.online().evaluation}
    config = tiny_experiment.sft(
        study.source, optimizer=optimizer, checkpoint=CheckpointConfig(every_steps=1), **short
    )
    with pytest.raises(UserError) as error:
        loop.run("x", {"x": config}, tmp_path)
    said = "step 1: a parameter or a moment of the optimizer is not finite after the update, whose"
    assert str(error.value).startswith(said)
    assert "optimizer.weight_decay (1000000000.0)" in str(error.value)
    assert not lines(tmp_path / "x", "train")
    assert not [path for path in (tmp_path / "x/checkpoints").iterdir() if path.name.isdigit()]


def test_kl_to_the_start(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = study.online(objective=ObjectiveConfig(kl_coefficient=0.5))
    whole = study.carry_out(config, tmp_path / "whole")
    divergences = [line["objective/kl"] for line in whole]
    assert abs(divergences[0]) < 1e-6  # the policy is its own reference before it moves
    assert min(divergences[1:]) > 1e-3
    # Every decided output is in the update, as the KL is over all of them.
    assert whole[0]["update/sequences"] == 32 - whole[0]["funnel/undecided"]

    # The reference stays the start when the run resumes from a later step.
    step = steps_of.step

    def dies(run: Any, source: Any, state: steps_of.State) -> Any:
        if state.step == 2:
            raise KeyboardInterrupt
        return step(run, source, state)

    with monkeypatch.context() as patch:
        patch.setattr(steps_of, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            study.carry_out(config, tmp_path / "again")
    again = loop.run(
        "x", {"x": replace(config, init_from=f"workdir:{study.workdir / 'sft'}")},
        tmp_path / "again",
    )  # fmt: skip
    assert again == RunResult(1, True)  # from the checkpoint of step 2
    ours, theirs = (final_state(tmp_path / name / "x", config) for name in ("again", "whole"))
    assert equal(ours[0], theirs[0])
    assert equal(ours[1], theirs[1])
    found = tiny_experiment.lasting(lines(tmp_path / "again/x", "train"))
    assert found == tiny_experiment.lasting(whole)


def test_kl_pulls_towards_the_start(study: Study, tmp_path: Path) -> None:
    """With nothing accepted the objective is the KL alone, which is least at the start."""
    config = study.online(verification=NOTHING, objective=ObjectiveConfig(kl_coefficient=0.5))
    found = study.carry_out(config, tmp_path)
    assert [line["cost/skipped_updates"] for line in found] == [0, 0, 0]
    assert max(line["objective/kl"] for line in found) < 1e-2


def test_rft_from_the_log_of_an_earlier_run(study: Study, tmp_path: Path) -> None:
    folder = str(study.workdir / "online_rft/rollouts")
    selection = SelectionConfig(dedupe="text", max_per_question=3)
    config = tiny_experiment.rft(
        study.source, rollout=None, pool=PoolConfig(from_rollouts=(folder,)), selection=selection
    )
    first = study.carry_out(config, tmp_path)[0]
    samples = [sample for _, sample in rollout_log.read_folders([folder])]
    unique, kept = reduced([sample for sample in samples if sample.accepted], selection)
    assert first["step"] == 0
    assert first["funnel/sampled"] == first["cost/sampled_outputs"] == len(samples)
    assert first["funnel/correct"] == sum(sample.accepted for sample in samples)
    assert first["funnel/distinct"] == len(unique)
    assert first["funnel/kept"] == len(kept) < len(unique)
    assert not (tmp_path / "x/rollouts").exists()


def test_two_logs_are_united(study: Study, tmp_path: Path) -> None:
    folders = tuple(str(study.workdir / name / "rollouts") for name in ("rft", "online_rft"))
    pool = PoolConfig(from_rollouts=folders)
    config = tiny_experiment.rft(study.source, rollout=None, pool=pool)
    assert study.carry_out(config, tmp_path)[0]["funnel/sampled"] == 8 * 4 * (4 + 8)


@pytest.fixture(autouse=True)
def _no_leftovers(tmp_path: Path) -> Iterator[None]:
    """Files that are written whole leave no draft behind."""
    yield
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".part", ".draft", ".tmp")]


def test_a_step_tells_where_it_is(study: Study, tmp_path: Path) -> None:
    """Before and after each wait for other processes, so that the one behind can be named."""
    places: list[str] = []
    config = replace(study.online(steps=1), init_from=f"workdir:{study.workdir / 'sft'}")
    loop.run("x", {"x": config}, tmp_path, at=places.append)
    assert places == [
        "start of x", "rollout of step 1", "verdicts of step 1", "exchange of step 1",
        "update of step 1", "result of the update of step 1", "checkpoint of step 1",
    ]  # fmt: skip
