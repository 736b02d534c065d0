"""The committed experiments: what their docstrings promise, and the settings they resolve to.

`python tests/config/test_experiment_files.py` writes tests/golden/ again.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import programs
import pytest

from rft_jax.commands import args
from rft_jax.commands.options import RunOptions, StudyOptions
from rft_jax.config import Config
from rft_jax.config import experiment as experiments
from rft_jax.config.serialize import plain
from rft_jax.hub.families import model_config
from rft_jax.types import Verdict

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
REGENERATE = "python tests/config/test_experiment_files.py"
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"
needs_gsm8k = pytest.mark.skipif(
    not (GSM8K / "train.jsonl").is_file(),
    reason="the GSM8K files are not in ../shared/data/gsm8k beside the checkout",
)

STARTS = {
    "gsm8k_qwen2.5_0.5b": ("Qwen/Qwen2.5-0.5B-Instruct", "QWEN_DIR"),
    "gsm8k_qwen2.5_1.5b": ("Qwen/Qwen2.5-1.5B-Instruct", "QWEN_DIR"),
    "math_deepseekmath_7b": ("deepseek-ai/deepseek-math-7b-instruct", "DEEPSEEKMATH_DIR"),
}
"""Experiments from a published model: its repository, and the variable that names its folder."""

SECTIONS = ("Reproduces", "Expect", "Time", "Command")
_DEVICE = re.compile(r"\b(CPU|GPU|TPU)s?\b")
_INTERVAL = re.compile(r"±|\binterval\b|\bto\b")


def is_experiment(path: Path) -> bool:
    """Whether the file defines experiment() or study(); verifiers beside it do not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(
        isinstance(node, ast.FunctionDef)
        and node.name in ("experiment", "study")
        and not node.args.args
        for node in tree.body
    )


FILES = sorted(path for path in (ROOT / "experiments").glob("*.py") if is_experiment(path))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def _same_import_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


def load(path: Path, environment: Mapping[str, str] | None = None) -> dict[str, Config]:
    """The experiment under exactly these environment variables."""
    with mock.patch.dict(os.environ, environment or {}, clear=True):
        return experiments.load(path)


def resolved(path: Path) -> dict[str, Any]:
    """The settings of every run as JSON would give them back, of a study's further seeds those in
    which they differ from seed 1."""
    every = {name: plain(config) for name, config in load(path).items()}
    runs: dict[str, Any] = json.loads(json.dumps(every))
    for name in every:
        first = re.sub(r"_seed\d+", "_seed1", name)
        if first != name:
            like = leaves(runs[first])
            ours = leaves(runs[name]).items()
            runs[name] = {leaf: value for leaf, value in ours if like.get(leaf) != value}
    return runs


def golden_path(path: Path) -> Path:
    return GOLDEN / f"{path.stem}.json"


def leaves(tree: Any, name: str = "") -> dict[str, Any]:
    """Every setting by its dotted name."""
    if not isinstance(tree, dict):
        return {name: tree}
    return {
        leaf: value
        for key, branch in tree.items()
        for leaf, value in leaves(branch, f"{name}.{key}" if name else key).items()
    }


def sections(text: str) -> dict[str, str]:
    """`NAME: text` of a docstring, each up to the next section or blank line, on one line."""
    names = "|".join(SECTIONS)
    found = re.findall(rf"^({names}):(.*?)(?=^(?:{names}):|^\s*$|\Z)", text, re.M | re.S)
    return {name: " ".join(body.split()) for name, body in found}


# The files


def test_the_experiments_are_there() -> None:
    assert {"arithmetic", "gsm8k_scratch", *STARTS} <= {path.stem for path in FILES}


