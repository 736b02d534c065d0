"""A profiler trace of some steps of a run, with the phases of each named in it.

`rft-jax run EXPERIMENT --profile steps 3..5` leaves it in RUN/profile/, where TensorBoard finds it
(`tensorboard --logdir RUN`, with the xprof plugin); ui.perfetto.dev opens its *.trace.json.gz. In
it `step` spans one step of the loop, and `sampling`, `verifying`, `updating`, `evaluating` and
`checkpointing` what the loop does, as far as it waits for it: verification beside sampling and the
writing of a checkpoint continue elsewhere. The seconds in metrics.jsonl of a traced step include
what tracing costs.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Literal, get_args

import jax

from rft_jax.config.steps import Steps
from rft_jax.errors import UserError
from rft_jax.io.paths import Folder, Mirror

Phase = Literal["sampling", "verifying", "updating", "evaluating", "checkpointing"]
"""What a step spends its time on."""

PHASES: tuple[Phase, ...] = get_args(Phase)

STEP = "step"
"""The name of a step in a trace, beside its number, `step_num`."""

logger = logging.getLogger(__name__)


def phase(name: Phase) -> jax.profiler.TraceAnnotation:
    """A context that a trace shows under that name; without a trace it costs next to nothing."""
    return jax.profiler.TraceAnnotation(name)


class Profiler:
    """Traces `steps`: from the first of them that the run does to the last."""

    def __init__(self, mirror: Mirror, steps: Steps | None) -> None:
        self._mirror, self._steps = mirror, steps
        self._traced: Steps | None = None

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """The context of one step, number `number` in metrics.jsonl, all of its phases included."""
        steps = self._steps
        if steps is not None and steps.first <= number <= steps.last:
            self._trace(number)
        with jax.profiler.StepTraceAnnotation(STEP, step_num=number):
            yield
        if steps is not None and number == steps.last:
            self.close()

    def _trace(self, number: int) -> None:
        if self._traced is not None:
            self._traced = self._traced._replace(last=number)
            return
        assert self._steps is not None
        options = jax.profiler.ProfileOptions()
        # Each Python call would be an event: the phases say as much, and traces stay small.
        options.python_tracer_level = 0
        options.raise_error_on_start_failure = True
        options.session_id = f"steps-{number}-{self._steps.last}"
        try:
            jax.profiler.start_trace(self._mirror.local, profiler_options=options)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"step {number}: jax cannot start a trace ({reason}): the same command without "
                "--profile resumes the run."
            ) from error
        self._traced = Steps(number, number)

    def close(self) -> None:
        """End an open trace, and write what it has."""
        if self._traced is None:
            return
        traced, self._traced = self._traced, None
        jax.profiler.stop_trace()
        self._mirror.copy()
        logger.info("trace of %s: %s", traced, self._mirror.folder)


@contextlib.contextmanager
def open_profiler(folder: Folder, steps: Steps | None, *, done: int) -> Iterator[Profiler]:
    """What traces `steps` of a run into FOLDER/profile; nothing with None.

    A trace that an error or a signal cuts short is written as far as it went. Several processes
    write a folder each, as jax names its files by host and one host may have several.

    Args:
        folder: of the run.
        steps: to trace.
        done: steps that a resumed run has behind it. They are not repeated: a warning says so, and
            the others are traced.
    """
    warn_of_done(folder, steps, done=done)
    own = folder / "profile"
    if jax.process_count() > 1:
        own = own / f"process-{jax.process_index():03d}"
    with contextlib.closing(Mirror(own)) as mirror:
        profiler = Profiler(mirror, steps)
        try:
            yield profiler
        finally:
            profiler.close()


def warn_of_done(folder: Folder, steps: Steps | None, *, done: int) -> None:
    """Say which of `steps` a run has behind it already, when `done` of its steps are done."""
    if steps is None or steps.first > done:
        return
    left = f"only {Steps(done + 1, steps.last)}" if steps.last > done else "nothing"
    logger.warning(
        "%s: --profile is %r and %d steps are done already: %s will be traced; give another "
        "--workdir to trace the others.",
        folder.name,
        str(steps),
        done,
        left,
    )
