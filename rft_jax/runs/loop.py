"""The loop. `step` is the algorithm on one page:

    questions -> outputs -> verdicts -> selection -> weights -> batch -> update

for every method alike (rft_jax/training/methods.py). Where a job has several processes, all of them
go through it alike: what they decide by is the same everywhere (rollout/gather.py), and what a
person reads is written by process 0.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from rft_jax.checkpoint import manager as checkpoint
from rft_jax.checkpoint.clock import SaveClock
from rft_jax.checkpoint.policy import FINISHED
from rft_jax.config import Config
from rft_jax.data import curriculum, schedule
from rft_jax.data.stream import Position
from rft_jax.distributed.collectives import by_main, from_main, is_main, largest
from rft_jax.errors import UserError
from rft_jax.io.paths import write_atomically
from rft_jax.observe.alarms import measured
from rft_jax.observe.log import Kind
from rft_jax.observe.profiling import phase
from rft_jax.observe.progress import Progress
from rft_jax.observe.system import peak_memory_bytes
from rft_jax.rollout import log as rollout_log
from rft_jax.rollout.engine import Rollout, verify
from rft_jax.rollout.funnel import funnel
from rft_jax.runs import setup
from rft_jax.runs.evaluating import evaluate_sets
from rft_jax.runs.sources import (
    PolicySource,
    Pool,
    Source,
    demonstrations,
    num_unasked,
    seconds_of,
    slow_verdicts_of,
    take,
    writer,
)
from rft_jax.runs.state import Metrics, Run, RunResult, State
from rft_jax.runs.utilization import sampling_metrics, step_metrics
from rft_jax.training import batch_filling
from rft_jax.training.minibatches import split, to_json
from rft_jax.training.packing import pack_step
from rft_jax.training.scoring import kl_of_some, mean_kl, scored
from rft_jax.training.selection import Kept, reweighed, select, training_sequences, weigh
from rft_jax.training.state import as_reference
from rft_jax.types import Question, Sample
from rft_jax.verification.canary import watch_undecided


def step(run: Run, source: Source, state: State) -> tuple[State, Metrics]:
    """One step of any method.

    It samples one round, and with batch filling rounds until enough is kept. A minibatch of a fixed
    set comes verified, selected and weighed: that was done once, with the whole set. Where a
    rollout is for several updates, only the first one's step samples.
    """
    if state.minibatches:
        return _update(run, state, [], time.perf_counter())
    config, began = run.config, time.perf_counter()
    state = state._replace(control=state.control.next(config))
    policy = functools.cache(lambda: run.rollout_params(state.train.params))
    asked, rounds, position = dict[int, Question](), list[Rollout](), state.position
    while True:
        questions, position = take(source, config.seed, position, asked, state.step, state.history)
        outputs = source.outputs(questions, policy, state.step, state.control.temperature)
        if isinstance(outputs, Kept):
            kept = outputs
            break
        verdicts = verify(outputs)
        rounds.append(_scored(run, source, state, verdicts))
        asked |= zip(questions, outputs.questions, strict=True)
        try:
            kept = select(samples_of(rounds), config)
        except UserError:  # of a method's coefficient: the log shows what it was given
            _write_log(run, state, rounds, asked)
            raise
        if batch_filling.is_full(
            kept, state.surplus, config, num_unasked=num_unasked(source, state.step, asked)
        ):
            break
    policy.cache_clear()  # the update needs the room
    metrics = _log_rollout(run, state, rounds, asked, kept)
    if count := config.objective.kl_outputs:
        score = run.score(state.reference, state.control.temperature)
        metrics |= kl_of_some(samples_of(rounds), source.prompt, score, count)
    kept, surplus, filled = batch_filling.fill(
        kept, state.surplus, config, step=state.step, num_rounds=len(rounds)
    )
    weights = weigh(kept, config)
    sequences = training_sequences(kept, weights, source.prompt, config)
    counters = state.counters.plus(
        sampled_tokens=sum(drawn.num_tokens for drawn in rounds),
        sampled_outputs=sum(len(drawn.samples) for drawn in rounds),
    )
    minibatches = split(sequences, config, state.step)
    history = curriculum.recorded(state.history, samples_of(rounds), state.step, config.curriculum)
    state = state._replace(
        position=position, surplus=surplus, counters=counters, minibatches=minibatches,
        rollout=state.step,
        control=state.control.saw(config, metrics.get("policy/entropy")),
        history=history,
    )  # fmt: skip
    state, updated = _update(run, state, rounds, began)
    return state, metrics | filled | updated


def _scored(run: Run, source: Source, state: State, verdicts: Rollout) -> Rollout:
    """The samples with log pi_ref and values, as far as the method reads them."""
    reference = None
    if run.config.scores_reference:
        reference = run.score(state.reference, state.control.temperature)
    values = functools.partial(run.critic.values, state.critic) if state.critic else None
    if reference is None and values is None:
        return verdicts
    samples = scored(verdicts.samples, source.prompt, reference=reference, values=values)
    return verdicts._replace(samples=samples)


def _update(
    run: Run, state: State, rounds: Sequence[Rollout], began: float
) -> tuple[State, Metrics]:
    """The next update on the last rollout, if it left any. rounds: of this step, which began then,
    on time.perf_counter's clock."""
    updating, train, metrics = time.perf_counter(), state.train, Metrics({"objective/value": None})
    sequences, *later = state.minibatches or ((),)
    replayed, position = run.replay.take(state.replayed)
    reference, critic, further = state.reference, state.critic, Metrics()
    with phase("updating"):
        if sequences or replayed:
            if run.config.row.log_ratios:
                now = run.score(train.params, state.control.temperature)(sequences)
                sequences, further = reweighed(sequences, now, run.config)
            batch = pack_step([*sequences, *replayed], run.config)
            train, metrics = run.update(
                train,
                batch,
                reference=reference,
                control=state.control,
                step=state.step,
                updates=state.counters.updates,
            )
            if critic is not None and sequences:
                training = time.perf_counter()
                critic, further = run.critic(critic, sequences, step=state.step)
                further["seconds/critic"] = time.perf_counter() - training
            metrics |= further
    every = run.config.objective.reference_every
    # A rollout with few outputs is for fewer updates: a multiple may lie within a later one.
    if every and not later and (state.step + 1) // every > state.rollout // every:
        reference = as_reference(train.params, run.config.model.compute_dtype)
    times = (began, updating, time.perf_counter())
    metrics |= step_metrics(run.config, run.meter, sequences, replayed, rounds, times)
    made = bool(sequences or replayed)
    counters = state.counters.plus(updates=made, skipped_updates=not made)
    left = tuple(later)
    state = state._replace(
        train=train, step=state.step + 1, counters=counters, minibatches=left,
        reference=reference, critic=critic, replayed=position,
    )  # fmt: skip
    return state, metrics


