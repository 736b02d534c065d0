"""RUN/config.json: what it holds, and what a resumed run may not change."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from rft_jax.checkpoint import provenance
from rft_jax.checkpoint.inputs import Input
from rft_jax.checkpoint.provenance import (
    Commit,
    check_inputs,
    check_same_config,
    git_commit,
    load_config,
    save_config,
)
from rft_jax.config import (
    CheckpointConfig,
    Config,
    EvaluationConfig,
    MeshConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PoolConfig,
    VerificationConfig,
)
from rft_jax.config.serialize import changeable_fields, plain
from rft_jax.errors import ConfigError


def save(folder: Path, config: Config) -> None:
    save_config(folder, folder.name, config, device="TPU v5 lite", num_devices=8)


def refusal(folder: Path, config: Config) -> str:
    with pytest.raises(ConfigError) as error:
        check_same_config(folder, config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("config", tiny.experiment().values(), ids=tiny.experiment().keys())
def test_a_saved_config_is_loaded_equal(tmp_path: Path, config: Config) -> None:
    save(tmp_path / "run", config)
    assert plain(load_config(tmp_path / "run")) == plain(config)
    check_same_config(tmp_path / "run", config)


def test_config_json_holds_what_made_the_run(tmp_path: Path) -> None:
    save(tmp_path, tiny.sft())
    content = json.loads((tmp_path / "config.json").read_text())
    assert list(content) == [
        "name", "config", "versions", "git_commit", "dirty", "device", "num_devices", "id",
        "inputs", "policy", "changes",
    ]  # fmt: skip
    assert content["name"] == tmp_path.name
    assert content["config"] == json.loads(json.dumps(plain(tiny.sft())))
    assert list(content["versions"]) == ["python", *provenance.PACKAGES]
    assert content["versions"]["rft_jax"] == "0.1.0"
    assert (content["device"], content["num_devices"]) == ("TPU v5 lite", 8)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change FOLDER/config.json as another version of this package would have written it."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_missing_fields_get_their_defaults_and_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def older(content: dict[str, Any]) -> None:
        del content["config"]["optimizer"]["clip_norm"], content["config"]["objective"]
        content |= {"git_commit": "cd46b5c920d533e6769069cd8942d9d1f3452693"}
        content["versions"]["rft_jax"] = "0.0.9"

    save(tmp_path, tiny.sft())
    path = edit(tmp_path, older)
    with caplog.at_level(logging.INFO, "rft_jax"):
        assert plain(load_config(tmp_path)) == plain(tiny.sft())
        check_same_config(tmp_path, tiny.sft())
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}, written by rft_jax 0.0.9 (commit cd46b5c92), lacks objective, "
        "optimizer.clip_norm: the defaults are taken."
    ]
    other = tiny.sft(optimizer=OptimizerConfig(clip_norm=2.0))
    assert "optimizer.clip_norm is 2.0, was 1.0" in refusal(tmp_path, other)
    other = tiny.sft(objective=ObjectiveConfig(denominator="accepted"))
    assert "objective.denominator is 'accepted', was 'sampled'" in refusal(tmp_path, other)


def test_an_unknown_field_names_the_version_that_wrote_it(tmp_path: Path) -> None:
    def newer(content: dict[str, Any]) -> None:
        content["config"]["model"]["wings"] = 3
        content |= {"git_commit": None}
        content["versions"]["rft_jax"] = "0.2.0"

    save(tmp_path, tiny.sft())
    path = edit(tmp_path, newer)
    assert refusal(tmp_path, tiny.sft()) == (
        f"{path}: model.wings is not a field. The file was written by rft_jax 0.2.0; this is "
        f"rft_jax {provenance.versions()['rft_jax']}: upgrade to the version that wrote it, or use "
        "another --workdir."
    )


def test_what_may_change_is_marked_on_the_fields() -> None:
    sections = {name.partition(".")[0] for name in changeable_fields()}
    assert sections == {"alarms", "checkpoint", "evaluation", "mesh", "verification"}
    in_verification = {name for name in changeable_fields() if name.startswith("verification.")}
    assert in_verification == {
        "verification.workers", "verification.warn_undecided", "verification.stop_undecided",
        "verification.first_outputs", "verification.examples",
    }  # fmt: skip


def test_a_new_folder_passes(tmp_path: Path) -> None:
    check_same_config(tmp_path / "none", tiny.sft())


def test_free_fields_may_change(tmp_path: Path) -> None:
    verification = VerificationConfig(workers=7, warn_undecided=0.2, stop_undecided=0.5)
    checkpoint = CheckpointConfig(every_steps=1, every_minutes=9, keep=5, keep_best=1)
    evaluation = EvaluationConfig(every_steps=1)
    save(tmp_path / "a", tiny.sft(evaluation=evaluation))
    changed = tiny.sft(
        evaluation=evaluation,
        verification=verification,
        checkpoint=checkpoint,
        mesh=MeshConfig(2, 2, 2),
    )
    check_same_config(tmp_path / "a", changed)


def test_a_run_that_moved_says_so(tmp_path: Path) -> None:
    here = {"device": "TPU v5 lite", "num_devices": 8}
    assert provenance.moved(tmp_path, tiny.sft(), **here) is None
    save(tmp_path, tiny.sft())
    assert provenance.moved(tmp_path, tiny.sft(), **here) is None
    other = tiny.sft(mesh=MeshConfig(2, 2, 1))
    assert provenance.moved(tmp_path, other, device="cpu", num_devices=4) == (
        "resumes with mesh data=2 x fsdp=2 x tensor=1 on 4 x cpu; it was mesh data=-1 x fsdp=1 x "
        "tensor=1 on 8 x TPU v5 lite before: sums are computed in another order, so results agree "
        "with those of an undisturbed run within rounding, not bit for bit"
    )
    for change in ({"device": "cpu"}, {"num_devices": 16}):
        assert provenance.moved(tmp_path, tiny.sft(), **here | change) is not None


def test_another_config_is_refused(tmp_path: Path) -> None:
    save(tmp_path, tiny.sft())
    assert refusal(tmp_path, tiny.sft(seed=4)) == (
        f"{tmp_path} holds a run with another config: seed is 4, was 0: use another --workdir or "
        "the old values."
    )
    linear = OptimizerConfig(schedule="linear", learning_rate=1.0, b1=0.5)
    other = tiny.sft(steps=4, seed=1, optimizer=linear)
    assert refusal(tmp_path, other) == (
        f"{tmp_path} holds a run with another config: steps is 4, was 3; seed is 1, was 0; "
        "optimizer.learning_rate is 1.0, was 0.0001 and 2 more: use another --workdir or the old "
        "values."
    )


def test_steps_may_be_raised_where_the_schedule_is_constant(tmp_path: Path) -> None:
    save(tmp_path, tiny.sft(steps=6))
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    for steps in (5, 6, 60):
        check_same_config(tmp_path, tiny.sft(steps=steps))
    assert refusal(tmp_path, tiny.sft(steps=4)) == (
        f"{tmp_path}: steps is 4 and 5 steps are done: set it to 5 or more, or use another "
        "--workdir."
    )
    cosine = OptimizerConfig(schedule="cosine")
    save(tmp_path / "b", tiny.sft(steps=6, optimizer=cosine))
    assert refusal(tmp_path / "b", tiny.sft(steps=8, optimizer=cosine)) == (
        f"{tmp_path}/b holds a run with another config: steps is 8, was 6: use another --workdir "
        "or the old values."
    )


def test_changes_are_kept_with_their_step(tmp_path: Path) -> None:
    settings = {"device": "cpu", "num_devices": 8}
    name, inputs = tmp_path.name, {"data.train": Input("jsonl:a", "1" * 64)}
    save_config(tmp_path, name, tiny.sft(), inputs=inputs, **settings)
    first = json.loads((tmp_path / "config.json").read_text())
    assert first["changes"] == []
    assert first["inputs"] == {"data.train": {"where": "jsonl:a", "sha256": "1" * 64}}
    save_config(tmp_path, name, tiny.sft(), inputs=inputs, step=1, **settings)
    assert json.loads((tmp_path / "config.json").read_text()) == first

    other = tiny.sft(steps=9, evaluation=EvaluationConfig(every_steps=1))
    inputs |= {"data.validation": Input("jsonl:b", "2" * 64)}
    save_config(tmp_path, name, other, inputs=inputs, step=2, **settings | {"num_devices": 4})
    provenance.record_inputs(tmp_path, {"data.train": Input("jsonl:a", "3" * 64)}, 3)
    edit(tmp_path, lambda content: content["versions"].update(jax="0.0.1"))
    save_config(tmp_path, name, other, step=4, **settings | {"num_devices": 4})
    last = json.loads((tmp_path / "config.json").read_text())
    assert last["changes"] == [
        {"step": 2, "what": "steps", "was": 3, "now": 9},
        {"step": 2, "what": "evaluation.every_steps", "was": 0, "now": 1},
        {"step": 2, "what": "num_devices", "was": 8, "now": 4},
        {"step": 3, "what": "data.train", "was": "1" * 64, "now": "3" * 64},
        {"step": 4, "what": "jax", "was": "0.0.1", "now": last["versions"]["jax"]},
    ]
    assert last["id"] == first["id"]
    assert list(last["inputs"]) == ["data.train", "data.validation"]


def test_other_inputs_are_refused_or_accepted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = {name: Input(f"the {name}", "1" * 64) for name in ("a", "b", "c", "d", "e")}
    save_config(tmp_path, tmp_path.name, tiny.sft(), device="cpu", num_devices=8, inputs=inputs)
    check_inputs(tmp_path, inputs | {"new": Input("new", "2" * 64)})
    inputs["b"] = Input("another b", "2" * 64)
    with pytest.raises(ConfigError) as error:
        check_inputs(tmp_path, inputs)
    assert str(error.value) == (
        f"{tmp_path}: the run rests on other content now: b (another b, was the b): bring it back, "
        "use another --workdir, or resume on it with --accept_changed."
    )
    inputs |= {name: Input(f"the {name}", None) for name in ("a", "c", "d")}
    with pytest.raises(
        ConfigError, match=r"a \(the a\), .*, c \(the c\) and 1 more: bring it back"
    ):
        check_inputs(tmp_path, inputs)
    check_inputs(tmp_path, inputs, accept=True)
    assert [text for text in caplog.messages if text.endswith(" and 1 more: accepted")]


@pytest.mark.parametrize(
    "file",
    ["metrics.jsonl", "checkpoints/4/files.json", "rollouts/step-000000.jsonl", "finished.json"],
)
def test_a_run_without_its_config_is_not_taken_for_a_new_one(tmp_path: Path, file: str) -> None:
    for name in ("checkpoints", "policy"):
        (tmp_path / name).mkdir()
    check_same_config(tmp_path, tiny.sft())  # killed before its config was written
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    assert "config.json, which says what run this is, is missing, and there is " in refusal(
        tmp_path, tiny.sft()
    )


def test_a_folder_that_was_renamed_holds_another_run(tmp_path: Path) -> None:
    save(tmp_path / "a", tiny.sft())
    (tmp_path / "a").rename(tmp_path / "b")
    assert refusal(tmp_path / "b", tiny.sft()) == (
        f"{tmp_path}/b holds run a, as its config.json says: rename the folder back, or use "
        "another --workdir."
    )


@pytest.mark.parametrize("facts", [{"inputs": 3}, {"changes": {}}, {"policy": [1]},
                                   {"inputs": {"a": 3}}, {"inputs": {"a": {"no": 1}}}])  # fmt: skip
def test_a_damaged_record_is_one_line(tmp_path: Path, facts: dict[str, Any]) -> None:
    save(tmp_path, tiny.sft())
    edit(tmp_path, lambda content: content.update(facts))
    with pytest.raises(ConfigError, match="damaged"):
        provenance.inputs_of(tmp_path)


def test_a_section_left_out_is_one_difference(tmp_path: Path) -> None:
    save(tmp_path, tiny.rft())
    other = tiny.rft(rollout=None, pool=PoolConfig(from_rollouts=("a",)))
    assert refusal(tmp_path, other) == (
        f"{tmp_path} holds a run with another config: rollout is None, was given; "
        "pool.rollout_steps is 0, was 2; pool.from_rollouts is ('a',), was (): use another "
        "--workdir or the old values."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 "
         "(char 1)): use another --workdir."),
        ("[]", "holds no config: use another --workdir."),
        ('{"config": {"method": "sft"}}', "data is missing, and has no default. The file was "
         "written by rft_jax of an unknown version; this is rft_jax "
         f"{provenance.versions()['rft_jax']}: upgrade to the version that wrote it, or use "
         "another --workdir."),
    ],
)  # fmt: skip
def test_damaged_config_json(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    found = refusal(tmp_path, tiny.sft())
    assert found.removeprefix(f"{path}").removeprefix(":").strip() == message


def test_a_folder_of_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path)
    path = tmp_path / "config.json"
    assert str(error.value) == f"{path} does not exist: {tmp_path} is not the folder of a run."


def git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_git_commit_of_a_checkout(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None  # no checkout
    git(tmp_path, "init")
    source = tmp_path / "provenance.py"
    source.write_text("x = 1\n")
    assert git_commit(tmp_path) is None  # a checkout of something else
    git(tmp_path, "add", ".")
    assert git_commit(tmp_path) is None  # no commit yet
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(tmp_path) == Commit(commit, dirty=False)
    (tmp_path / "notes.txt").write_text("untracked\n")
    assert git_commit(tmp_path) == Commit(commit, dirty=False)
    source.write_text("x = 2\n")
    assert git_commit(tmp_path) == Commit(commit, dirty=True)


def test_git_commit_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() is None
