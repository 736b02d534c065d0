"""The loop: questions -> rollout -> verdicts -> selection -> update, for every method alike.

Where a job has several processes, all of them go through it alike: what they decide by is the same
everywhere (exchange.py), and what a person reads is written by process 0.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from rft_jax.checkpoint import manager as checkpoint
from rft_jax.checkpoint.clock import SaveClock
from rft_jax.config import Config
from rft_jax.data.stream import Position
from rft_jax.distributed.collectives import by_main, from_main, is_main, largest
from rft_jax.errors import UserError
from rft_jax.evaluation.evaluate import evaluate, write_rows
from rft_jax.io.paths import Folder, write_atomically
from rft_jax.models.adapters import join
from rft_jax.observe.log import Kind, MetricsLog
from rft_jax.observe.profiling import Profiler, phase
from rft_jax.observe.progress import Progress
from rft_jax.observe.system import Compilations, peak_memory_bytes
from rft_jax.rollout.engine import Sampling
from rft_jax.rollout.params import rollout_params
from rft_jax.runs import pool, setup
from rft_jax.runs import sources as supply
from rft_jax.runs.utilization import Meter, sampling_metrics, update_metrics
from rft_jax.training import batch_filling as refill
from rft_jax.training.objective import METHODS
from rft_jax.training.packing import TrainingSequence
from rft_jax.training.state import Layout
from rft_jax.training.step import Updating, make_update
from rft_jax.types import Params, TrainState
from rft_jax.verification.canary import watch_undecided
from rft_jax.verification.pool import VerifierPool

START = Position(epoch=0, index=0)


class RunResult(NamedTuple):
    """steps_done: by this call; finished: all steps and the test are done; stopped_by: the signal
    that ended it early, 0 for none."""

    steps_done: int
    finished: bool
    stopped_by: int = 0


@dataclass
class Counters:
    """Sums over the whole run, resumptions included; saved in every checkpoint."""

    sampled_tokens: int = 0
    sampled_outputs: int = 0
    updates: int = 0
    skipped_updates: int = 0
    seconds: float = 0.0


@dataclass
class Run:
    """One run in progress: what is fixed, and the loop's state. log: None but in process 0;
    stopped: the signal received so far, 0 for none, which all processes must ask for together."""

    config: Config
    folder: Folder
    sampling: Sampling
    evaluator: VerifierPool
    questions: setup.Questions
    layout: Layout
    updating: Updating
    meter: Meter
    log: MetricsLog | None
    checkpoints: checkpoint.Checkpoints
    compilations: Compilations
    profiler: Profiler
    stopped: Callable[[], int]
    state: TrainState
    step: int = 0
    position: Position = START
    surplus: refill.Surplus = ()
    counters: Counters = field(default_factory=Counters)
    started: float = field(default_factory=time.perf_counter)

    @property
    def name(self) -> str:
        """Of the run."""
        return self.folder.name

    def rollout_params(self) -> Params:
        """The current policy in the layout and type it samples in."""
        params = join(self.updating.frozen, self.state.params)
        return rollout_params(params, self.layout.rollout, dtype=self.config.model.compute_dtype)

    def costs(self) -> dict[str, Any]:
        """The counters as metrics."""
        self.counters.seconds = time.perf_counter() - self.started
        names = ("sampled_tokens", "sampled_outputs", "updates", "skipped_updates")
        sums = {f"cost/{name}": getattr(self.counters, name) for name in names}
        return sums | {"seconds/elapsed": self.counters.seconds}

    def write(self, kind: Kind, facts: dict[str, Any]) -> None:
        """A line of metrics, with the counters."""
        if self.log is not None:
            self.log.write(kind, self.step, facts | self.costs())


def loop(this: Run) -> RunResult:
    """The algorithm: steps until the last one or a signal, then the test."""
    config, first = this.config, this.step
    every, accuracy = config.evaluation.every_steps, None
    saving = 0.0  # a step's line is written before its checkpoint: these seconds go to the next
    clock = SaveClock(config.checkpoint, config.steps, time.monotonic())
    source = _supply(this)
    if source is None:
        return RunResult(0, False, this.stopped())
    if every and this.step == 0:
        accuracy = _evaluate(this, "validation")
    stop = this.stopped()
    with Progress(config.steps, first, this.name) as progress:
        while this.step < config.steps and not stop:
            with this.profiler.step(this.step + 1):
                facts = _step(this, source)
                facts |= {
                    "system/compilations": this.compilations.count,
                    "seconds/compiling": this.compilations.seconds,
                    "system/peak_memory_bytes": peak_memory_bytes(),
                    "seconds/checkpointing": saving,
                }
                this.write("train", facts)
                judged = None
                if every and this.step % every == 0:
                    judged = accuracy = _evaluate(this, "validation")
                # Clocks differ: that of process 0 decides.
                due = largest(is_main() and clock.due(this.step, time.monotonic()))
                saving = _save(this, judged) if due else 0.0
                clock = clock.saved(time.monotonic()) if due else clock
            progress.update(
                this.step,
                acceptance=facts.get("pass_rate"),
                accuracy=accuracy,
                objective=facts["objective/value"],
                tokens_per_second=facts["speed/tokens_per_second"],
            )
            stop = this.stopped()
    if this.step < config.steps:
        if this.checkpoints.latest_step() != this.step:
            _save(this, None)
        return RunResult(this.step - first, False, stop)
    if config.data.test and not stop and not _is_tested(this):
        _evaluate(this, "test")
    this.checkpoints.wait_until_finished()
    if stop := stop or this.stopped():
        return RunResult(this.step - first, False, stop)
    if not this.counters.updates:
        raise UserError(
            f"{this.name}: none of {config.steps} steps had an accepted output, so nothing was "
            f"learnt; look at the outputs in {this.folder / 'rollouts'}, start from a better model "
            "or check verification.verifier."
        )
    by_main(f"{this.name} is finished", lambda: _finish(this))
    return RunResult(this.step - first, True)


def _is_tested(this: Run) -> bool:
    return from_main(
        f"{this.name} is tested",
        lambda: this.log is not None and this.log.has("test", this.step),
    )


def _supply(this: Run) -> supply.Supply | None:
    """The run's source of samples; None when a signal came while RFT's pool was sampled."""
    config, sampling, rollouts = this.config, this.sampling, this.folder / "rollouts"
    train = this.questions.train
    source = METHODS[config.method].source
    if source == "policy":
        return supply.online(train, config, sampling, rollouts)
    if source == "demonstrations":
        return supply.fixed(supply.demonstrations(train, config, sampling), config)
    seconds: dict[str, float] = {}
    if this.step == 0 and config.rollout is not None:
        frozen = this.rollout_params()
        sampled = pool.sample_pool(frozen, train, config, sampling, rollouts, this.stopped)
        if sampled is None:
            return None
        seconds = sampled
    sequences, facts = pool.sequences(train, config, sampling, rollouts)
    watch_undecided(facts["funnel/undecided"], facts["funnel/sampled"], config, "the pool")
    if this.step == 0:
        this.counters.sampled_tokens = facts.pop("sampled_tokens")
        this.counters.sampled_outputs = facts.pop("sampled_outputs")
        this.write("train", facts | seconds)
    return supply.fixed(sequences, config)


def _step(this: Run, source: supply.Supply) -> dict[str, Any]:
    """One step: the source's sequences, packed, and an update on them; its facts."""
    counters = this.counters
    began = time.perf_counter()
    sequences, position, facts, surplus, decoded = source(
        this.step, this.position, this.rollout_params, this.surplus
    )
    trained = sum(len(sequence.completion) for sequence in sequences)
    sampled = facts.pop("sampled_tokens", 0)
    counters.sampled_tokens += sampled
    counters.sampled_outputs += facts.pop("sampled_outputs", 0)
    watch_undecided(
        facts.get("funnel/undecided", 0),
        facts.get("funnel/sampled", 0),
        this.config,
        f"step {this.step + 1}",
    )
    updating = time.perf_counter()
    with phase("updating"):
        facts |= _update(this, sequences) if sequences else {"objective/value": None}
    counters.updates += bool(sequences)
    counters.skipped_updates += not sequences
    this.position, this.surplus, this.step = position, surplus, this.step + 1
    ended = time.perf_counter()
    facts |= update_metrics(this.meter, sequences, ended - updating)
    if decoded:
        facts |= sampling_metrics(this.meter, decoded, facts["seconds/sampling"])
    return facts | {
        "seconds/updating": ended - updating,
        "speed/tokens_per_second": (sampled or trained) / (ended - began),
    }