def samples_of(rounds: Sequence[Rollout]) -> list[Sample]:
    """The samples of all rounds of a step."""
    return [sample for drawn in rounds for sample in drawn.samples]


def _write_log(
    run: Run, state: State, rounds: Sequence[Rollout], asked: Mapping[int, Question]
) -> None:
    own = [sample for drawn in rounds for sample in drawn.own]
    folder, questions = run.folder / "rollouts", list(asked.values())
    rollout_log.write(
        folder, state.step, own, questions,
        seed=run.config.seed, writer=writer(), outputs=len(samples_of(rounds)),
    )  # fmt: skip


def _log_rollout(
    run: Run, state: State, rounds: Sequence[Rollout], asked: Mapping[int, Question], kept: Kept
) -> Metrics:
    """Write what was sampled into rollouts/ and count what became of it; nothing without rounds."""
    if not rounds:
        return {}
    _write_log(run, state, rounds, asked)
    samples = samples_of(rounds)
    watch_undecided(samples, run.config, f"step {state.step + 1}")
    run.first_outputs.see(samples)
    seconds, decoded = seconds_of(rounds), [one for drawn in rounds for one in drawn.decoded]
    return (
        funnel(samples, num_distinct=kept.num_distinct, num_kept=len(kept.samples))
        | seconds
        | slow_verdicts_of(rounds)
        | mean_kl(samples, run.config)
        | schedule.metrics(run.config, list(asked.values()), state.history)
        | {"policy/entropy": float(np.concatenate([d.entropies for d in rounds]).mean())}
        | sampling_metrics(run.meter, decoded, seconds["seconds/sampling"])
    )


