"""Jobs of several processes on this machine: start one, see what becomes of it, leave none."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import programs
import tiny_experiment

TESTS = Path(__file__).parent
WAIT_SECONDS = 900.0
"""Longer than anything a test waits for takes, on a machine that has other things to do too."""
_MARK = "RFT_JAX_TEST_JOB"
"""Variable of the environment that every process of a job has, and all that those start."""


class Job:
    """A command in so many processes; a context manager that kills what is left of it.

    environments: what one process has in its environment besides.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        processes: int,
        environment: Mapping[str, str],
        environments: Mapping[int, Mapping[str, str]],
    ) -> None:
        self._mark = uuid.uuid4().hex
        self._errors = [folder / f"{self._mark}.{number}.err" for number in range(processes)]
        self.processes: list[subprocess.Popen[bytes]] = []
        address = f"127.0.0.1:{_free_port()}"
        for number, path in enumerate(self._errors):
            place = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(number),
                _MARK: self._mark,
            }
            with path.open("wb") as errors:
                self.processes.append(
                    subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                        cwd=folder, env={**environment, **place, **environments.get(number, {})},
                    )
                )  # fmt: skip

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def errors(self, number: int) -> str:
        """What a process has written to stderr so far, without what gloo says of its sockets."""
        text = self._errors[number].read_text(errors="replace")
        return "".join(line for line in text.splitlines(True) if not line.startswith("[Gloo]"))

    def told(self) -> str:
        """All of it, for the message of an assertion."""
        return "".join(
            f"--- process {number}: {process.returncode}\n{self.errors(number)[-4000:]}"
            for number, process in enumerate(self.processes)
        )

    def wait_for(self, moment: Callable[[], bool]) -> bool:
        """Watch until the moment has come; False when a process ended before."""
        deadline = time.monotonic() + WAIT_SECONDS
        while all(process.poll() is None for process in self.processes):
            if moment():
                return True
            assert time.monotonic() < deadline, f"the job makes no progress\n{self.told()}"
            time.sleep(0.001)
        return False

    def statuses(self, within: float = WAIT_SECONDS) -> list[int]:
        """Wait until all have ended; their exit statuses. within: seconds."""
        deadline = time.monotonic() + within
        for process in self.processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"a process goes on\n{self.told()}") from None
        return [process.returncode for process in self.processes]

    def finish(self) -> None:
        """Wait for a job that must end well."""
        statuses = self.statuses()
        assert not any(statuses), self.told()
        self.assert_gone()

    def signal(self, number: int, sent: signal.Signals) -> None:
        """Send a signal to one of the processes."""
        self.processes[number].send_signal(sent)

    def assert_gone(self) -> None:
        """Nothing that the job has started remains, workers of verifiers included."""
        deadline = time.monotonic() + 60
        while left := _marked(self._mark):
            assert time.monotonic() < deadline, f"left behind: {left}"
            time.sleep(0.05)


def one_refused(jobs: Sequence[Job]) -> tuple[Job, Job]:
    """Of two jobs on the same runs, the one at work and the other, in which each process has said
    so in one line and ended with the status that is worth another start."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not (refused := [job for job in jobs if "is at work here" in job.errors(0)]):
        assert time.monotonic() < deadline, [job.told() for job in jobs]
        time.sleep(0.01)
    (other,) = refused
    (job,) = (each for each in jobs if each is not other)
    assert set(other.statuses()) == {os.EX_TEMPFAIL}, other.told()
    for number in range(len(other.processes)):
        (line,) = (text for text in other.errors(number).splitlines() if "error:" in text)
        assert f".lock: process {job.processes[0].pid} on {socket.gethostname()} is at" in line
    other.assert_gone()
    return job, other


@dataclass(frozen=True)
class Study:
    """tiny_experiment as a file, to be run in any number of processes; all of its jobs share the
    compiled programs. options: of every job."""

    folder: Path
    options: tuple[str, ...] = ()
    file: Path = field(init=False)

    def __post_init__(self) -> None:
        file = tiny_experiment.write_experiment(self.folder)
        text = file.read_text(encoding="utf-8")
        file.write_text(f"import every_process_keeps  # noqa: F401\n{text}", encoding="utf-8")
        object.__setattr__(self, "file", file)

    def start(
        self,
        workdir: Path,
        processes: int,
        devices: int,
        *options: str,
        file: Path | None = None,
        environments: Mapping[int, Mapping[str, str]] | None = None,
    ) -> Job:
        """The command in so many processes of so many devices each. file: another experiment."""
        environment = os.environ | {
            "XLA_FLAGS": programs.xla_flags(),
            "JAX_NUM_CPU_DEVICES": str(devices),
            # Not where tests keep theirs: a process that is killed may leave half a program.
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",  # the package that is tested
            # Errors: jaxlib 0.12 warns of partitions that it weighs and does not take.
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }  # fmt: skip
        command = [
            sys.executable, "-m", "rft_jax", "run", str(file or self.file),
            "--workdir", str(workdir), *self.options, *options,
        ]  # fmt: skip
        return Job(command, self.folder, processes, environment, environments or {})


def of_all(
    *names_and_values: str, runs: Sequence[str] = ("sft", "rft", "online_rft")
) -> tuple[str, ...]:
    """Options that give every run the same fields; each is NAME=VALUE."""
    return tuple(f"--{run}.{one}" for run in runs for one in names_and_values)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _marked(mark: str) -> list[int]:
    """Processes that have the mark in their environment; zombies have none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            content = path.read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if f"{_MARK}={mark}".encode() in content:
            found.append(int(path.parent.name))
    return found
