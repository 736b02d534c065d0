"""docs/launch.md and launch/: what they start, and what they do with its exit statuses.

The programs that they call are replaced.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import rft_jax
from rft_jax.commands import args as arguments
from rft_jax.commands import main as cli
from rft_jax.commands.options import PlanOptions, RunOptions
from rft_jax.config import CheckpointConfig
from rft_jax.distributed.process import EXIT_USER
from rft_jax.distributed.watchdog import EXIT_LOST, Limits

ROOT = Path(rft_jax.__file__).parent.parent
LAUNCH = ROOT / "launch"
DOCS = (ROOT / "docs/launch.md").read_text(encoding="utf-8")

OF_OTHERS = {
    *("--worker", "--rename-dir-limit", "--metadata-cache-ttl-secs"),  # gcloud, gcsfuse
    *("--command", "--max-restarts", "--restart-on-exit-codes"),  # XPK
    *("--nodes", "--time", "--gpus-per-node", "--gpus-per-task", "--gpu-bind", "--signal"),  # SLURM
    "--cpus-per-task",
}
"""Options in the docs that are not this package's."""

AGAIN = {EXIT_LOST, 128 + signal.SIGABRT, 128 + signal.SIGKILL, 128 + signal.SIGSEGV}
AGAIN |= {128 + signal.SIGTERM, 128 + signal.SIGHUP}
"""Exit statuses that are worth another start."""


def stub(folder: Path, name: str, script: str) -> None:
    """A program of that name in `folder` that logs its arguments and then does `script`."""
    path = folder / name
    log = f"printf '%s\\0' {name} \"$@\" >>{folder}/calls; printf '\\n' >>{folder}/calls"
    path.write_text(f"#!/bin/bash\n{log}\n{script}\n")
    path.chmod(0o755)


def launch(
    folder: Path, script: str, args: Sequence[str], environment: Mapping[str, str]
) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """The ended script, and the calls of stubs in `folder`."""
    (folder / "calls").write_text("")
    path = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(LAUNCH / script), *args],
        env={"PATH": path, **environment},
        text=True,
        capture_output=True,
        timeout=60,
    )
    calls = (folder / "calls").read_text().split("\0\n")
    return done, [call.split("\0") for call in calls if call]


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((LAUNCH / name).read_text(encoding="utf-8")))


def is_bash(script: str) -> bool:
    return subprocess.run(["bash", "-n"], input=script, text=True, timeout=60).returncode == 0


def commands(text: str, command: str) -> list[str]:
    """What follows `rft-jax COMMAND`, on its line and those that continue it."""
    joined = text.replace("\\\n", "")
    return re.findall(rf'rft-jax"? {command}([^`\n]*)', joined)


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*", text))


OWN = {f"--{name}" for name, one in arguments.declared(RunOptions).items() if not one.positional}
"""Options of run that are no fields of its runs."""


# What is named exists.


@pytest.mark.parametrize("name", ["tpu_slice.sh", "slurm.sbatch"])
def test_script_is_bash(name: str) -> None:
    assert is_bash((LAUNCH / name).read_text(encoding="utf-8"))


def test_options_in_the_docs_exist() -> None:
    plan = {f"--{field.name}" for field in dataclasses.fields(PlanOptions)}
    assert options(DOCS) - OF_OTHERS <= OWN | plan
    for said in commands(DOCS, "run"):
        assert options(said) - OF_OTHERS <= OWN


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_options_in_the_files_exist(path: Path) -> None:
    for said in commands(path.read_text(encoding="utf-8"), "run"):
        assert options(said) <= OWN


def test_help_has_the_options_of_a_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--help"]) == 0
    assert options(capsys.readouterr().out) >= OWN


def test_fields_in_the_docs_exist() -> None:
    fields = {field.name for field in dataclasses.fields(CheckpointConfig)}
    assert set(re.findall(r"checkpoint\.([a-z_]+)", DOCS)) == fields


def test_files_in_the_docs_exist() -> None:
    named = set(re.findall(r"launch/[a-z_]+\.[a-z]+", DOCS))
    assert named == {f"launch/{path.name}" for path in LAUNCH.iterdir()}


def test_limits_in_the_docs() -> None:
    limits = Limits()
    assert f"`--lost_after` seconds ({limits.lost_after:.0f})" in DOCS
    assert f"`--stalled_after` seconds ({limits.stalled_after:.0f})" in DOCS


def test_exit_statuses_in_the_docs() -> None:
    rows = re.findall(r"^\| ([0-9, ]+) \| .* \| (.*) \|$", DOCS, flags=re.MULTILINE)
    again = {int(number): answer for numbers, answer in rows for number in numbers.split(",")}
    assert {number for number, answer in again.items() if answer == "yes"} == AGAIN
    assert again[0] == again[EXIT_USER] == "no"
    assert 128 + signal.SIGINT in again