def loop(run: Run, state: State) -> RunResult:
    """Steps until the last one or a signal, then the test."""
    config, first = run.config, state.step
    every, accuracy = config.evaluation.every_steps, None
    saving = 0.0  # a step's line is written before its checkpoint: these seconds go to the next
    clock = SaveClock(config.checkpoint, config.steps, time.monotonic())
    if config.pool is None or not config.pool.from_rollouts:
        setup.warn_of_shared(run.name, run.questions.parts)
    source, pooled, ended = None, Metrics(), run.watch.ends()
    if state.step < config.steps and not ended:  # no pool is sampled for a run that is over
        source, state, pooled = _open_source(run, state)
        if source is None:
            return RunResult(0, False, run.stopped())
    if every and state.step == 0:
        accuracy, _ = _evaluate(run, state, "validation")
    stop = run.stopped()
    with Progress(config.steps, first, run.name) as progress:
        while state.step < config.steps and not (stop or ended):
            if state.step > first and _begins_pool(config, state.step):
                # What samples the pool is kept first, so that a resume needs no rollout again.
                if run.checkpoints.latest_step() != state.step:
                    saving += save(run, state, None)
                source, state, pooled = _open_source(run, state)
                if source is None:
                    return RunResult(state.step - first, False, run.stopped())
            assert source is not None
            with run.profiler.step(state.step + 1):
                state, metrics = step(run, source, state)
                metrics, pooled = pooled | metrics, {}
                metrics |= {
                    "system/compilations": run.compilations.count,
                    "seconds/compiling": run.compilations.seconds,
                    "system/peak_memory_bytes": peak_memory_bytes(),
                    "seconds/checkpointing": saving,
                }
                run.write("train", state, metrics)
                judged = None
                if every and state.step % every == 0:
                    accuracy, judged = _evaluate(run, state, "validation")
                # Clocks differ: that of process 0 decides.
                due = largest(is_main() and clock.due(state.step, time.monotonic()))
                saving = save(run, state, judged) if due else 0.0
                clock = clock.saved(time.monotonic()) if due else clock
            progress.update(
                state.step,
                acceptance=metrics.get("pass_rate"),
                accuracy=accuracy,
                objective=metrics["objective/value"],
                tokens_per_second=metrics["speed/tokens_per_second"],
            )
            stop, ended = run.stopped(), run.watch.ends()
    done = state.step - first
    if state.step < config.steps and run.checkpoints.latest_step() != state.step:
        save(run, state, None)
    if state.step < config.steps and stop:
        return RunResult(done, False, stop)
    if ended:
        state = run.watch.final(run.checkpoints, state, run.layout.trained)
    if config.data.test and not stop and not _is_tested(run, state):
        _evaluate(run, state, "test")
    run.checkpoints.wait_until_finished()
    if stop := stop or run.stopped():
        return RunResult(done, False, stop)
    if not state.counters.updates:
        raise UserError(
            f"{run.name}: none of {config.steps} steps had an output to train on, so nothing was "
            f"learnt; look at the outputs in {run.folder / 'rollouts'}, start from a better model "
            "or check verification.verifier."
        )
    by_main(f"{run.name} is finished", lambda: _finish(run, state))
    return RunResult(done, True)


def _is_tested(run: Run, state: State) -> bool:
    return from_main(
        f"{run.name} is tested",
        lambda: run.log is not None and run.log.has("test", state.step),
    )


def _begins_pool(config: Config, step: int) -> bool:
    """Whether a pool is sampled, or read, before the update after this step."""
    every = config.pool.every_steps if config.pool is not None else 0
    return step % every == 0 if every else step == 0


