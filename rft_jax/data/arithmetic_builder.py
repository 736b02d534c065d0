"""The TFDS builder `arithmetic_problems` of the problems in arithmetic.py.

It stands alone because importing TFDS is slow. Prepared as array_record, it is written and read
without TensorFlow and without network.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rft_jax.data import arithmetic


class ArithmeticProblems(tfds.core.GeneratorBasedBuilder):
    """Rows of {question, answer, solution}; a row's number is its question's id."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.0.0": "First version.", "1.1.0": "Splits reworded_*."}  # noqa: RUF012

    def _info(self) -> Any:
        # Text, but declared by its numpy type: all that a reader without TensorFlow can decode.
        features = dict.fromkeys(("question", "answer", "solution"), np.str_)
        return self.dataset_info_from_configs(
            description="Generated arithmetic word problems with worked solutions.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("question", "answer"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, str]]]]:
        return {name: self._generate_examples(rows) for name, rows in arithmetic.splits().items()}

    def _generate_examples(
        self, problems: list[arithmetic.Problem]
    ) -> Iterator[tuple[int, dict[str, str]]]:
        return ((row, asdict(problem)) for row, problem in enumerate(problems))