# SLURM


def run_slurm(
    folder: Path, status: int, *args: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    stub(folder, "srun", f"exit {status}")
    stub(folder, "scontrol", "")
    job = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}
    return launch(folder, "slurm.sbatch", args, job | environment)


def test_slurm_starts_the_command(tmp_path: Path) -> None:
    args = ("e x.py", "/w d", "--only", "rft", "--rft.steps", "4")
    done, calls = run_slurm(tmp_path, 0, *args, VENV="/v")
    assert done.returncode == 0, done.stderr
    (call,) = calls
    assert call[0] == "srun"
    assert "--cpus-per-task=8" in call
    program = call.index("/v/bin/rft-jax")
    assert call[program + 1 :] == ["run", "e x.py", "--workdir", "/w d", *args[2:]]


@pytest.mark.parametrize("status", sorted({*AGAIN, 0, 1, EXIT_USER, 253}))
def test_slurm_starts_again(tmp_path: Path, status: int) -> None:
    done, calls = run_slurm(tmp_path, status, "e.py", "/w")
    assert done.returncode == status
    requeued = [call for call in calls if call == ["scontrol", "requeue", "7"]]
    assert len(requeued) == (status in AGAIN)


def test_slurm_gives_up(tmp_path: Path) -> None:
    limits = {"MAX_RESTARTS": "3", "SLURM_RESTART_COUNT": "3"}
    done, calls = run_slurm(tmp_path, EXIT_LOST, "e.py", "/w", **limits)
    assert done.returncode == EXIT_LOST
    assert [call[0] for call in calls] == ["srun"]


def test_slurm_needs_a_workdir(tmp_path: Path) -> None:
    done, calls = run_slurm(tmp_path, 0, "e.py")
    assert done.returncode != 0
    assert "WORKDIR" in done.stderr
    assert not calls


# TPU slice

SLICE = {
    "NAME": "math", "ZONE": "z", "TYPE": "v5p-32", "RUNTIME": "r", "REPO": "https://host/repo",
    "REVISION": "abc", "SHARE": "10.0.0.2:/share", "EXPERIMENT": "experiments/e.py",
}  # fmt: skip

GCLOUD = """\
next() { head -n1 "$1"; sed -i 1d "$1"; }
case "$*" in
*" describe "*) state=$(next "$0.states"); [ "$state" = NONE ] && exit 1; echo "$state" ;;
*systemd-run*) exit "$(next "$0.statuses")" ;;
esac
exit 0
"""


