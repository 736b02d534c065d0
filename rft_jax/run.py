"""The loop: questions -> rollout -> verdicts -> selection -> update, for every method alike."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from rft_jax import checkpoint, policy_files, refill, setup, supply
from rft_jax.batches import Params, TrainState
from rft_jax.config import Config
from rft_jax.data.questions import Position
from rft_jax.evaluation import evaluate, write_rows
from rft_jax.layout import Layout, fresh_state, make_layout
from rft_jax.metrics import Kind, MetricsLog
from rft_jax.models.adapters import join
from rft_jax.parallel.mesh import batch_sharding, make_mesh, replicated
from rft_jax.progress import Progress
from rft_jax.provenance import check_same_config, save_config
from rft_jax.rollouts import Sampling
from rft_jax.sampling.reshard import rollout_params
from rft_jax.signals import stop_on_signals
from rft_jax.starts import Start, load_start
from rft_jax.system import Compilations, count_compilations, peak_memory_bytes
from rft_jax.training.objective import METHODS
from rft_jax.training.optimizer import make_optimizer, schedule
from rft_jax.training.packing import TrainingSequence, num_microbatches, pack
from rft_jax.training.update import update
from rft_jax.verification.pool import VerifierPool
from rft_jax.verifiers import open_verifiers, watch_undecided

logger = logging.getLogger(__name__)

START = Position(epoch=0, index=0)


class RunError(ValueError):
    """The run cannot go on; the message says why, and what is saved."""


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
    """One run in progress: what is fixed, and the loop's state."""

    config: Config
    folder: Path
    sampling: Sampling
    evaluator: VerifierPool
    questions: setup.Questions
    layout: Layout
    optimizer: optax.GradientTransformation
    log: MetricsLog
    frozen: Params
    reference: Params | None
    state: TrainState
    step: int = 0
    position: Position = START
    surplus: refill.Surplus = ()
    counters: Counters = field(default_factory=Counters)
    started: float = field(default_factory=time.perf_counter)

    def rollout_params(self) -> Params:
        """The current policy in the layout and type it samples in."""
        params = join(self.frozen, self.state.params)
        return rollout_params(params, self.layout.rollout, dtype=self.config.model.compute_dtype)

    def costs(self) -> dict[str, Any]:
        """The counters as metrics."""
        self.counters.seconds = time.perf_counter() - self.started
        names = ("sampled_tokens", "sampled_outputs", "updates", "skipped_updates")
        sums = {f"cost/{name}": getattr(self.counters, name) for name in names}
        return sums | {"seconds/elapsed": self.counters.seconds}


def run(name: str, experiment: Mapping[str, Config], workdir: Path) -> RunResult:
    """Carry out, or go on with, the run `name` of an experiment in WORKDIR/name.

    Everything is checked before the first step. A finished run returns at once. A run killed at
    any instant goes on from its last checkpoint and ends with the same bits.
    Raises ValueError subclasses with one-line messages for whatever a user can mend.
    """
    config, folder = experiment[name], workdir / name
    check_same_config(folder, config)
    if (folder / "finished.json").is_file():
        return RunResult(0, True)
    setup.make_folder(folder)
    mesh = make_mesh(config.mesh)
    setup.check_devices(config, mesh)
    tokenizer = setup.ensure_tokenizer(config, workdir)
    questions = setup.load_questions(config, tokenizer)
    optimizer = make_optimizer(config.optimizer, config.steps)
    vocab_size = setup.vocab_size(config.model, tokenizer)
    layout = make_layout(config.model, mesh, optimizer, vocab_size)
    policy_files.keep(config, workdir, folder, tokenizer)
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(stop_on_signals())
        compilations = stack.enter_context(count_compilations())
        known = [*questions.train, *questions.validation]
        verifier, evaluator = stack.enter_context(open_verifiers(config, known))
        manager = stack.enter_context(
            checkpoint.open_manager(folder / "checkpoints", config.checkpoint)
        )
        first, saved = checkpoint.restore(manager, layout.state) or (0, None)
        with_kl = config.objective.kl_coefficient > 0
        start = Start({}, None)
        if with_kl or saved is None or config.model.lora_rank:
            setup.check_same_tokenizer(config, workdir)
            start = load_start(config, workdir, layout, folder)
        save_config(
            folder,
            name,
            config,
            device=jax.devices()[0].device_kind,
            num_devices=mesh.size,
        )
        this = Run(
            config=config,
            folder=folder,
            sampling=Sampling(config.model, config.data, mesh, tokenizer, verifier, config.seed),
            evaluator=evaluator,
            questions=questions,
            layout=layout,
            optimizer=optimizer,
            log=stack.enter_context(contextlib.closing(MetricsLog(folder, first))),
            frozen=start.frozen,
            # The update overwrites its state in place: the reference must be a copy.
            reference=jax.tree.map(jnp.copy, start.trained) if with_kl else None,
            state=saved.state if saved else fresh_state(start.trained, optimizer, layout),
            step=first,
        )
        if saved is not None:
            _restore_host(this, saved.host)
            logger.info("%s: going on from step %d", name, first)
        return _loop(this, name, manager, compilations, stopped)


