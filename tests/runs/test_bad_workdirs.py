"""Workdirs, checkpoints, logs, starting points and settings that cannot serve: through the command
line, each ends in one line that says what to mend, with exit status 2, before any step is made."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tiny_experiment

from rft_jax.checkpoint import integrity as checkpoint_health
from rft_jax.checkpoint import manager as checkpoint
from rft_jax.checkpoint.manager import Saved
from rft_jax.checkpoint.provenance import save_config
from rft_jax.commands import main as cli
from rft_jax.config import Config
from rft_jax.data.tokenizers import load as tokenizers
from rft_jax.data.tokenizers.sentencepiece_model import train
from rft_jax.distributed.mesh import make_mesh
from rft_jax.rollout import log as rollout_log
from rft_jax.runs import setup
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.state import make_layout
from rft_jax.types import Question, Sample, Verdict

HOST = {
    "position": {"epoch": 0, "index": 0},
    "counters": {
        "sampled_tokens": 0, "sampled_outputs": 0, "updates": 4, "skipped_updates": 0,
        "seconds": 1.0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with study.py, questions, and work/: its SFT run finished (at zero parameters) and
    its RFT and Online RFT runs four steps on their way."""
    folder = tmp_path_factory.mktemp("made")
    tiny_experiment.write_questions(folder)
    source = "jsonl:questions.jsonl"
    (folder / "study.py").write_text(
        f"import tiny_experiment\n\n\ndef experiment():\n"
        f"    return tiny_experiment.experiment({source!r})\n",
        encoding="utf-8",
    )
    before = Path.cwd()
    os.chdir(folder)
    try:
        for name, config in tiny_experiment.experiment(source).items():
            save_run(Path("work"), name, config)
    finally:
        os.chdir(before)
    costs = {"cost/updates": 8, "cost/skipped_updates": 0}
    (folder / "work/sft/finished.json").write_text(json.dumps(costs), encoding="utf-8")
    return folder


def save_run(workdir: Path, name: str, config: Config) -> None:
    """WORKDIR/NAME with its config and a checkpoint of zeros: of the end for sft, or of step 4."""
    tokenizer = setup.ensure_tokenizer(config, workdir)
    optimizer = make_optimizer(config.optimizer, config.steps)
    layout = make_layout(config.model, make_mesh(config.mesh), optimizer, tokenizer.vocab_size)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), layout.state)
    save_config(workdir / name, name, config, device="cpu", num_devices=8)
    with checkpoint.open_manager(workdir / name / "checkpoints", config.checkpoint) as manager:
        checkpoint.save(manager, config.steps if name == "sft" else 4, Saved(state, HOST))