def run_slice(
    folder: Path, states: Sequence[str], statuses: Sequence[int], *args: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """states: of the queued resource, each time it is asked for; statuses: of the command."""
    stub(folder, "gcloud", GCLOUD)
    stub(folder, "sleep", "")
    (folder / "gcloud.states").write_text("".join(f"{state}\n" for state in states))
    (folder / "gcloud.statuses").write_text("".join(f"{status}\n" for status in statuses))
    done, calls = launch(folder, "tpu_slice.sh", args, SLICE | environment)
    return done, [call for call in calls if call[0] == "gcloud"]


def verbs(calls: Sequence[Sequence[str]]) -> list[str]:
    """Of the calls but for `describe`, and `run` for the one that runs the command."""
    said = ["run" if "systemd-run" in " ".join(call) else call[4] for call in calls]
    return [verb for verb in said if verb != "describe"]


def test_slice_is_made_used_and_deleted(tmp_path: Path) -> None:
    states = ["NONE", "PROVISIONING", "ACTIVE"]
    args = ("--only", "rft", "--rft.data.system", "two words")
    done, calls = run_slice(tmp_path, states, [0], *args, SPOT="1", ENVIRONMENT="A=1 B=2")
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["create", "ssh", "run", "delete"]
    assert all("--zone=z" in call and "math" in call for call in calls)
    by_verb = {call[4]: call for call in calls}
    assert {"--spot", "--node-id=math", "--accelerator-type=v5p-32"} <= {*by_verb["create"]}
    sent = [word[len("--command=") :] for call in calls for word in call if "--command=" in word]
    assert len(sent) == 2
    assert all(is_bash(command) for command in sent)
    words = shlex.split(sent[1])
    assert {"--setenv=A=1", "--setenv=B=2"} <= {*words}
    run = words.index("run")
    assert words[run + 1 :] == ["experiments/e.py", "--workdir", "/mnt/share/math", *args]


def test_spot_slice_is_made_again(tmp_path: Path) -> None:
    states = ["ACTIVE", "SUSPENDING", "SUSPENDED", "NONE", "ACTIVE"]
    done, calls = run_slice(tmp_path, states, [255, 0])
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["ssh", "run", "delete", "create", "ssh", "run", "delete"]
    assert not any("--spot" in call for call in calls)


@pytest.mark.parametrize("status", sorted(AGAIN))
def test_slice_starts_again(tmp_path: Path, status: int) -> None:
    done, calls = run_slice(tmp_path, ["ACTIVE"] * 2, [status, 0])
    assert done.returncode == 0, done.stderr
    assert verbs(calls) == ["ssh", "run", "ssh", "run", "delete"]


def test_slice_keeps_to_an_error_of_the_user(tmp_path: Path) -> None:
    done, calls = run_slice(tmp_path, ["ACTIVE"], [EXIT_USER])
    assert done.returncode == EXIT_USER
    assert verbs(calls) == ["ssh", "run"]


def test_slice_gives_up(tmp_path: Path) -> None:
    done, calls = run_slice(tmp_path, ["ACTIVE"] * 3, [EXIT_LOST] * 3, RESTARTS="2")
    assert done.returncode == 1
    assert verbs(calls) == ["ssh", "run"] * 3


def test_slice_that_fails(tmp_path: Path) -> None:
    done, calls = run_slice(tmp_path, ["FAILED", "FAILED"], [])
    assert done.returncode == 1
    assert verbs(calls) == []


@pytest.mark.parametrize("name", SLICE)
def test_slice_needs_its_variables(tmp_path: Path, name: str) -> None:
    done, calls = run_slice(tmp_path, [], [], **{name: ""})
    assert done.returncode != 0
    assert name in done.stderr
    assert not calls


# Kubernetes


def environment_of(container: Mapping[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_kubernetes_counts_its_pods_alike() -> None:
    service, job = documents("kubernetes.yaml")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (wait,), (run,) = pod["initContainers"], pod["containers"]
    count = str(spec["completions"])
    assert str(spec["parallelism"]) == count
    assert environment_of(wait)["JAX_NUM_PROCESSES"] == count
    variables = environment_of(run)
    assert variables["JAX_NUM_PROCESSES"] == count
    index = variables["JAX_PROCESS_ID"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    name, subdomain = job["metadata"]["name"], service["metadata"]["name"]
    assert pod["subdomain"] == subdomain
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    host, _, port = variables["JAX_COORDINATOR_ADDRESS"].partition(":")
    assert host == f"{name}-0.{subdomain}"
    assert port.isdecimal()
    assert f"{name}-$i.{subdomain}" in wait["args"][0]
    assert wait["image"] == run["image"]


def test_kubernetes_starts_again() -> None:
    spec = documents("kubernetes.yaml")[1]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    ends: dict[int, str] = {}
    names = {one["name"] for one in spec["template"]["spec"]["containers"]}
    for rule in spec["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] in names
            assert rule["onExitCodes"]["operator"] == "In"
            ends |= dict.fromkeys(rule["onExitCodes"]["values"], rule["action"])
    # Anything else is counted, and the pod made again.
    assert ends == {
        EXIT_USER: "FailJob",
        128 + signal.SIGHUP: "Ignore",
        128 + signal.SIGTERM: "Ignore",
    }


def test_kubernetes_waits_for_the_others_to_notice() -> None:
    (wait,) = documents("kubernetes.yaml")[1]["spec"]["template"]["spec"]["initContainers"]
    (script,) = wait["args"]
    assert is_bash(script)
    (first,) = re.findall(r"^sleep ([0-9]+)$", script, flags=re.MULTILINE)
    assert int(first) > Limits().lost_after + 10


def test_kubernetes_starts_the_command() -> None:
    (run,) = documents("kubernetes.yaml")[1]["spec"]["template"]["spec"]["containers"]
    program, command, experiment, *rest = run["command"]
    assert (program, command) == ("rft-jax", "run")
    read, fields = arguments.read(RunOptions, [experiment, *rest], "run")
    shared = next(one["mountPath"] for one in run["volumeMounts"] if one["name"] == "shared")
    assert Path(read.workdir).is_relative_to(shared)
    assert not fields


# SkyPilot


def test_skypilot() -> None:
    (task,) = documents("skypilot.yaml")
    assert is_bash(task["setup"])
    assert is_bash(task["run"])
    recovery = task["resources"]["job_recovery"]
    # Without a limit only for what no error to mend can show as.
    assert recovery["recover_on_exit_codes"] == [128 + signal.SIGHUP, 128 + signal.SIGTERM]
    assert recovery["max_restarts_on_errors"] > 0
