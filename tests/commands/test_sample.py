"""`rft-jax sample`: outputs of a run and of a published model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import checkpoints
import numpy as np
import pytest
import tiny_experiment
from checkpoints import refusal

from rft_jax.checkpoint.policy import find
from rft_jax.commands import sample as sampling_command
from rft_jax.commands.main import main
from rft_jax.hub import load as importing
from rft_jax.rollout import engine as rollouts


class Found(NamedTuple):
    """A run, a published model, and the source of their questions."""

    run: str
    published: str
    source: str


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("sampling")
    source = tiny_experiment.write_questions(folder)
    config = checkpoints.sft(source)
    config = replace(config, evaluation=replace(config.evaluation, temperature=0.7))
    checkpoints.write_run(folder / "work", "sft", config)
    published = checkpoints.write_published(folder / "qwen")
    return Found(str(folder / "work" / "sft"), str(published), source)


@pytest.fixture(autouse=True)
def _command_line() -> Iterator[None]:
    with checkpoints.command_line():
        yield


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sampled(target: str, source: str, out: Path, *options: str) -> list[dict[str, Any]]:
    assert main(["sample", target, "--questions", source, "--out", str(out), *options]) == 0
    return rows(out)


def alike(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    return [row | {"log_prob": pytest.approx(row["log_prob"], abs=1e-4)} for row in ours] == theirs


@pytest.mark.slow
def test_rows_in_order_of_question_and_sample(
    found: Found, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    got = sampled(found.run, f"{found.source}[3:8]", out, "--samples_per_question", "3")
    assert [(row["question_id"], row["sample_index"]) for row in got] == [
        (question, sample) for question in range(3, 8) for sample in range(3)
    ]
    first = got[0]
    assert list(first) == [
        "question_id", "question", "reference", "sample_index", "output", "finished", "num_tokens",
        "log_prob",
    ]  # fmt: skip
    assert (first["question"], first["reference"]) == ("3+0?", "3")
    tokens = sum(row["num_tokens"] for row in got)
    truncated = sum(not row["finished"] for row in got)
    assert 0 < truncated < 15
    assert all(row["num_tokens"] == 8 for row in got if not row["finished"])
    assert all(row["log_prob"] < 0 for row in got)
    said = f"15 outputs, {tokens} tokens, {truncated} outputs truncated: {out}\n"
    assert capsys.readouterr().out == said
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    # Another seed, another temperature than the run's evaluations have; the same in both.
    defaults = ["--samples_per_question", "3", "--seed", "3", "--temperature", "0.7"]
    again = sampled(found.run, f"{found.source}[3:8]", tmp_path / "again", *defaults)
    assert alike(again, got)
    other = sampled(
        found.run,
        f"{found.source}[3:8]",
        tmp_path / "o",
        "--samples_per_question",
        "3",
        "--seed",
        "4",
    )
    assert not alike(other, got)


@pytest.mark.slow
def test_batches_blocks_and_meshes_change_nothing(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sampled(found.run, found.source, tmp_path / "whole", "--samples_per_question", "2")
    monkeypatch.setattr(rollouts, "BATCHES_AT_ONCE", 1)
    options = ["--questions_per_batch", "5", "--max_prompt_tokens", "11", "--mesh", "2", "2", "2"]
    parts = sampled(
        found.run, found.source, tmp_path / "parts", "--samples_per_question", "2", *options
    )
    assert len(parts) == 32
    assert alike(parts, whole)


@pytest.mark.slow
def test_a_published_model_chats(
    found: Found, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Greedily as transformers does, whose log-prob of the output is the same."""
    from reference_models import torch, transformers

    got = sampled(
        found.published, f"{found.source}[:2]", tmp_path / "out", "--greedy",
        "--max_completion_tokens", "6",
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(found.published, dtype="float32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(found.published)
    ours = find(found.published).tokenizer
    for row in got:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}], add_generation_prompt=True
        )["input_ids"]
        total, drawn = 0.0, []
        for _ in range(row["num_tokens"]):
            with torch.no_grad():
                scores = model(torch.tensor([ids + drawn])).logits[0, -1].log_softmax(-1)
            drawn.append(int(scores.argmax()))
            total += float(scores.max())
        assert row["log_prob"] == pytest.approx(total, abs=1e-3)
        assert row["output"] == ours.decode(drawn[:-1] if row["finished"] else drawn)
    assert "prompt format: chat" in caplog.messages
    assert f"sample {found.published}  output 2/2" in caplog.messages[-1]


@pytest.mark.slow
def test_verify_reads_what_sample_writes(found: Found, tmp_path: Path) -> None:
    sampled(found.run, f"{found.source}[:3]", tmp_path / "out", "--samples_per_question", "2")
    verdicts = tmp_path / "verdicts"
    rule = ["--verifier", "tiny_experiment:even_length"]
    assert main(["verify", str(tmp_path / "out"), "--out", str(verdicts), *rule]) == 0
    for row in rows(verdicts):
        right = len(row["output"]) % 2 == 0
        assert row["verdict"] == ("correct" if right else "incorrect")


def test_a_refusal_comes_before_any_work(
    found: Found,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def put(*_: Any) -> None:
        raise AssertionError("parameters were loaded")

    monkeypatch.setattr(sampling_command, "to_sample_from", put)
    out, there = tmp_path / "out", tmp_path / "there"
    there.write_text("kept")
    asked = ["--questions", found.source]
    assert refusal(capsys, "sample", found.run, *asked, "--out", str(there)) == (
        f"rft-jax: error: --out {there} exists, and nothing is overwritten: name another file."
    )
    assert there.read_text() == "kept"
    assert refusal(capsys, "sample", found.run, *asked, "--out", str(tmp_path / "no" / "out")) == (
        f"rft-jax: error: --out {tmp_path}/no/out: cannot write here (No such file or directory)."
    )
    for args, said in (
        (
            ["--max_prompt_tokens", "2"],
            "prompts have more tokens than max_prompt_tokens, 2 (question 0 has",
        ),
        (["--mesh", "3", "1", "1"], "mesh is data=3 x fsdp=1 x tensor=1: it must make up the 8"),
    ):
        assert said in refusal(capsys, "sample", found.run, *asked, "--out", str(out), *args)
    work = str(Path(found.run).parent / "none")
    assert "the checkpoint is missing" in refusal(capsys, "sample", work, *asked, "--out", str(out))
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_weights_that_are_no_numbers_leave_nothing(
    found: Found,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def put(*_: Any) -> None:
        raise AssertionError("weights were put on a device")

    monkeypatch.setattr(importing, "load_params", put)
    folder = checkpoints.write_published(tmp_path / "model")
    from safetensors.numpy import load_file, save_file

    shard = sorted(folder.glob("*.safetensors"))[0]
    arrays = load_file(shard)
    name = sorted(arrays)[0]
    arrays[name] = np.full_like(arrays[name], np.inf)
    save_file(arrays, shard, metadata={"format": "pt"})
    said = refusal(
        capsys, "sample", str(folder), "--questions", found.source, "--out", str(tmp_path / "out")
    )
    assert f"tensor {name} is inf" in said
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_ctrl_c_leaves_nothing(
    found: Found,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling_command, "to_sample_from", stop)
    args = [found.run, "--questions", found.source, "--out", str(tmp_path / "out")]
    assert main(["sample", *args]) == 130
    assert "rft-jax: interrupted; nothing is written.\n" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
