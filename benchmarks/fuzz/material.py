"""What is damaged: a tiny experiment, workdirs of it, and a model of its policy."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

STUDY = '''"""The smallest experiment with every method."""

from dataclasses import replace

from rft_jax.config import (
    CheckpointConfig, Config, DataConfig, EvaluationConfig, ModelConfig, OptimizerConfig,
    PoolConfig, RolloutConfig, SelectionConfig, TokenizerConfig, UpdateConfig, VerificationConfig,
)

QUESTIONS = "jsonl:questions.jsonl"


def experiment():
    sft = Config(
        method="sft",
        data=DataConfig(
            train=QUESTIONS, validation=QUESTIONS, test=QUESTIONS + "[:6]",
            max_prompt_tokens=12, max_completion_tokens=8,
        ),
        tokenizer=TokenizerConfig(corpus=QUESTIONS, vocab_size=274),
        steps=4,
        model=ModelConfig(
            num_layers=2, d_model=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=24
        ),
        update=UpdateConfig(
            row_length=24, rows_per_microbatch=8, sequences_per_step=8, logits_at_once=2**14
        ),
        optimizer=OptimizerConfig(learning_rate=3e-2),
        verification=VerificationConfig(verifier="judge:even", canary="off", workers=1),
        evaluation=EvaluationConfig(every_steps=2, num_questions=5, questions_per_batch=8),
        checkpoint=CheckpointConfig(every_steps=2),
    )
    rft = replace(
        sft,
        method="rft",
        init_from="run:sft",
        rollout=RolloutConfig(questions_per_step=8, samples_per_question=4),
        pool=PoolConfig(rollout_steps=2),
        selection=SelectionConfig(),
    )
    online = replace(
        rft,
        method="online_rft",
        pool=None,
        update=replace(sft.update, sequences_per_step=0),
        steps=STEPS,
    )
    return {"sft": sft, "rft": rft, "online": online}


STEPS = 24
'''

MODEL_STUDY = '''"""Online RFT from a published model."""

from dataclasses import replace

from rft_jax.config import TokenizerConfig
from rft_jax.hub.families import model_of
from study import experiment as tiny


def experiment():
    online = replace(
        tiny()["online"],
        init_from="hf:model",
        tokenizer=TokenizerConfig(path="hf:model"),
        model=model_of("model"),
        steps=2,
    )
    return {"online": online}
'''

JUDGE = '''"""A verifier that accepts about half of an unskilled policy's outputs."""

number = 3


def even(reference, output):
    return len(output) % 2 == 0
'''

TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"

QUESTIONS = [
    {"question": f"{a}+{b}?", "answer": str(a + b), "solution": f"#### {a + b}"}
    for a in range(4)
    for b in range(4)
]
OUTPUTS = [
    {"reference": str(row["answer"]), "output": f"#### {number % 5}"}
    for number, row in enumerate(QUESTIONS)
]

RESUME = ["run", "study.py", "--workdir", "stopped"]
SAMPLE = ["--questions", "jsonl:questions.jsonl[:8]", "--max_completion_tokens", "8"]


class Material(NamedTuple):
    """Folder of what inputs are made of, and what undamaged material gives."""

    folder: Path
    expected: dict[str, Any]

    def take(self, name: str, here: Path) -> Path:
        """Copy a part of the material, if it was made, into an input's folder."""
        if (self.folder / name).is_dir():
            shutil.copytree(self.folder / name, here / name)
        elif (self.folder / name).exists():
            shutil.copy(self.folder / name, here / name)
        return here / name


def make(folder: Path, *, whole: bool) -> Material:
    """Make the material in `folder`, or take what an earlier fuzz made there.

    whole: with workdirs and a model, which take a minute; without, commands find none.
    """
    made = folder / "expected.json"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "study.py").write_text(STUDY)
        (folder / "model_study.py").write_text(MODEL_STUDY)
        (folder / "judge.py").write_text(JUDGE)
        _rows(folder / "questions.jsonl", QUESTIONS)
        _rows(folder / "outputs.jsonl", OUTPUTS)
    if not whole:
        return Material(folder, {})
    if not made.exists():
        _stop(folder)
        _command(folder, "run", "study.py", "--workdir", "done")
        _command(folder, "convert", "done/rft", "model", "--max_shard_gb", "0.00002")
        (folder / "model" / "chat_template.jinja").write_text(TEMPLATE)
        made.write_text(json.dumps(_expected(folder)))
    return Material(folder, json.loads(made.read_text()))


def outcome(words: Sequence[str], here: Path) -> Any:
    """What a command that ended well has computed: nothing of it may depend on damage unseen."""
    if words[0] == "run":
        path = here / "stopped" / "online" / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        names = ("greedy/accuracy", "objective/value", "optimizer/gradient_norm")
        return {
            f"{row['kind']} {row['step']} {name}": row[name]
            for row in rows
            for name in names
            if name in row
        }
    if words[0] == "sample":
        return (here / "o.jsonl").read_text()
    return None


def _rows(path: Path, rows: Sequence[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _command(folder: Path, *words: str) -> None:
    subprocess.run([sys.executable, "-m", "rft_jax", *words], cwd=folder, check=True,
                   capture_output=True)  # fmt: skip


def _stop(folder: Path) -> None:
    """FOLDER/stopped: a run of Online RFT that SIGTERM stopped before its end."""
    process = subprocess.Popen([sys.executable, "-m", "rft_jax", *RESUME], cwd=folder,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    metrics = folder / "stopped" / "online" / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and b'"train"' in metrics.read_bytes():
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.01)
    if process.wait() != 128 + signal.SIGTERM:
        raise RuntimeError(f"the run that was to be stopped ended with {process.returncode}")


def _expected(folder: Path) -> dict[str, Any]:
    """Outcomes of the commands on copies of the undamaged material."""
    here = folder / "copy"
    expected = {}
    for words in (RESUME, ["sample", "done/sft", "--out", "o.jsonl", *SAMPLE],
                  ["sample", "done/rft", "--out", "o.jsonl", *SAMPLE],
                  ["sample", "model", "--out", "o.jsonl", *SAMPLE]):  # fmt: skip
        here.mkdir()
        for name in ("study.py", "judge.py", "questions.jsonl", "done", "stopped", "model"):
            Material(folder, {}).take(name, here)
        _command(here, *words)
        expected[" ".join(words)] = outcome(words, here)
        shutil.rmtree(here)
    return expected


def environment(folder: Path) -> dict[str, str]:
    """One CPU device, programs kept in the folder, no network, and a home of its own."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "HF_HUB_OFFLINE": "1",
        "HOME": str(folder / "home"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