def _restore_host(this: Run, host: Mapping[str, Any]) -> None:
    """Position, counters and surplus as `_save` left them; CheckpointError (RefillError for the
    surplus) when they are not."""
    path = f"{this.folder}/checkpoints/{this.step}"
    try:
        this.position = Position(**host["position"])
        this.counters = Counters(**host["counters"])
        if this.config.refill is not None:
            ids = {question.id for question in this.questions.train}
            this.surplus = refill.from_json(
                host.get("surplus"), this.config, step=this.step, question_ids=ids, source=path
            )
    except (KeyError, TypeError) as error:
        raise checkpoint.CheckpointError(
            f"{path}: host holds {host}, which is no position and counters of this version: use "
            "the version that wrote it, or start over with another --workdir."
        ) from error
    this.started -= this.counters.seconds


def _loop(
    this: Run,
    name: str,
    manager: ocp.CheckpointManager,
    compilations: Compilations,
    stopped: Callable[[], int],
) -> RunResult:
    """The algorithm: steps until the last one or a signal, then the test."""
    config, first = this.config, this.step
    every, accuracy = config.evaluation.every_steps, None
    saving = 0.0  # a step's line is written before its checkpoint: these seconds go to the next
    source = _supply(this, stopped)
    if source is None:
        return RunResult(0, False, stopped())
    if every and this.step == 0:
        accuracy = _evaluate(this, "validation")
    with Progress(config.steps, first, name) as progress:
        while this.step < config.steps and not stopped():
            facts = _step(this, source)
            facts |= {
                "system/compilations": compilations.count,
                "seconds/compiling": compilations.seconds,
                "system/peak_memory_bytes": peak_memory_bytes(),
                "seconds/checkpointing": saving,
            }
            this.log.write("train", this.step, facts | this.costs())
            if every and this.step % every == 0:
                accuracy = _evaluate(this, "validation")
            due = this.step % config.checkpoint.every_steps == 0 or this.step == config.steps
            saving = _save(this, manager) if due else 0.0
            progress.update(
                this.step,
                acceptance=facts.get("pass_rate"),
                accuracy=accuracy,
                objective=facts["objective/value"],
                tokens_per_second=facts["speed/tokens_per_second"],
            )
    if this.step < config.steps:
        if manager.latest_step() != this.step:
            _save(this, manager)
        return RunResult(this.step - first, False, stopped())
    if config.data.test and not stopped() and not this.log.has("test", this.step):
        _evaluate(this, "test")
    manager.wait_until_finished()
    if stopped():
        return RunResult(this.step - first, False, stopped())
    if not this.counters.updates:
        raise RunError(
            f"{name}: none of {config.steps} steps had an accepted output, so nothing was learnt; "
            f"look at the outputs in {this.folder / 'rollouts'}, start from a better model or "
            "check verification.verifier."
        )
    _finish(this)
    return RunResult(this.step - first, True)


def _supply(this: Run, stopped: Callable[[], int]) -> supply.Supply | None:
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
        sampled = supply.sample_pool(frozen, train, config, sampling, rollouts, stopped)
        if sampled is None:
            return None
        seconds = sampled
    sequences, facts = supply.pool(config, sampling, rollouts)
    watch_undecided(facts["funnel/undecided"], facts["funnel/sampled"], config, "the pool")
    if this.step == 0:
        this.counters.sampled_tokens = facts.pop("sampled_tokens")
        this.counters.sampled_outputs = facts.pop("sampled_outputs")
        this.log.write("train", 0, facts | seconds | this.costs())
    return supply.fixed(sequences, config)