def _open_source(run: Run, state: State) -> tuple[Source | None, State, Metrics]:
    """The source of the next step's outputs, the state with the cost of its pool, and metrics of a
    pool that is not the first; no source when a signal came while the pool was sampled."""
    config, train = run.config, run.questions.train
    kind, evaluated = config.row.source, run.questions.evaluated
    if kind == "policy":
        return PolicySource(train, config, run.sampling), state, {}
    if kind == "demonstrations":
        return demonstrations(train, config, run.sampling), state, {}
    assert config.pool is not None
    score = run.score(state.reference) if config.scores_reference else None
    every, begins = config.pool.every_steps, _begins_pool(config, state.step)
    number = state.step // every if every else 0
    pool = Pool(train, config, run.sampling, run.folder / "rollouts", evaluated, score, number)
    seconds, later = dict[str, float](), (number + 1) * config.pool.rollout_steps
    if every:  # what is there of later pools is of a policy that this state does not stem from
        by_main(f"pools to {later}", lambda: rollout_log.remove_from(pool.folder, later))
    if begins and config.rollout is not None:
        by = state.reference if config.pool.sampled_from == "start" else state.train.params
        policy = functools.cache(lambda: run.rollout_params(by))
        sampled = pool.fill(policy, run.stopped)
        if sampled is None:
            return None, state, {}
        seconds = sampled
    source, counts = pool.read()
    assert source.logged is not None
    # Before its first step nothing rests on what this run has sampled itself.
    name = f"pool {number}" if number else "pool"
    run.rests_on(name, source.logged, not begins or config.rollout is None)
    cost = {name: counts.pop(name) for name in ("sampled_tokens", "sampled_outputs")}
    if not begins:
        return source, state, {}
    state = state._replace(counters=state.counters.plus(**cost), position=Position())
    if state.step:
        return source, state, counts | seconds
    run.write("train", state, counts | seconds)
    return source, state, {}


def _evaluate(run: Run, state: State, kind: Kind) -> tuple[float | None, float]:
    """Evaluate on the sets of a kind, log it; of the main one the greedy accuracy, and what
    checkpoints are judged by."""
    began = time.perf_counter()
    with phase("evaluating"):
        metrics = evaluate_sets(
            run.rollout_params(state.train.params), run.questions.sets(kind),
            replace(run.sampling, verifier=run.evaluator), run.config.evaluation,
            kind=kind, step=state.step, folder=run.folder / "evaluation",
        )  # fmt: skip
    run.write(kind, state, metrics | {"seconds/evaluating": time.perf_counter() - began})
    return metrics["greedy/accuracy"], measured(metrics, run.config.checkpoint.measure)


def save(run: Run, state: State, judged: float | None) -> float:
    """Checkpoint parameters, optimizer and host facts of the loop, all as of one step.

    judged: by checkpoint.measure, where the policy after this step was evaluated. Returns the
    seconds the loop waited; the writing continues beside it.
    """
    began = time.perf_counter()
    run.sampling.at(f"checkpoint of step {state.step}")
    if run.log is not None:
        run.log.settle()
    host: dict[str, Any] = {
        "position": state.position.to_json(),
        "replayed": state.replayed.to_json(),
        "control": state.control._asdict(),
        "counters": asdict(state.counters) | {"seconds": time.perf_counter() - run.began},
    }
    if run.config.refill is not None:
        host["surplus"] = batch_filling.to_json(state.surplus)
    if state.history:
        host["history"] = curriculum.to_json(state.history)
    if state.minibatches:
        host["minibatches"], host["rollout"] = to_json(state.minibatches), state.rollout
    with phase("checkpointing"):
        saved = checkpoint.Saved(state.train, host, state.beside(run.config))
        checkpoint.save(run.checkpoints, state.step, saved, judged)
    return time.perf_counter() - began


def _finish(run: Run, state: State) -> None:
    """Mark the run as finished, in one atomic write."""
    if run.log is not None:
        run.log.settle()
    facts = run.costs(state.counters) | run.watch.facts(state.step)
    write_atomically(run.folder / FINISHED, json.dumps(facts) + "\n")
