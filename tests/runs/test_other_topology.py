"""A run that goes on with another mesh or on other devices: the same but for rounding, and said."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import programs
import pytest
import tiny_experiment
from killing import dies_in, newest

from rft_jax.config import MeshConfig, OptimizerConfig
from rft_jax.observe import log as metrics
from rft_jax.rollout import log as rollout_log
from rft_jax.runs.run import RunResult, run

pytestmark = pytest.mark.slow

# A large eps keeps Adam from magnifying the last bits of small gradients.
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, eps=1e-2)
WITHIN = 1e-5


def test_another_mesh_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tiny_experiment.write_questions(tmp_path)
    run("sft", {"sft": tiny_experiment.sft(source)}, tmp_path / "work")
    start = f"workdir:{tmp_path / 'work/sft'}"
    config = tiny_experiment.online_rft(source, init_from=start, optimizer=OPTIMIZER)
    assert run("x", {"x": config}, tmp_path / "whole").finished
    with pytest.MonkeyPatch.context() as patch:
        dies_in(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            run("x", {"x": config}, tmp_path / "again")
    moved = replace(config, mesh=MeshConfig(2, 2, 2))
    with caplog.at_level(logging.WARNING, "rft_jax"):
        assert run("x", {"x": moved}, tmp_path / "again") == RunResult(4, True)
    # The parts of this data share questions, which is warned of too.
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [message for message in told if "share" not in message] == [
        "x: resumes with mesh data=2 x fsdp=2 x tensor=2 on 8 x cpu; it was mesh data=-1 x fsdp=1 "
        "x tensor=1 on 8 x cpu before: sums are computed in another order, so results agree with "
        "those of an undisturbed run within rounding, not bit for bit"
    ]
    ours, theirs = newest(tmp_path / "again/x"), newest(tmp_path / "whole/x")
    assert ours[2] == theirs[2]
    for one, other in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(one, other, atol=WITHIN)
    logs = [metrics.read(tmp_path / name / "x/metrics.jsonl") for name in ("again", "whole")]
    steps = [sorted((line["kind"], line["step"]) for line in log) for log in logs]
    assert steps[0] == steps[1]
    samples = [
        rollout_log.read_folders([str(tmp_path / name / "x/rollouts")])
        for name in ("again", "whole")
    ]
    assert [one.tokens for _, one in samples[0]] == [one.tokens for _, one in samples[1]]
    saved = json.loads((tmp_path / "again/x/config.json").read_text())["config"]["mesh"]
    assert saved == {"data": 2, "fsdp": 2, "tensor": 2}


def test_fewer_devices_go_on(tmp_path: Path) -> None:
    """Killed on two devices, finished on one."""
    file = tiny_experiment.write_experiment(tmp_path)
    options = (
        "--only", "sft", "--sft.steps=14", "--sft.optimizer.eps=1e-2",
        "--sft.evaluation.every_steps=0", "--sft.data.test=",
    )  # fmt: skip

    def start(workdir: str, devices: int) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
            "XLA_FLAGS": programs.xla_flags(devices),
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        }
        return subprocess.Popen(
            [sys.executable, "-m", "rft_jax", "run", str(file), "--workdir", workdir, *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=environment, cwd=tmp_path,
        )  # fmt: skip

    killed = start("again", 2)
    while killed.poll() is None and not (tmp_path / "again/sft/checkpoints/4").is_dir():
        time.sleep(0.001)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "again/sft/finished.json").exists()
    for workdir in ("again", "whole"):
        process = start(workdir, 1)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert ("on 1 x cpu; it was mesh" in errors) == (workdir == "again")
        assert ("on 2 x cpu before" in errors) == (workdir == "again")
    ours, theirs = newest(tmp_path / "again/sft"), newest(tmp_path / "whole/sft")
    assert ours[0] == theirs[0] == 14
    for one, other in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(one, other, atol=WITHIN)