@each_file
def test_docstring_says_what_to_expect(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    name, found = f"experiments/{path.name}", sections(text)
    for section in SECTIONS:
        assert found.get(section), (
            f"{name}: its docstring has no section '{section}:' at the start of a line; it needs "
            f"{', '.join(f'{s}:' for s in SECTIONS)} (what it reproduces; the expected result with "
            "its interval; the time and on which device; the command)."
        )
    expect, time, command = found["Expect"], found["Time"], found["Command"]
    assert "README.md" in expect or (re.search(r"\d", expect) and _INTERVAL.search(expect)), (
        f"{name}: 'Expect:' is {expect!r}: it must give a figure with its interval (A ± B, or "
        "A to B), or say that README.md does."
    )
    assert "not measured" in expect or "not measured" not in time, (
        f"{name}: 'Time:' is not measured although the result is: write the time of that run."
    )
    assert _DEVICE.search(time), (
        f"{name}: 'Time:' is {time!r}: it must name the device (CPU cores, GPUs, TPU chips)."
    )
    assert name in command, f"{name}: 'Command:' is {command!r}: it must run {name}."


@each_file
def test_settings_are_the_committed_ones(path: Path) -> None:
    golden, relative = golden_path(path), f"tests/golden/{path.stem}.json"
    assert golden.is_file(), f"{relative} does not exist: write it by `{REGENERATE}`; commit it."
    found, expected = (
        leaves(resolved(path)),
        leaves(json.loads(golden.read_text(encoding="utf-8"))),
    )
    changed = [
        f"{name}: {expected.get(name, 'absent')!r} -> {found.get(name, 'absent')!r}"
        for name in dict.fromkeys([*expected, *found])
        if name not in expected or name not in found or found[name] != expected[name]
    ]
    assert not changed, (
        f"experiments/{path.name} no longer resolves to {relative}:\n  "
        + "\n  ".join(changed)
        + f"\nIf that is meant, write it again by `{REGENERATE}` and commit it."
    )


def test_every_golden_file_has_its_experiment() -> None:
    stale = {path.stem for path in GOLDEN.glob("*.json")} - {path.stem for path in FILES}
    assert not stale, f"tests/golden holds {sorted(stale)} without an experiment: remove them."


@each_file
def test_paths_are_relative(path: Path) -> None:
    for name, value in leaves(resolved(path)).items():
        if isinstance(value, str):
            kind, _, rest = value.rpartition(":")
            assert not Path(rest if kind in ("jsonl", "workdir") else value).is_absolute(), name


# GSM8K, from random parameters


def test_gsm8k_dir_says_where_the_data_are() -> None:
    path = ROOT / "experiments" / "gsm8k_scratch.py"
    for folder, environment in (("data/gsm8k", {}), ("elsewhere", {"GSM8K_DIR": "elsewhere"})):
        for config in load(path, environment).values():
            assert config.data.train.startswith(f"jsonl:{folder}/train.jsonl[:")
            assert config.data.test.startswith(f"jsonl:{folder}/test.jsonl")
            start, stop = config.data.train.find("[:"), config.data.validation.find("[")
            assert config.data.validation[stop:] == f"[{config.data.train[start + 2 : -1]}:]"


@needs_gsm8k
@pytest.mark.slow
def test_every_gsm8k_row_fits(tmp_path: Path) -> None:
    from rft_jax.runs.setup import ensure_tokenizer, load_questions

    runs = load(ROOT / "experiments" / "gsm8k_scratch.py", {"GSM8K_DIR": str(GSM8K)})
    assert len({config.data.max_prompt_tokens for config in runs.values()}) == 1
    config = runs["sft"]  # the one whose solutions must fit as well
    whole = dataclasses.replace(config.evaluation, num_questions=0)
    config = dataclasses.replace(config, evaluation=whole)
    questions = load_questions(config, ensure_tokenizer(config, tmp_path))
    assert (len(questions.train), len(questions.validation)) == (7217, 256)


EIGHT_SHORT_ROWS = "train.jsonl[2559:2567]"
"""Questions and solutions of at most 232 characters, which a tiny model learns by heart."""


@needs_gsm8k
@pytest.mark.slow
def test_gsm8k_scratch_accepts_outputs_and_resumes(tmp_path: Path) -> None:
    source = f"jsonl:{GSM8K}/{EIGHT_SHORT_ROWS}"
    shared = {
        "data.train": source, "data.validation": source, "data.test": source,
        "data.max_prompt_tokens": 96, "data.max_completion_tokens": 160,
        "model.num_layers": 1, "model.d_model": 96, "model.mlp_dim": 192,
        "update.row_length": 256, "update.rows_per_microbatch": 8,
        "evaluation.every_steps": 0, "evaluation.test_samples_per_question": 0,
        "evaluation.questions_per_batch": 8,
    }  # fmt: skip
    drawn = {"rollout.questions_per_step": 8, "rollout.samples_per_question": 4}
    changes = {
        "sft": shared | {"steps": 40, "update.sequences_per_step": 8,
                         "optimizer.learning_rate": 1e-2, "optimizer.warmup_steps": 10},
        "rft": shared | drawn | {"steps": 2, "pool.rollout_steps": 1},
        "online_rft": shared | drawn | {"steps": 4, "checkpoint.every_steps": 1},
    }  # fmt: skip

    options = [
        f"--{run}.{field}={value}"
        for run, fields in changes.items()
        for field, value in fields.items()
    ]
    command = [
        sys.executable, "-m", "rft_jax", "run", "experiments/gsm8k_scratch.py",
        "--workdir", str(tmp_path), *options,
    ]  # fmt: skip
    # On one device, as a user's machine has it: eight simulated ones are slow.
    environment = os.environ | {"GSM8K_DIR": str(GSM8K), "XLA_FLAGS": programs.xla_flags()}

    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    first_checkpoint = tmp_path / "online_rft" / "checkpoints" / "1"
    while process.poll() is None and not first_checkpoint.is_dir():
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "online_rft" / "finished.json").exists(), "it ended before it was killed"
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "online_rft: resuming from step" in done.stderr

    for name in ("rft", "online_rft"):
        lines = (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        train = [row for row in map(json.loads, lines) if row["kind"] == "train"]
        steps = [row["step"] for row in train if row["step"]]  # RFT's pool is step 0
        assert steps == list(range(1, changes[name]["steps"] + 1))
        rollouts = [
            json.loads(line)
            for file in sorted((tmp_path / name / "rollouts").glob("*.jsonl"))
            for line in file.read_text(encoding="utf-8").splitlines()
        ]
        accepted = [row for row in rollouts if row["verdict"] == Verdict.CORRECT]
        assert accepted, f"{name}: none of {len(rollouts)} outputs is accepted"
        assert all("####" in row["text"] for row in accepted)
        assert any("<<" in row["text"] for row in accepted), f"{name}: no calculator marks"
        assert any(row.get("funnel/kept", 0) > 0 for row in train)


# From published models


@pytest.mark.parametrize("name", STARTS)
def test_the_arms_start_from_the_published_model(name: str) -> None:
    repository, variable = STARTS[name]
    # The small one has all that figure 5 of DeepSeekMath draws without step rewards.
    arms = ["rft", "online_rft", *(["grpo"] if name == "gsm8k_qwen2.5_0.5b" else [])]
    path = ROOT / "experiments" / f"{name}.py"
    for target, environment in ((repository, {}), ("models/mine", {variable: "models/mine"})):
        runs = load(path, environment)
        assert list(runs) == arms
        for config in runs.values():
            assert config.init_from == config.tokenizer.path == f"hf:{target}"


@pytest.mark.parametrize("name", STARTS)
def test_the_model_is_that_of_the_published_config(name: str) -> None:
    published = module_of(ROOT / "tests" / "hub" / "published.py").PUBLISHED
    repository = STARTS[name][0].rpartition("/")[2]
    # Base and instruct models of DeepSeekMath have the same config.json.
    raw = published[repository.replace("math-7b-instruct", "math-7b-base")].raw
    for config in load(ROOT / "experiments" / f"{name}.py").values():
        assert config.model.differences(model_config(raw)) == ()


@pytest.mark.parametrize("name", STARTS)
def test_the_arms_are_on_equal_terms(name: str) -> None:
    runs = load(ROOT / "experiments" / f"{name}.py")
    rft, online = runs["rft"], runs["online_rft"]
    assert rft.pool is not None
    assert rft.pool.rollout_steps == rft.steps
    for other in runs.values():
        assert (other.rollout, other.steps) == (online.rollout, online.steps)
        assert (other.optimizer, other.evaluation) == (online.optimizer, online.evaluation)
        assert other.init_from == online.init_from


@each_file
def test_commands_of_the_docstring_are_understood(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    commands = re.findall(r"rft-jax (run|study) ((?:.*\\\n)*.*)", text)
    assert commands or f"python experiments/{path.name}" in text
    for name, command in commands:
        file, *arguments = shlex.split(command.replace("\\\n", " "))
        assert file == f"experiments/{path.name}"
        kind: Any = {"run": RunOptions, "study": StudyOptions}[name]
        _, fields = args.read(kind, [file, *arguments], name)
        args.apply(load(path), fields)


def test_deepseekmath_has_the_published_settings() -> None:
    for config in load(ROOT / "experiments" / "math_deepseekmath_7b.py").values():
        assert config.rollout is not None
        assert config.rollout.questions_per_step * config.rollout.samples_per_question == 1024
        assert config.rollout.samples_per_question == 64
        assert config.optimizer.learning_rate == 1e-6
        assert config.data.max_completion_tokens == 1024
        assert config.objective.denominator == "sampled"


def test_deepseekmath_takes_other_questions() -> None:
    path = ROOT / "experiments" / "math_deepseekmath_7b.py"
    for folder, environment in (("data/math", {}), ("other", {"QUESTIONS_DIR": "other"})):
        for config in load(path, environment).values():
            assert config.data.train == f"jsonl:{folder}/train.jsonl[:-256]"
            assert config.data.validation == f"jsonl:{folder}/train.jsonl[-256:]"
            assert config.data.test == f"jsonl:{folder}/test.jsonl"


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for file in FILES:
        text = json.dumps(resolved(file), indent=1) + "\n"
        golden_path(file).write_text(text, encoding="utf-8")
        print(golden_path(file).relative_to(ROOT))
