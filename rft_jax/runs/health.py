"""What follows from alarms while a run is carried out; rft_jax/observe/alarms.py raises them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from rft_jax.checkpoint import integrity
from rft_jax.checkpoint import manager as checkpoint
from rft_jax.config import Config
from rft_jax.distributed.collectives import from_main, largest
from rft_jax.observe.alarms import ALARMS, Alarm, Lines, raised
from rft_jax.observe.log import Kind
from rft_jax.types import Params

logger = logging.getLogger(__name__)


class Watch:
    """Looks for alarms in every line that a run writes, in process 0, and says when they end it.

    Args:
        name: of the run.
        config: of the run.
        lines: that it has already, in process 0; what they say has been warned of.
    """

    def __init__(self, name: str, config: Config, lines: Iterable[Mapping[str, Any]]) -> None:
        self._name, self._config = name, config
        self._lines = Lines(lines, config.checkpoint.measure)
        self.lasting: list[Alarm] = self._look()

    def _look(self) -> list[Alarm]:
        if self._config.alarms.action == "off":
            return []
        found = raised(self._lines, self._config.alarms)
        return [alarm for alarm in found if alarm.until is None]

    @property
    def _names(self) -> str:
        return ", ".join(sorted({alarm.name for alarm in self.lasting}))

    def see(self, kind: Kind, step: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The metrics of a line, with `alarms/NAME` of those that last; new ones are warned of."""
        self._lines.add({"kind": kind, "step": step, **metrics})
        known = {alarm.name for alarm in self.lasting}
        self.lasting = self._look()
        for name, alarm in {alarm.name: alarm for alarm in self.lasting}.items():
            if name not in known:
                remedies = ", ".join(ALARMS[name].remedies)
                logger.warning("%s: alarm %s; remedies: %s", self._name, alarm, remedies)
        return {**metrics, **{f"alarms/{alarm.name}": 1 for alarm in self.lasting}}

    def ends(self) -> bool:
        """Whether an alarm ends the run here. Every process must ask."""
        ending = self._config.alarms.action in ("stop", "best")
        return ending and bool(largest(bool(self.lasting)))

    def final(self, checkpoints: checkpoint.Checkpoints, state: Any, like: Params) -> Any:
        """The state (of runs/loop.py) that a run which ends here is tested with and keeps: its own,
        or that with the step and the parameters of the best checkpoint. Every process must ask.

        Args:
            checkpoints: of the run; that of its step is written.
            state: of the run as it is.
            like: ShapeDtypeStructs of the parameters.
        """
        checkpoints.wait_until_finished()
        end, folder = state.step, checkpoints.directory
        if self._config.alarms.action == "best":
            judged = checkpoints.accuracies
            end = from_main(
                f"{self._name} ends", lambda: integrity.best(folder) if judged else state.step
            )
        logger.info(
            "%s: ends at step %d of %d, by alarm %s; its final checkpoint is that of step %d",
            self._name, state.step, self._config.steps, self._names, end,
        )  # fmt: skip
        if end == state.step:
            return state
        params = checkpoint.restore_params(folder, like, end)
        return state._replace(step=end, train=state.train._replace(params=params))

    def facts(self, step: int) -> dict[str, Any]:
        """What RUN/finished.json says of the end of a run whose final checkpoint is of `step`;
        nothing where no alarm ended it."""
        if self._config.alarms.action not in ("stop", "best") or not self.lasting:
            return {}
        return {
            "checkpoint": step,
            "alarm": self._names,
            "alarms": asdict(self._config.alarms),
        }
