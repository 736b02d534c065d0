"""A run from its settings to its loop: everything is checked and made before the first step."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import jax

from rft_jax.checkpoint import integrity as checkpoint_health
from rft_jax.checkpoint import manager as checkpoint
from rft_jax.checkpoint import policy as policies
from rft_jax.checkpoint import provenance
from rft_jax.checkpoint.inputs import Input, Inputs
from rft_jax.checkpoint.manager import Saved
from rft_jax.checkpoint.provenance import check_same_config, moved
from rft_jax.checkpoint.start import load_start
from rft_jax.config import Config
from rft_jax.config.steps import Steps
from rft_jax.data.prompts import with_ends
from rft_jax.data.stream import Position
from rft_jax.distributed.collectives import by_main, from_main, is_main, largest, main_first
from rft_jax.distributed.mesh import make_mesh
from rft_jax.distributed.process import stop_on_signals
from rft_jax.errors import CheckpointError, DataError
from rft_jax.io.paths import Folder
from rft_jax.observe.log import MetricsLog
from rft_jax.observe.profiling import open_profiler, warn_of_done
from rft_jax.observe.system import count_compilations
from rft_jax.rollout.engine import Sampling, nowhere
from rft_jax.runs import setup
from rft_jax.runs.health import Watch
from rft_jax.runs.loop import loop
from rft_jax.runs.state import Counters, Run, RunResult, State
from rft_jax.runs.utilization import meter
from rft_jax.training import batch_filling, minibatches
from rft_jax.training.critic import Critic
from rft_jax.training.optimizer import make_optimizer
from rft_jax.training.state import Layout, as_reference, fresh_state, make_layout, reference_like
from rft_jax.training.update import Updater
from rft_jax.types import Params, TrainState
from rft_jax.verification.canary import FirstOutputs, open_verifiers

logger = logging.getLogger(__name__)


def run(
    name: str,
    experiment: Mapping[str, Config],
    workdir: Folder,
    profile: Steps | None = None,
    at: Callable[[str], None] = nowhere,
    *,
    accept_changed: bool = False,
) -> RunResult:
    """Carry out, or resume, the run `name` of an experiment in WORKDIR/name.

    Everything is checked before the first step. A finished run returns at once. A run killed at
    any instant resumes from its last checkpoint and ends with the same bits. Every process of a job
    must call it.

    Args:
        name: of the run.
        experiment: all of its runs.
        workdir: of the experiment.
        profile: steps to trace.
        at: told where the run is.
        accept_changed: resume on data, a tokenizer, a start or code of other content than before.

    Raises:
        UserError: whatever a user can fix, in one line.
    """
    config, folder = experiment[name], workdir / name
    check_same_config(folder, config)
    recorded = provenance.inputs_of(folder)
    if from_main(f"{name} was finished", lambda: policies.is_finished(folder, config)):
        if recorded is not None:
            inputs = setup.inputs_of_finished(config, workdir, folder, recorded)
            _check_inputs(folder, inputs, accept=accept_changed)
            if accept_changed:
                by_main(
                    f"{name} keeps what is accepted",
                    lambda: provenance.record_inputs(folder, inputs, config.steps),
                )
        warn_of_done(folder, profile, done=config.steps)
        return RunResult(0, True)
    at(f"start of {name}")
    by_main(f"{name} has a folder", lambda: setup.make_folder(folder))
    mesh = make_mesh(config.mesh)
    setup.check_devices(config, mesh)
    if is_main():
        setup.warn_of_fillers(name, config, mesh)
    tokenizer = main_first(
        f"{name} has a tokenizer", lambda: setup.ensure_tokenizer(config, workdir)
    )
    tokenizer = with_ends(tokenizer, config.data)
    questions = setup.load_questions(config, tokenizer)
    if is_main():
        setup.show_prompts(name, config, workdir, questions, tokenizer)
    optimizer = make_optimizer(config.optimizer, config.steps)
    vocab_size = setup.vocab_size(config.model, tokenizer)
    layout = make_layout(config.model, mesh, optimizer, vocab_size)
    saved_in = folder / "checkpoints"
    step = from_main(f"{name} resumes", lambda: checkpoint_health.recover(saved_in))
    first, starts = step or 0, _loads_start(config, step)
    if starts:
        by_main(f"{name} keeps its start", lambda: policies.keep_start(config, workdir, folder))
    inputs = questions.inputs | setup.inputs_beside_data(
        config, workdir, folder, recorded or {}, starts=starts
    )
    _check_inputs(folder, inputs, accept=accept_changed)
    if recorded is None and first and is_main():
        logger.info("%s: what it rests on was not recorded so far: it is from step %d", name, first)

    def rests_on(name: str, pool: Input, compare: bool) -> None:
        logged = {name: pool}
        _check_inputs(folder, logged, accept=accept_changed, compare=compare)
        by_main(
            f"{folder.name} keeps its {name}",
            lambda: provenance.record_inputs(folder, logged, first),
        )

    def keep() -> None:
        policy = policies.keep(config, workdir, folder, tokenizer)
        _keep_config(folder, config, mesh.size, inputs, policy, first)

    with contextlib.ExitStack() as stack:
        signal = stack.enter_context(stop_on_signals())
        compilations = stack.enter_context(count_compilations())
        known = [*questions.train, *questions.validation]
        verifier, evaluator = stack.enter_context(open_verifiers(config, known))
        checkpoints = stack.enter_context(checkpoint.open_manager(saved_in, config.checkpoint))
        critic = Critic(config, mesh, layout, vocab_size)
        asked = {question.id for question in questions.train}
        frozen, begun = _begin(config, workdir, folder, layout, critic, checkpoints, step, asked)
        by_main(f"{name} keeps its config", keep)
        log = (
            stack.enter_context(contextlib.closing(MetricsLog(folder, first)))
            if is_main()
            else None
        )
        opened = Run(
            config=config,
            folder=folder,
            sampling=Sampling(
                config.model, config.data, mesh, tokenizer, verifier, config.seed, at=at
            ),
            evaluator=evaluator,
            questions=questions,
            layout=layout,
            update=Updater(
                config,
                mesh,
                optimizer,
                vocab_size,
                frozen,
                at,
            ),
            critic=replace(critic, frozen=frozen),
            meter=meter(
                config, vocab_size, device_kind=jax.devices()[0].device_kind, count=mesh.size
            ),
            log=log,
            checkpoints=checkpoints,
            compilations=compilations,
            profiler=stack.enter_context(open_profiler(folder, profile, done=first)),
            stopped=lambda: largest(signal()),
            began=time.perf_counter(),
            rests_on=rests_on,
            first_outputs=FirstOutputs(config, resumed=first > 0),
            watch=Watch(name, config, log.before if log else ()),
        )
        if first:
            logger.info("%s: resuming from step %d", name, first)
        before = begun[0].counters.seconds
        return loop(replace(opened, began=opened.began - before), begun.pop())


def _loads_start(config: Config, step: int | None) -> bool:
    """Whether a run, or one that resumes from `step`, needs the parameters that it starts from."""
    return step is None or bool(config.model.lora_rank) or _keeps_start(config, step)


def _keeps_start(config: Config, step: int | None) -> bool:
    """Whether pi_ref is the start, and not in the checkpoint."""
    return config.has_reference and (step is None or not config.objective.reference_every)


def _begin(
    config: Config,
    workdir: Folder,
    folder: Folder,
    layout: Layout,
    critic: Critic,
    checkpoints: checkpoint.Checkpoints,
    step: int | None,
    question_ids: Collection[int],
) -> tuple[Params, list[State]]:
    """The frozen parameters, and in a list the state that the first step of this process starts
    from: whoever pops it there keeps no array that a step replaces.

    Raises:
        UserError: the start or the checkpoint is missing, damaged, or of other settings.
    """
    dtype, beside = config.model.compute_dtype, dict[str, Any]()
    if config.objective.reference_every:
        beside["reference"] = reference_like(layout.trained, dtype)
    if config.critic is not None:
        beside["critic"] = critic.like()._asdict()
    saved = None if step is None else checkpoint.restore(checkpoints, layout.state, step, beside)
    frozen: Params = {}
    reference = fresh = values = None
    if _loads_start(config, step):
        setup.check_same_tokenizer(config, workdir)
        frozen, trained = load_start(config, workdir, layout, folder)
        # The state takes what the run starts from: the reference must be a copy.
        reference = as_reference(trained, dtype) if _keeps_start(config, step) else None
        if saved is None:
            values = critic.start(trained) if config.critic is not None else None
            fresh = fresh_state(trained, make_optimizer(config.optimizer, config.steps), layout)
    if saved is None or step is None:
        assert fresh is not None
        return frozen, [State(fresh, reference=reference, critic=values)]
    state = _resumed(saved[1], config, f"{folder}/checkpoints/{step}", step, question_ids)
    of_critic = saved[1].beside.get("critic")
    state = state._replace(
        reference=saved[1].beside.get("reference", reference),
        critic=of_critic and TrainState(**of_critic),
    )
    return frozen, [state]


def _check_inputs(folder: Folder, inputs: Inputs, *, accept: bool, compare: bool = True) -> None:
    """Raise where a process reads other inputs than process 0, or, if they are to be compared, that
    one others than were recorded."""
    what = f"{folder.name} rests on its {'inputs' if len(inputs) > 1 else next(iter(inputs), '')}"
    told = from_main(what, lambda: {name: one.sha256 for name, one in inputs.items()})
    for name, one in inputs.items():
        if told.get(name, one.sha256) != one.sha256:
            raise DataError(
                f"{name} ({one.where}): process {jax.process_index()} reads other content than "
                "process 0: give all processes of the job the same."
            )
    if compare:
        by_main(
            f"{what}: as before", lambda: provenance.check_inputs(folder, inputs, accept=accept)
        )


def _keep_config(
    folder: Folder,
    config: Config,
    num_devices: int,
    inputs: Inputs,
    policy: Mapping[str, bytes],
    done: int,
) -> None:
    """Write RUN/config.json; warn when a run with `done` steps behind it resumes elsewhere."""
    device = jax.devices()[0].device_kind
    change = moved(folder, config, device=device, num_devices=num_devices)
    if change is not None and done:
        logger.warning("%s: %s", folder.name, change)
    provenance.save_config(
        folder, folder.name, config,
        device=device, num_devices=num_devices, inputs=inputs, policy=policy, step=done,
    )  # fmt: skip
    # Of fewer steps than are to be made.
    (folder / policies.FINISHED).unlink(missing_ok=True)


def _resumed(
    saved: Saved, config: Config, path: str, step: int, question_ids: Collection[int]
) -> State:
    """The state as the loop saved it in `path`.

    Raises:
        CheckpointError: its host facts are not those of this version or this run's data.
    """
    try:
        state = State(
            saved.state,
            step,
            Position(**saved.host["position"]),
            counters=Counters(**saved.host["counters"]),
            minibatches=minibatches.from_json(saved.host.get("minibatches"), source=path),
            rollout=saved.host.get("rollout", step),
        )
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: host holds {saved.host}, which is no position and counters of this version: "
            "use the version that wrote it, or start over with another --workdir."
        ) from error
    if config.refill is None:
        return state
    surplus = batch_filling.from_json(
        saved.host.get("surplus"), config, step=step, question_ids=question_ids, source=path
    )
    return state._replace(surplus=surplus)