def _step(this: Run, source: supply.Supply) -> dict[str, Any]:
    """One step: the source's sequences, packed, and an update on them; its facts."""
    counters = this.counters
    began = time.perf_counter()
    sequences, position, facts, surplus = source(
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
    facts |= _update(this, sequences) if sequences else {"objective/value": None}
    counters.updates += bool(sequences)
    counters.skipped_updates += not sequences
    this.position, this.surplus, this.step = position, surplus, this.step + 1
    ended = time.perf_counter()
    return facts | {
        "seconds/updating": ended - updating,
        "speed/tokens_per_second": (sampled or trained) / (ended - began),
    }


def _update(this: Run, sequences: list[TrainingSequence]) -> dict[str, float | None]:
    """Pack and update; raises RunError when the gradient is not finite."""
    config, shapes = this.config, this.config.update
    most = shapes.sequences_per_step
    if config.refill is not None:
        most = config.refill.accepted
    elif config.rollout is not None and not most:
        most = config.rollout.questions_per_step * config.rollout.samples_per_question
    longest = config.data.max_prompt_tokens + config.data.max_completion_tokens
    rows = {"row_length": shapes.row_length, "rows_per_microbatch": shapes.rows_per_microbatch}
    batch = pack(sequences, max_microbatches=num_microbatches(most, longest, **rows), **rows)
    slots = int(batch.num_microbatches) * shapes.rows_per_microbatch * shapes.row_length
    filled = int((batch.segments > 0).sum())
    learning_rate = float(schedule(config.optimizer, config.steps)(np.int32(this.counters.updates)))
    mesh = this.sampling.mesh
    online = METHODS[config.method].source == "policy"
    temperature = config.rollout.temperature if online and config.rollout else 1.0
    by_rows, everywhere = batch_sharding(mesh, axis=1), replicated(mesh)
    shardings = jax.tree.map(lambda leaf: by_rows if leaf.ndim else everywhere, batch)
    this.state, metrics = update(
        this.state,
        this.reference,
        jax.device_put(batch, shardings),
        jax.device_put(np.float32(temperature), everywhere),
        this.frozen,
        config=config.model,
        optimizer=this.optimizer,
        kl_coefficient=config.objective.kl_coefficient,
        chunk=max(1, shapes.logits_at_once // this.layout.base["embedding"].shape[0]),
        mesh=mesh,
    )
    values = {name: float(value) for name, value in jax.device_get(metrics)._asdict().items()}
    if not math.isfinite(values["gradient_norm"]):
        raise RunError(
            f"step {this.step + 1}: the gradient's norm is {values['gradient_norm']}; nothing of "
            f"this step is saved. Lower optimizer.learning_rate ({config.optimizer.learning_rate}) "
            "and start again in another --workdir, or remove the newest checkpoints to go on from "
            "an earlier one."
        )
    facts: dict[str, float | None] = {
        "objective/value": values["value"],
        "optimizer/gradient_norm": values["gradient_norm"],
        "optimizer/learning_rate": learning_rate,
        "update/sequences": len(sequences),
        "update/padding_efficiency": filled / slots,
    }
    if config.objective.kl_coefficient:
        facts["objective/kl"] = values["kl"]
    if online:
        # Carried outputs have no log-probs of the current policy, and the maximum is of the batch.
        comparable = all(len(sequence.log_probs) for sequence in sequences)
        for name in ("mismatch_max", "mismatch_mean"):
            facts[f"policy/log_prob_{name}"] = values[name] if comparable else None
    return facts


def _evaluate(this: Run, kind: Kind) -> float | None:
    """Evaluate on one set, log it, and return the greedy accuracy."""
    settings = this.config.evaluation
    validation = kind == "validation"
    began = time.perf_counter()
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
    write_rows(this.folder / "evaluation" / name, rows)
    seconds = {"seconds/evaluating": time.perf_counter() - began}
    this.log.write(kind, this.step, metrics | seconds | this.costs())
    return metrics["greedy/accuracy"]


def _save(this: Run, manager: ocp.CheckpointManager) -> float:
    """Checkpoint parameters, optimizer and host facts of the loop, all as of one step.

    Returns the seconds the loop waited; the writing goes on beside it.
    """
    began = time.perf_counter()
    this.costs()
    host: dict[str, Any] = {
        "position": asdict(this.position),
        "counters": asdict(this.counters),
    }
    if this.config.refill is not None:
        host["surplus"] = refill.to_json(this.surplus)
    checkpoint.save(manager, this.step, checkpoint.Saved(this.state, host))
    return time.perf_counter() - began


def _finish(this: Run) -> None:
    """Mark the run as finished, in one atomic write."""
    part = this.folder / "finished.json.part"
    part.write_text(json.dumps(this.costs()) + "\n", encoding="utf-8")
    os.replace(part, this.folder / "finished.json")