@pytest.fixture(autouse=True)
def _own_copy(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test stands in a copy of it, and leaves no global setting."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", [*sys.path])
    package = logging.getLogger("rft_jax")
    level, handlers = package.level, [*logging.getLogger().handlers]
    yield
    package.setLevel(level)
    logging.getLogger().handlers[:] = handlers


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A function that gives the one line on stderr of a command that is refused."""

    def refused(*args: str) -> str:
        assert cli.main(["run", "study.py", "--workdir", "work", *args]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("rft-jax: error: ")
        assert captured.err.count("\n") == 1, captured.err
        return captured.err.removeprefix("rft-jax: error: ").rstrip("\n")

    return refused


Refusal = Callable[..., str]


# Workdirs.


def test_workdir_is_a_file(refusal: Refusal) -> None:
    shutil.rmtree("work")
    Path("work").write_text("", encoding="utf-8")
    assert refusal() == "--workdir work is a file: a folder is expected."


def test_workdir_under_a_file(refusal: Refusal) -> None:
    assert refusal("--workdir", "study.py/work") == (
        "study.py/work: cannot write here (Not a directory): use another --workdir."
    )


@pytest.mark.slow
@pytest.mark.parametrize("inner", [False, True])
def test_workdir_is_not_writable(inner: bool) -> None:
    """In a process of its own, since root writes anywhere until it gives that right away."""
    folder = Path("closed")
    (folder / "sft").mkdir(parents=True)
    closed = folder / "sft" if inner else folder
    closed.chmod(0o500)
    rights = "-dac_override,-dac_read_search"
    as_others = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]
    done = subprocess.run(
        [*(as_others if os.geteuid() == 0 else []), sys.executable, "-m", "rft_jax", "run",
         "study.py", "--workdir", "closed"],
        env=os.environ | {"PYTHONPATH": str(Path(tiny_experiment.__file__).parent)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "cannot write here (Permission denied): use another" in done.stderr


def test_folder_of_a_run_is_a_file(refusal: Refusal) -> None:
    shutil.rmtree("work/sft")
    Path("work/sft").write_text("", encoding="utf-8")
    assert refusal() == "work/sft: cannot write here (File exists): use another --workdir."


def test_workdir_of_another_config(refusal: Refusal) -> None:
    assert refusal("--online_rft.seed", "1") == (
        "work/online_rft holds a run with another config: seed is 1, was 0: use another --workdir "
        "or the old values."
    )


def test_saved_config_is_damaged(refusal: Refusal) -> None:
    Path("work/sft/config.json").write_text('{"name": "sf', encoding="utf-8")
    assert refusal().startswith("work/sft/config.json is not JSON (")


def test_experiment_json_is_damaged(refusal: Refusal) -> None:
    Path("work/experiment.json").write_text("{}", encoding="utf-8")
    assert refusal() == "work/experiment.json is damaged: remove it or use another --workdir."


def test_metrics_are_damaged(refusal: Refusal) -> None:
    Path("work/online_rft/metrics.jsonl").write_text('{"step": 1}\n{"kind"', encoding="utf-8")
    assert refusal("--only", "online_rft") == (
        "work/online_rft/metrics.jsonl:1: field 'kind' is missing: remove the line."
    )


# Tokenizers.


def test_tokenizer_is_missing(refusal: Refusal) -> None:
    args = ["--workdir", "w"]
    for run in ("sft", "rft", "online_rft"):
        args += [f"--{run}.tokenizer.path=no.model", f"--{run}.tokenizer.corpus="]
        args += [f"--{run}.tokenizer.vocab_size=0"]
    assert refusal(*args) == (
        "no.model: cannot read the tokenizer (No such file or directory): name a SentencePiece "
        ".model file, a Hugging Face folder or hf:ORG/NAME in tokenizer.path, or train one with "
        "tokenizer.corpus."
    )


def test_tokenizer_is_damaged(refusal: Refusal) -> None:
    Path("work/tokenizer.model").write_bytes(b"\x00" * 40)
    assert refusal("--only", "rft") == (
        "work/tokenizer.model: no SentencePiece model (40 bytes): copy it again, or delete it to "
        "train a new one."
    )


def test_tokenizer_of_another_size(refusal: Refusal) -> None:
    Path("work/tokenizer.model").unlink()
    questions = [json.loads(line) for line in Path("questions.jsonl").read_text().splitlines()]
    texts = [text for row in questions for text in (row["question"], row["solution"])]
    train(texts, "work/tokenizer.model", 272)
    assert refusal("--only", "rft") == (
        "tokenizer.vocab_size is 274 and work/tokenizer.model has 272 pieces: choose another "
        "--workdir or that size."
    )


def test_tokenizer_of_the_start_is_another(refusal: Refusal) -> None:
    questions = [json.loads(line) for line in Path("questions.jsonl").read_text().splitlines()]
    train([row["question"] + " or so" for row in questions], "w/tokenizer.model", 274)
    args = ["--workdir", "w", "--only", "rft", "--rft.init_from", "workdir:work/sft"]
    assert refusal(*args) == (
        "init_from is workdir:work/sft, whose tokenizer, work/tokenizer.model, is another than "
        "w/tokenizer.model: set tokenizer.path to that of init_from."
    )


# Starting points.


def from_there(*args: str) -> list[str]:
    """Arguments of an RFT run in a new workdir."""
    shutil.copytree("work", "w", ignore=shutil.ignore_patterns("rft", "experiment.json"))
    return ["--workdir", "w", "--only", "rft", *args]


def test_start_is_not_finished(refusal: Refusal) -> None:
    args = from_there()
    Path("w/sft/finished.json").unlink()
    assert refusal(*args) == (
        "init_from is run:sft: run sft is not finished; carry it out first (leave out --only), "
        "or start from run:sft@STEP of 8."
    )


def test_start_does_not_exist(refusal: Refusal) -> None:
    assert refusal(*from_there("--rft.init_from", "workdir:nowhere")) == (
        "init_from is workdir:nowhere: nowhere is not finished; carry it out first."
    )


def test_start_has_no_checkpoint(refusal: Refusal) -> None:
    args = from_there()
    shutil.rmtree("w/sft/checkpoints/8")
    folder = Path("w/sft/checkpoints").absolute()
    assert refusal(*args) == f"{folder}: no checkpoint here; finish the run that makes it."


def test_start_is_damaged(refusal: Refusal) -> None:
    args = from_there()
    for file in Path("w/sft/checkpoints/8/params").rglob("d/*"):
        file.write_bytes(b"?" * 10)
    folder = Path("w/sft/checkpoints/8").absolute()
    found = refusal(*args)
    assert found.startswith(f"{folder}: this checkpoint is damaged (params/")
    assert found.endswith("start over with another --workdir.")


def test_start_is_of_another_shape(refusal: Refusal) -> None:
    args = from_there("--rft.init_from", "workdir:work/sft", "--rft.model.mlp_dim", "32")
    assert refusal(*args) == (
        "model.mlp_dim is 32 and init_from, workdir:work/sft, was trained with 24: use the same."
    )


def test_start_has_other_rotations(refusal: Refusal) -> None:
    """What changes the policy without changing a shape."""
    args = from_there("--rft.init_from", "workdir:work/sft", "--rft.model.rope_theta", "500")
    assert refusal(*args) == (
        "model.rope_theta is 500.0 and init_from, workdir:work/sft, was trained with 10000.0: use "
        "the same."
    )


# Checkpoints.


def test_every_checkpoint_is_damaged(refusal: Refusal) -> None:
    shutil.rmtree("work/online_rft/checkpoints/4/training")
    assert refusal("--only", "online_rft") == (
        "work/online_rft/checkpoints: no checkpoint here is whole: 4 (training/_METADATA is "
        "missing): bring the files back, or start over with another --workdir."
    )


def test_checkpoint_of_another_version(refusal: Refusal) -> None:
    path = Path("work/online_rft/checkpoints/4").absolute()
    (path / "host/metadata").write_text('{"position": {"epoch": 0}, "counters": 3}')
    checkpoint_health.write_record(path, None)
    assert refusal("--only", "online_rft") == (
        "work/online_rft/checkpoints/4: host holds {'position': {'epoch': 0}, 'counters': 3}, "
        "which is no position and counters of this version: use the version that wrote it, or "
        "start over with another --workdir."
    )


def test_source_has_shrunk(refusal: Refusal) -> None:
    path = Path("work/online_rft/checkpoints/4/host/metadata")
    path.write_text(json.dumps(HOST | {"position": {"epoch": 1, "index": 16}}))
    checkpoint_health.write_record(path.parents[1], None)
    assert refusal("--only", "online_rft") == (
        "question stream: epoch 1, index 16 does not exist among 16 questions: the source has "
        "changed since the position was saved; bring it back or start a new run."
    )


# Logs of rollouts.


def logged(folder: str, questions: str = "1+1?", **changes: Any) -> None:
    """One rollout of one accepted output."""
    tokenizer = tokenizers.load("work/tokenizer.model")
    tokens = (*tokenizer.encode("#### 2"), tokenizer.eos_id)
    sample = Sample(
        question_id=5, sample_index=0, step=0, text="#### 2", tokens=tokens, log_probs=(),
        finished=True, verdict=Verdict.CORRECT, reason="equal",
    )  # fmt: skip
    sample = replace(sample, **changes)
    sample = replace(sample, log_probs=(-1.0,) * len(sample.tokens))
    question = Question(id=5, text=questions, answer="2")
    rollout_log.write(Path(folder), 0, [sample], [question], seed=0)


def from_logs(*folders: str) -> list[str]:
    """Arguments of an RFT run from these logs in a new workdir."""
    Path("log.py").write_text(
        "from dataclasses import replace\nimport tiny_experiment\n"
        "from rft_jax.config import PoolConfig\n\n\ndef experiment():\n"
        "    base = tiny_experiment.rft('jsonl:questions.jsonl', init_from='workdir:work/sft')\n"
        f"    pool = PoolConfig(from_rollouts={folders!r})\n"
        "    return {'rft': replace(base, rollout=None, pool=pool)}\n",
        encoding="utf-8",
    )
    shutil.copytree("work", "w", ignore=shutil.ignore_patterns("*rft", "experiment.json"))
    shutil.move("log.py", "study.py")
    return ["--workdir", "w", "--rft.evaluation.every_steps", "0"]


def test_log_does_not_exist(refusal: Refusal) -> None:
    assert refusal(*from_logs("nowhere")) == (
        "nowhere: no step-*.jsonl here; name a RUN/rollouts folder."
    )


def test_log_is_damaged(refusal: Refusal) -> None:
    logged("a")
    with Path("a/step-000000.jsonl").open("a") as file:
        file.write('\n{"question_id": 5}\n')
    assert refusal(*from_logs("a")) == (
        "a/step-000000.jsonl:3: field 'sample_index' is missing: remove the line."
    )


def test_log_has_an_unknown_verdict(refusal: Refusal) -> None:
    logged("a")
    path = Path("a/step-000000.jsonl")
    path.write_text(path.read_text().replace('"correct"', '"right"'))
    assert refusal(*from_logs("a")) == (
        "a/step-000000.jsonl:1: field 'verdict' is 'right', expected one of correct, incorrect, "
        "undecided: remove the line."
    )


def test_logs_of_different_sources(refusal: Refusal) -> None:
    logged("a")
    logged("b", questions="2+0?")
    assert refusal(*from_logs("a", "b")) == (
        "a, b: question 5 stands for two different questions; unite only logs of runs on one "
        "source."
    )


def test_log_has_tokens_that_are_none(refusal: Refusal) -> None:
    logged("a")
    path = Path("a/step-000000.jsonl")
    path.write_text(path.read_text().replace('"tokens": [', '"tokens": [0.5, '))
    assert refusal(*from_logs("a")) == (
        "a/step-000000.jsonl:1: 'tokens' and 'log_probs' must be equally many token ids and "
        "numbers: remove the line."
    )


@pytest.mark.parametrize(
    "changes", [{"text": "#### 3"}, {"tokens": (9, 3000, 2)}, {"tokens": (9, -1, 2)}]
)
def test_log_of_another_tokenizer(refusal: Refusal, changes: dict[str, Any]) -> None:
    logged("a", **changes)
    assert refusal(*from_logs("a")) == (
        "a: the tokens of an output of step 0, question 5 are not its text under "
        "w/tokenizer.model: name the tokenizer it was sampled with as tokenizer.path."
    )


@pytest.mark.parametrize("count", [0, 9])
def test_log_of_other_lengths(refusal: Refusal, count: int) -> None:
    logged("a", tokens=(9,) * count)
    assert refusal(*from_logs("a")) == (
        f"a: an output of step 0, question 5 has {count} tokens and data.max_completion_tokens is "
        "8: set it to that of the run that sampled."
    )


def test_log_of_longer_prompts(refusal: Refusal) -> None:
    logged("a", questions="1+1+1+1+1+1+1+1?")
    found = refusal(*from_logs("a"))
    assert found.startswith("a: 1 of 1 prompts have more tokens than data.max_prompt_tokens, 12 (")


def test_log_without_a_correct_output(refusal: Refusal) -> None:
    logged("a", verdict=Verdict.UNDECIDED)
    assert refusal(*from_logs("a")).startswith(
        "a: none of 1 sampled outputs is trained on (method rft; 0 are correct): look at them"
    )


def test_pool_has_lost_a_rollout(refusal: Refusal) -> None:
    assert refusal("--only", "rft") == (
        "work/rft/rollouts/step-000000.jsonl: there is no such rollout file; name a RUN/rollouts "
        "folder."
    )


# Settings that only show against data, devices or modules.


@pytest.mark.parametrize(
    ("run", "args", "message"),
    [
        ("online_rft", ["--online_rft.rollout.questions_per_step", "17"],
         "rollout.questions_per_step is 17 and jsonl:questions.jsonl has 16 questions: ask at most "
         "that many in a step."),
        ("sft", ["--sft.mesh.fsdp", "3"],
         "mesh is data=-1 x fsdp=3 x tensor=1: it must make up the 8 devices there are; leave one "
         "axis at -1 to infer it. JAX_NUM_CPU_DEVICES sets how many a CPU is split into."),
        ("sft", ["--sft.mesh.data", "2"],
         "mesh is data=2 x fsdp=1 x tensor=1: it must make up the 8 devices there are; leave one "
         "axis at -1 to infer it. JAX_NUM_CPU_DEVICES sets how many a CPU is split into."),
        ("sft", ["--sft.mesh.tensor", "4"],
         "mesh.tensor is 4: it must divide model.num_heads, 2, and model.num_kv_heads, 2, and the "
         "rows of the embedding (model.vocab_size, or else the pieces of the tokenizer), 274; "
         "choose another mesh or model size."),
        ("sft", ["--sft.update.rows_per_microbatch", "12"],
         "update.rows_per_microbatch is 12: it must be a multiple of mesh.data x mesh.fsdp, 8."),
        ("sft", ["--sft.model.attention", "splash"],
         "model.attention is splash: splash attention runs on a TPU, and this is cpu; leave it at "
         "auto."),
        ("sft", ["--sft.data.max_prompt_tokens", "4"],
         "jsonl:questions.jsonl: 16 of 16 prompts have more tokens than data.max_prompt_tokens, 4 "
         "(question 0 has 6, question 1 has 6, question 2 has 6, 13 more; 6 would hold all); "
         "jsonl:questions.jsonl: 5 of 5 prompts have more tokens than data.max_prompt_tokens, 4 "
         "(question 0 has 6, question 1 has 6, question 2 has 6, 2 more; 6 would hold all); "
         "jsonl:questions.jsonl[:6]: 6 of 6 prompts have more tokens than data.max_prompt_tokens, "
         "4 (question 0 has 6, question 1 has 6, question 2 has 6, 3 more; 6 would hold all): "
         "raise it, or leave them out with data.drop_too_long=True."),
        ("sft", ["--sft.data.max_completion_tokens", "2"],
         "jsonl:questions.jsonl: 16 of 16 demonstrations have more tokens than "
         "data.max_completion_tokens, 2 (question 0 has 4, question 1 has 4, question 2 has 4, 13 "
         "more; 4 would hold all): raise it, or leave them out with data.drop_too_long=True."),
        ("sft", ["--sft.data.train", "jsonl:plain.jsonl"],
         "jsonl:plain.jsonl: question 0 has no solution, and the method trains on demonstrations; "
         "give every row a solution or choose another source."),
        ("sft", ["--sft.data.validation", "jsonl:no.jsonl"],
         "no.jsonl: cannot read the questions (No such file or directory): give the path of a "
         "JSONL file, relative to the working directory."),
        ("sft", ["--sft.verification.verifier", "no_such_module:f"],
         "verification.verifier is 'no_such_module:f': module no_such_module cannot be imported in "
         "a worker (ModuleNotFoundError: No module named 'no_such_module'); it must lie in the "
         "current folder or on the Python path."),
        ("sft", ["--sft.verification.verifier", "tiny_experiment:no"],
         "verification.verifier is 'tiny_experiment:no': tiny_experiment.no does not exist; it "
         "must be a function (question, reference, output, **fields) -> bool, float or "
         "Verdict."),
    ],
)  # fmt: skip
def test_settings(refusal: Refusal, run: str, args: list[str], message: str) -> None:
    Path("plain.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    assert refusal("--workdir", "w", "--only", run, *args) == message
    assert not Path("w", run, "config.json").exists()


def test_no_run_begins_while_the_mesh_of_a_later_one_does_not_fit(refusal: Refusal) -> None:
    told = refusal("--workdir", "w", "--online_rft.mesh.fsdp", "3")
    assert told.startswith("mesh is data=-1 x fsdp=3 x tensor=1: it must make up the 8 devices")
    told = refusal("--workdir", "w", "--rft.mesh.tensor", "4", "--rft.mesh.data", "2")
    assert told.startswith("mesh.tensor is 4: it must divide model.num_heads, 2, and model.")
    assert not Path("w").exists()


def test_the_copies_are_sound(made: Path) -> None:
    """What the tests above break is whole before: the SFT run counts as carried out."""
    assert cli.main(["run", "study.py", "--workdir", "work", "--only", "sft"]) == 0
