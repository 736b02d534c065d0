"""The device mesh, and when the state is saved: what a resumed run may change."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rft_jax.config.fields import at_least, require

_MEASURE = re.compile(r"greedy/accuracy|pass_at/[1-9][0-9]*")


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh's axes; at most one is -1: inferred from the other two."""

    data: int = -1
    """Copies of the parameters that split the batch."""
    fsdp: int = 1
    """Devices that split the batch and, by the model width, the parameters."""
    tensor: int = 1
    """Devices that split heads, MLP and vocabulary."""

    def __post_init__(self) -> None:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            require(
                size == -1 or size >= 1,
                f"mesh.{name} is {size}: it must be a positive size, or -1 to be inferred.",
            )
        inferred = [name for name, size in sizes.items() if size == -1]
        require(
            len(inferred) <= 1,
            f"mesh.{' and mesh.'.join(inferred)} are {'both' if len(inferred) == 2 else 'all'} -1: "
            "only one axis can be inferred.",
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """When the whole state of the loop is saved, and which of these checkpoints are kept."""

    every_steps: int = 100
    """Save every N steps; the last step is always saved."""
    every_minutes: float = 0.0
    """Also save after the first step that ends N minutes or more after the last save; 0 for
    never."""
    keep: int = 2
    """Newest checkpoints kept; where one is damaged, the run resumes from the one before it."""
    keep_best: int = 0
    """Also keep the checkpoints of the N evaluations on data.validation that are the best by
    `measure`, the later of equals; 0 for none."""
    measure: str = "greedy/accuracy"
    """What the best checkpoint and alarms.patience are judged by: `greedy/accuracy`, `pass_at/K`,
    or the mean of several, as in `greedy/accuracy+pass_at/16`."""

    def __post_init__(self) -> None:
        at_least(1, self, "every_steps", "keep")
        at_least(0, self, "keep_best")
        require(
            self.every_minutes >= 0,
            f"checkpoint.every_minutes is {self.every_minutes}: 0 (never) or more is needed.",
        )
        require(
            all(_MEASURE.fullmatch(name) for name in self.measure.split("+")),
            f"checkpoint.measure is {self.measure!r}: greedy/accuracy, pass_at/K, or several "
            "joined by + are expected.",
        )
