"""What a model card says of a method."""

from __future__ import annotations

import numpy as np
import pytest

from rft_jax.commands.model_card import method_summary
from rft_jax.config.method import Method, resolve


@pytest.mark.parametrize("name", ["sft", "rft", "online_rft"])
def test_a_row_of_the_table_says_it_itself(name: str) -> None:
    row = resolve(name)
    assert method_summary(row) == row.about != ""


def test_a_row_without_words_is_described_by_its_fields() -> None:
    row = resolve(Method("policy", "decided", lambda facts: np.ones(1), "centred"))
    assert (
        method_summary(row) == "method centred, on outputs of the current policy that are decided"
    )
