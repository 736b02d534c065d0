"""Tables as text."""

from __future__ import annotations

from rft_jax.observe.tables import aligned, markdown


def test_markdown_escapes_what_would_end_a_cell() -> None:
    assert markdown(("run", "a|b"), [("x", "1"), ("y|z", "")]).splitlines() == [
        "| run | a\\|b |",
        "| --- | --- |",
        "| x | 1 |",
        "| y\\|z |  |",
    ]


def test_columns_are_as_wide_as_their_longest_cell() -> None:
    assert aligned(("run", "%"), [("a long name", "5.0"), ("b", "")]).splitlines() == [
        "run            %",
        "----------------",
        "a long name  5.0",
        "b",
    ]
    assert aligned(("run", "%"), []).splitlines() == ["run  %", "------"]
