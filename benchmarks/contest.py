"""Contenders in rounds: each a process of its own, each called once per round, in turn.

Machines drift (other load, clock rates), so what is compared is measured side by side: one call of
every contender makes a round, the order turns by one from round to round, and ratios are taken
within a round. Processes stay alive between rounds, as imports and compilation take longer than
the calls; that the waiting ones leave the cores alone is measured, not assumed. Nobody's threads
are told to wait passively: that would slow down packages that spin within a call.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.work import Task

ROOT = Path(__file__).resolve().parents[1]
IDLE_CORES = 0.02
"""A call starts once all workers together use less."""
QUIET_SECONDS = 0.1


class WorkerError(RuntimeError):
    """A worker failed; the message holds what it said."""


@dataclass(frozen=True)
class Contender:
    """name: in tables; module: its worker; python: the interpreter; options: for Task.options;
    peer: of another package, so that ours are compared with it."""

    name: str
    module: str
    python: str = sys.executable
    options: dict[str, Any] = field(default_factory=dict)
    peer: bool = False


@dataclass
class Entry:
    """What is known of one contender. calls: facts of each round; error: why it dropped out."""

    contender: Contender
    ready: dict[str, Any] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""


class Worker:
    """One contender's process."""

    def __init__(self, contender: Contender, task: Task, environment: dict[str, str]):
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self.process = subprocess.Popen(
            [contender.python, "-m", contender.module, json.dumps(task.to_json())],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=os.environ | environment,
            text=True,
        )

    def ask(self, number: int | None, patience: float | None = None) -> dict[str, Any]:
        """The next answer, after asking for call `number` unless it is None.

        WorkerError when it fails, or says nothing for `patience` seconds (None: however long).
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if number is not None:
            self.process.stdin.write(f"{number}\n")
            self.process.stdin.flush()
        # An answer is one line and comes alone, so nothing waits in the stream's own buffer.
        if not select.select([self.process.stdout], [], [], patience)[0]:
            self.process.kill()
            raise WorkerError(f"no answer within {patience:.0f} s\n{self.tail()}")
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the process ended without an answer"}
        if "error" in answer:
            raise WorkerError(f"{answer['error']}\n{self.tail()}")
        return answer

    def tail(self) -> str:
        """The end of what it wrote to standard error."""
        self.process.wait()
        self.log.seek(0)
        return self.log.read()[-3000:].decode(errors="replace")

    def cpu_seconds(self) -> float:
        """CPU time it has used; 0 where the system does not say (no /proc)."""
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return 0.0
        ticks = stat.rpartition(")")[2].split()[11:13]
        return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it: it leaves at the end of its input."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


def machine_cpu_seconds() -> float:
    """CPU time that all processes of the machine have used; 0 where the system does not say."""
    try:
        user, nice, system = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:4]
    except OSError:
        return 0.0
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def _until_idle(workers: Sequence[Worker]) -> None:
    """Wait, at most two seconds, until the workers have come to rest."""
    for _ in range(int(2 / QUIET_SECONDS)):
        before = sum(worker.cpu_seconds() for worker in workers)
        time.sleep(QUIET_SECONDS)
        if sum(worker.cpu_seconds() for worker in workers) - before < IDLE_CORES * QUIET_SECONDS:
            return


def _timed(
    worker: Worker, others: Sequence[Worker], number: int, patience: float | None
) -> dict[str, Any]:
    """One call, with the cores that waiting contenders and foreign processes used meanwhile."""
    _until_idle((worker, *others))
    own, waiting = worker.cpu_seconds(), sum(other.cpu_seconds() for other in others)
    machine, began = machine_cpu_seconds(), time.perf_counter()
    answer = worker.ask(number, patience)
    seconds = time.perf_counter() - began
    own, waiting = (
        worker.cpu_seconds() - own,
        sum(other.cpu_seconds() for other in others) - waiting,
    )
    foreign = machine_cpu_seconds() - machine - own - waiting
    answer["waiting_cores"] = round(waiting / seconds, 2)
    answer["foreign_cores"] = round(max(0.0, foreign) / seconds, 2)
    return answer


@contextlib.contextmanager
def _on_cores(cores: int) -> Iterator[None]:
    """This process and those it starts on the first `cores` cores (where the system can do it)."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:cores]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def available_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_tokens(task: Task, answer: dict[str, Any]) -> None:
    """WorkerError unless the call did the work that was asked for."""
    wanted = task.work.useful_tokens(task.job)
    if answer["tokens"] not in (0, wanted):
        raise WorkerError(f"made {answer['tokens']} tokens and {wanted} were asked for.")


def contest(
    contenders: Sequence[Contender],
    task: Task,
    rounds: int,
    *,
    environment: dict[str, str] | None = None,
    deadline: float = float("inf"),
    patience: float | None = None,
) -> list[Entry]:
    """Call every contender `rounds` times, in turn, after one call that does not count.

    task.options serve all; each contender's own options come on top. deadline: time.monotonic()
    after which no further round starts; patience: the most seconds that an answer may take. A
    contender that fails drops out, with its error kept.
    """
    variables = {"OMP_NUM_THREADS": str(task.cores), "HF_HUB_OFFLINE": "1"} | (environment or {})
    entries = [Entry(contender) for contender in contenders]
    workers: dict[str, Worker] = {}

    def drop(entry: Entry, error: Exception) -> None:
        entry.error = str(error)
        print(f"{entry.contender.name} failed: {error}", file=sys.stderr, flush=True)
        workers.pop(entry.contender.name).close()

    with _on_cores(task.cores):
        try:
            for entry in entries:
                contender = entry.contender
                own = Task(task.job, task.work, task.cores, task.options | contender.options)
                _say(f"{task.job} {task.work.size}: {contender.name}: preparing")
                worker = workers[contender.name] = Worker(contender, own, variables)
                try:
                    entry.ready = worker.ask(None, patience)
                    entry.first = worker.ask(0, patience)
                    _check_tokens(task, entry.first)
                    _say(f"  first call: {entry.first['seconds']:.1f} s")
                except (WorkerError, OSError) as error:
                    drop(entry, error)
            for number in range(rounds):
                if time.monotonic() > deadline:
                    break
                turn = number % len(entries)
                for entry in entries[turn:] + entries[:turn]:
                    name = entry.contender.name
                    if name not in workers:
                        continue
                    others = [other for key, other in workers.items() if key != name]
                    try:
                        answer = _timed(workers[name], others, number + 1, patience)
                        _check_tokens(task, answer)
                    except (WorkerError, OSError) as error:
                        drop(entry, error)
                        continue
                    entry.calls.append(answer | {"round": number + 1})
                    _say(f"  round {number + 1}: {name}: {answer['seconds']:.3f} s")
        finally:
            for worker in workers.values():
                worker.close()
    return entries


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
