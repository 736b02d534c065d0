"""RUN/config.json: what it holds, and what a resumed run may not change."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from rft_jax.checkpoint import provenance
from rft_jax.checkpoint.provenance import (
    Commit,
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
from rft_jax.config.serialize import changeable_fields
from rft_jax.errors import ConfigError


def save(folder: Path, config: Config) -> None:
    save_config(folder, "a_run", config, device="TPU v5 lite", num_devices=8)


def refusal(folder: Path, config: Config) -> str:
    with pytest.raises(ConfigError) as error:
        check_same_config(folder, config)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("config", tiny.experiment().values(), ids=tiny.experiment().keys())
def test_a_saved_config_is_loaded_equal(tmp_path: Path, config: Config) -> None:
    save(tmp_path / "run", config)
    assert load_config(tmp_path / "run") == config
    check_same_config(tmp_path / "run", config)


def test_config_json_holds_what_made_the_run(tmp_path: Path) -> None:
    save(tmp_path, tiny.sft())
    content = json.loads((tmp_path / "config.json").read_text())
    assert list(content) == [
        "name", "config", "versions", "git_commit", "dirty", "device", "num_devices",
    ]  # fmt: skip
    assert content["name"] == "a_run"
    assert content["config"] == json.loads(json.dumps(dataclasses.asdict(tiny.sft())))
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
        assert load_config(tmp_path) == tiny.sft()
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
    assert sections == {"checkpoint", "mesh", "verification"}
    in_verification = {name for name in changeable_fields() if name.startswith("verification.")}
    assert in_verification == {
        "verification.workers", "verification.warn_undecided", "verification.stop_undecided",
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
    assert refusal(tmp_path, tiny.sft(steps=4)) == (
        f"{tmp_path} holds a run with another config: steps is 4, was 3: use another --workdir or "
        "the old values."
    )
    other = tiny.sft(steps=4, seed=1, optimizer=OptimizerConfig(learning_rate=1.0, b1=0.5))
    assert refusal(tmp_path, other) == (
        f"{tmp_path} holds a run with another config: steps is 4, was 3; seed is 1, was 0; "
        "optimizer.learning_rate is 1.0, was 0.0001 and 1 more: use another --workdir or the old "
        "values."
    )


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
