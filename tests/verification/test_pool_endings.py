"""What the pool of verification workers leaves behind: nothing, however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rft_jax.errors import VerifierError
from rft_jax.types import Verdict
from rft_jax.verification.pool import Item, VerifierPool
from rft_jax.verification.rules import Limits, VerifierSpec


def items_of(*outputs: str) -> list[Item]:
    return [Item(reference="good", output=output, finished=True) for output in outputs]


def is_running(pid: int) -> bool:
    """Whether the process lives; a zombie does not."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(shown.stdout.strip()) and not shown.stdout.strip().startswith("Z")


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_closing_leaves_no_process_and_no_descriptor(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/dev/fd"))
    with VerifierPool(VerifierSpec("misbehaving:act"), Limits(1, 60.0)) as pool:
        pool.verify(items_of("exit", "good"))
        (judgement,) = pool.verify(items_of("pid"))
        pool.submit(items_of(f"child {tmp_path / 'child'}"))
        assert wait_until(lambda: (tmp_path / "child").exists())
        assert wait_until(lambda: bool((tmp_path / "child").read_text()))
    assert not is_running(int(judgement.reason))
    child = int((tmp_path / "child").read_text())
    assert wait_until(lambda: not is_running(child))
    assert len(os.listdir("/dev/fd")) == descriptors


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
@pytest.mark.parametrize(
    ("action", "reason"), [("daemon-and-exit", "crashed"), ("daemon-and-hang", "timeout")]
)
def test_what_detached_itself_ends_with_its_worker(
    tmp_path: Path, action: str, reason: str
) -> None:
    with VerifierPool(VerifierSpec("misbehaving:act"), Limits(1, 0.5)) as pool:
        judgements = pool.verify(items_of("good", f"{action} {tmp_path / 'pid'}", "good"))
        assert [judgement.reason for judgement in judgements] == ["accepted", reason, "accepted"]
        assert not is_running(int((tmp_path / "pid").read_text()))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_what_detached_itself_outlives_neither_the_deadline_nor_the_pool(tmp_path: Path) -> None:
    with VerifierPool(VerifierSpec("misbehaving:act"), Limits(1, 0.5)) as pool:
        (judged,) = pool.verify(items_of(f"daemon {tmp_path / 'first'}"))
        assert judged.verdict is Verdict.INCORRECT
        assert wait_until(lambda: (tmp_path / "first").exists())
        first = int((tmp_path / "first").read_text())
        assert wait_until(lambda: not is_running(first))
        (same,) = pool.verify(items_of("pid"))
        assert is_running(int(same.reason))
    with VerifierPool(VerifierSpec("misbehaving:act"), Limits(1, 60.0)) as pool:
        pool.verify(items_of(f"daemon {tmp_path / 'last'}"))
        assert wait_until(lambda: (tmp_path / "last").exists())
        assert is_running(int((tmp_path / "last").read_text()))
    assert not is_running(int((tmp_path / "last").read_text()))


def test_sigterm_to_all_processes_changes_nothing() -> None:
    """As SLURM sends it before the end: the outputs of the step are still to be verified."""
    with VerifierPool(VerifierSpec("misbehaving:act"), Limits(1, 60.0)) as pool:
        (judgement,) = pool.verify(items_of("pid"))
        waiting = pool.submit(items_of("sleep 0.5", "pid"))
        os.kill(int(judgement.reason), signal.SIGTERM)
        assert pool._nursery._process is not None
        pool._nursery._process.send_signal(signal.SIGTERM)
        slept, same = waiting.result()
        assert slept.verdict is Verdict.INCORRECT  # what it says, not undecided
        assert same.reason == judgement.reason


def test_a_bad_start_leaves_no_descriptor() -> None:
    descriptors = len(os.listdir("/dev/fd"))
    with pytest.raises(VerifierError):
        VerifierPool(VerifierSpec("hsh"), Limits(2, 1.0))
    assert len(os.listdir("/dev/fd")) == descriptors


_PARENT = """
import sys, time
from rft_jax.types import Verdict
from rft_jax.verification.pool import Item, VerifierPool
from rft_jax.verification.rules import Limits, VerifierSpec
print("main runs", flush=True)
pool = VerifierPool(VerifierSpec("misbehaving:act"), Limits(1, 600.0))
print(pool.verify([Item("", "pid", True)])[0].reason, flush=True)
pool.submit([Item("", sys.argv[1], True)])
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("action", ["sleep 600", "hang-in-c", "child", "daemon-and-hang"])
def test_no_orphans_when_the_parent_is_killed(
    tmp_path: Path, action: str, ending: signal.Signals
) -> None:
    # The script has no `if __name__ == "__main__"`: a worker must not run it again.
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    child_file, writes = tmp_path / "child", action in ("child", "daemon-and-hang")
    parent = subprocess.Popen(
        [sys.executable, str(script), f"{action} {child_file}" if writes else action],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    with parent, contextlib.ExitStack() as stack:
        stack.callback(parent.kill)  # also when an assertion fails: leaving the block waits for it
        assert parent.stdout is not None
        assert parent.stdout.readline() == "main runs\n"
        pids = [int(parent.stdout.readline())]
        if writes:
            assert wait_until(lambda: child_file.exists() and bool(child_file.read_text()))
            pids.append(int(child_file.read_text()))
        else:
            time.sleep(0.2)
        assert all(is_running(pid) for pid in pids)
        parent.send_signal(ending)
        assert parent.wait(timeout=60) != 0
        assert parent.stdout.read() == ""
    assert wait_until(lambda: not any(is_running(pid) for pid in pids))