def _update(this: Run, sequences: list[TrainingSequence]) -> dict[str, float | None]:
    this.state, facts = make_update(
        this.state, sequences, this.updating, step=this.step, updates=this.counters.updates
    )
    return facts


def _evaluate(this: Run, kind: Kind) -> float | None:
    """Evaluate on one set, log it, and return the greedy accuracy."""
    settings = this.config.evaluation
    validation = kind == "validation"
    began = time.perf_counter()
    with phase("evaluating"):
        metrics, rows = evaluate(
            this.rollout_params(),
            this.questions.validation if validation else this.questions.test,
            replace(this.sampling, verifier=this.evaluator),
            settings,
            num_samples=(
                settings.samples_per_question if validation else settings.test_samples_per_question
            ),
        )
    name = f"validation-{this.step:06d}.jsonl" if validation else "test.jsonl"
    if is_main():
        write_rows(this.folder / "evaluation" / name, rows)
    this.write(kind, metrics | {"seconds/evaluating": time.perf_counter() - began})
    return metrics["greedy/accuracy"]


def _save(this: Run, accuracy: float | None) -> float:
    """Checkpoint parameters, optimizer and host facts of the loop, all as of one step.

    accuracy: greedy, on validation, where it was measured after this step. Returns the seconds the
    loop waited; the writing goes on beside it.
    """
    began = time.perf_counter()
    this.sampling.at(f"checkpoint of step {this.step}")
    this.costs()
    if this.log is not None:
        this.log.settle()
    host: dict[str, Any] = {
        "position": asdict(this.position),
        "counters": asdict(this.counters),
    }
    if this.config.refill is not None:
        host["surplus"] = refill.to_json(this.surplus)
    with phase("checkpointing"):
        saved = checkpoint.Saved(this.state, host)
        checkpoint.save(this.checkpoints, this.step, saved, accuracy)
    return time.perf_counter() - began


def _finish(this: Run) -> None:
    """Mark the run as finished, in one atomic write."""
    if this.log is not None:
        this.log.settle()
    write_atomically(this.folder / "finished.json", json.dumps(this.costs()) + "\n")
