"""Several updates on one rollout: update.minibatches parts of it, update.epochs times.

pi_old is the policy that sampled: its log-probs came with the outputs, so no further forward pass
is needed. The first update is on-policy; the ratio pi_theta / pi_old of a method acts from the
second on (rft_jax/training/objective.py). A run may be stopped between two updates of a rollout:
what is still to be trained on is part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rft_jax.config import Config
from rft_jax.data.stream import epoch_order
from rft_jax.errors import CheckpointError
from rft_jax.training.packing import OutputFacts, TrainingSequence

Minibatches = tuple[tuple[TrainingSequence, ...], ...]
"""The updates that are still to be made on a rollout, the next one first."""


def split(sequences: Sequence[TrainingSequence], config: Config, step: int) -> Minibatches:
    """The updates of a rollout, each with the outputs it trains on.

    A minibatch is a random part of the rollout, in its order; outputs whose coefficients are still
    to be computed stay with those of their question. It scales the weights so that its expectation
    is the whole's. Without sequences there is no update.

    Args:
        sequences: of the rollout.
        config: update.minibatches, update.epochs and the seed count.
        step: of the rollout; with the seed and the epoch it gives the parts.
    """
    shapes, units = config.update, _units(sequences)
    size = len(units)
    if shapes.per_rollout == 1:
        return (tuple(sequences),) if sequences else ()
    parts = []
    for epoch in range(step * shapes.epochs, (step + 1) * shapes.epochs):
        order = epoch_order(size, config.seed, epoch)
        for drawn in np.array_split(order, min(shapes.minibatches, size)) if size else ():
            rows = sorted(row for unit in drawn for row in units[unit])
            parts.append(tuple(_scaled(sequences[row], size / len(drawn)) for row in rows))
    return tuple(parts)


def _units(sequences: Sequence[TrainingSequence]) -> list[list[int]]:
    """Rows that stay together."""
    groups: dict[int, list[int]] = {}
    for row, one in enumerate(sequences):
        groups.setdefault(-1 - row if one.facts is None else one.facts.question_id, []).append(row)
    return list(groups.values())


def _scaled(sequence: TrainingSequence, factor: float) -> TrainingSequence:
    facts = sequence.facts
    return sequence._replace(
        weight=sequence.weight * factor,
        kl_weight=sequence.kl_weight * factor,
        facts=facts and facts._replace(share=facts.share * factor),
    )


def to_json(minibatches: Minibatches) -> list[list[dict[str, Any]]]:
    """As a checkpoint holds them; `from_json` gives them back exactly."""
    return [
        [one._asdict() | {"weight": np.asarray(one.weight).tolist()} for one in part]
        for part in minibatches
    ]


def from_json(values: object, *, source: str) -> Minibatches:
    """The minibatches that the checkpoint named `source` holds.

    Raises:
        CheckpointError: they are none.
    """
    if values is None:  # of a version, or a setting, with one update a rollout
        return ()
    try:
        parts = tuple(
            tuple(TrainingSequence(**_read(value)) for value in part)
            for part in values  # type: ignore[attr-defined]
        )
        for one in (one for part in parts for one in part):
            size = len(one.completion)
            whole = all(type(token) is int for token in (*one.prompt, *one.completion))
            if one.facts is not None and not np.isfinite(one.facts).all():
                raise ValueError
            for numbers in one.values or ():
                if len(numbers) != size or not np.isfinite(numbers).all():
                    raise ValueError
            sizes = {np.size(one.weight) if np.ndim(one.weight) else size, len(one.log_probs)}
            finite = np.isfinite([*np.atleast_1d(one.weight), one.kl_weight, *one.log_probs]).all()
            if not (size and whole and sizes <= {size} and finite):
                raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source}: its minibatches are not sequences of tokens with a weight and log-probs: "
            "remove that folder to resume from the one before it, or start over with another "
            "--workdir."
        ) from error
    return parts


def _both(before: list[float], returns: list[float]) -> tuple[tuple[float, ...], ...]:
    return tuple(before), tuple(returns)


def _read(value: dict[str, Any]) -> dict[str, Any]:
    weight, facts, values = value["weight"], value.get("facts"), value.get("values")
    return value | {
        "prompt": tuple(value["prompt"]),
        "completion": tuple(value["completion"]),
        "log_probs": tuple(value["log_probs"]),
        "weight": np.array(weight) if isinstance(weight, list) else weight,
        "facts": facts and OutputFacts(*facts),
        "values": values and _both(*values),
    }
