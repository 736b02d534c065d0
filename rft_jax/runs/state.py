"""What a run is made of: what stays the same from its first step to its last, and what a step
changes."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rft_jax.checkpoint import manager as checkpoint
from rft_jax.checkpoint.inputs import Input
from rft_jax.config import Config
from rft_jax.data.stream import Position
from rft_jax.io.paths import Folder
from rft_jax.models.adapters import join
from rft_jax.observe.log import Kind, MetricsLog
from rft_jax.observe.profiling import Profiler
from rft_jax.observe.system import Compilations
from rft_jax.rollout.engine import Sampling
from rft_jax.rollout.params import rollout_params
from rft_jax.runs import setup
from rft_jax.runs.health import Watch
from rft_jax.runs.utilization import Meter
from rft_jax.training import batch_filling
from rft_jax.training.critic import Critic
from rft_jax.training.minibatches import Minibatches
from rft_jax.training.scoring import Score, score_sequences
from rft_jax.training.state import Layout
from rft_jax.training.update import Updater
from rft_jax.types import Params, TrainState
from rft_jax.verification.canary import FirstOutputs
from rft_jax.verification.pool import VerifierPool

Metrics = dict[str, Any]


class RunResult(NamedTuple):
    """steps_done: by this call; finished: all steps and the test are done; stopped_by: the signal
    that ended it early, 0 for none."""

    steps_done: int
    finished: bool
    stopped_by: int = 0


@dataclass(frozen=True)
class Counters:
    """Sums over the whole run, resumptions included; saved in every checkpoint."""

    sampled_tokens: int = 0
    sampled_outputs: int = 0
    updates: int = 0
    skipped_updates: int = 0
    seconds: float = 0.0

    def plus(self, **changes: int) -> Counters:
        """With these added."""
        return replace(self, **{name: getattr(self, name) + more for name, more in changes.items()})


class State(NamedTuple):
    """All that a step changes, and all that a checkpoint holds.

    train: parameters and optimizer, on the devices; step: steps made; position: of the stream;
    surplus: kept outputs that wait for a later batch (training/batch_filling.py); minibatches: of
    the last rollout, that wait for an update (training/minibatches.py); reference: parameters of
    pi_ref, where the method or a KL needs it; a checkpoint holds those that are not the start's;
    critic: the value function, where the method has one; rollout: step of the last rollout.
    """

    train: TrainState
    step: int = 0
    position: Position = Position()
    surplus: batch_filling.Surplus = ()
    counters: Counters = Counters()
    minibatches: Minibatches = ()
    reference: Params | None = None
    critic: TrainState | None = None
    rollout: int = 0

    def beside(self, config: Config) -> dict[str, Any]:
        """What a checkpoint holds beside the policy and the host's facts."""
        trees = {"reference": self.reference} if config.objective.reference_every else {}
        return trees | ({"critic": self.critic._asdict()} if self.critic is not None else {})


@dataclass(frozen=True)
class Run:
    """What stays the same from the first step of a run to its last. log: None but in process 0;
    stopped: the signal received so far, 0 for none, which all processes must ask for together;
    began: on time.perf_counter's clock, the seconds of earlier attempts before now; rests_on: takes
    the name and outputs of a pool, and whether they must be those that were recorded;
    first_outputs: looks at those of the first steps; watch: raises alarms."""

    config: Config
    folder: Folder
    sampling: Sampling
    evaluator: VerifierPool
    questions: setup.Questions
    layout: Layout
    update: Updater
    critic: Critic
    meter: Meter
    log: MetricsLog | None
    checkpoints: checkpoint.Checkpoints
    compilations: Compilations
    profiler: Profiler
    stopped: Callable[[], int]
    began: float
    rests_on: Callable[[str, Input, bool], None]
    first_outputs: FirstOutputs
    watch: Watch

    @property
    def name(self) -> str:
        """The name of the run in its experiment."""
        return self.folder.name

    def rollout_params(self, params: Params) -> Params:
        """A policy in the layout and type it samples in, from the parameters that are trained."""
        params = join(self.update.frozen, params)
        return rollout_params(params, self.layout.rollout, dtype=self.config.model.compute_dtype)

    def score(self, params: Params) -> Score:
        """What gives outputs their log-probs under the policy of these parameters."""
        of = self.update
        return functools.partial(
            score_sequences, params, config=self.config,
            frozen=of.frozen, mesh=of.mesh, vocab_size=of.vocab_size,
        )  # fmt: skip

    def costs(self, counters: Counters) -> dict[str, Any]:
        """The counters as metrics."""
        names = ("sampled_tokens", "sampled_outputs", "updates", "skipped_updates")
        sums = {f"cost/{name}": getattr(counters, name) for name in names}
        return sums | {"seconds/elapsed": time.perf_counter() - self.began}

    def write(self, kind: Kind, state: State, metrics: Metrics) -> None:
        """A line of metrics, with the counters."""
        left_out = self.questions.too_long
        if self.config.data.drop_too_long and kind in left_out:
            metrics = {"data/too_long": left_out[kind]} | metrics
        if self.log is not None and not self.log.has(kind, state.step):
            metrics = metrics | self.costs(state.counters)
            self.log.write(kind, state.step, self.watch.see(kind, state.step, metrics))
