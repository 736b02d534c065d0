"""Costs of programs with their loops opened, and when a compiler's time is believed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from rft_jax.planning import opened


@pytest.mark.parametrize(
    ("seconds", "believed"), [(-13.0, False), (0.0, False), (0.5, False), (1.1, True), (30, False)]
)
def test_the_compilers_time_is_believed_where_it_can_be(seconds: float, believed: bool) -> None:
    assert opened.plausible(seconds, floor=1.0, bound=2.0) is believed


def test_opened_loops_do_once_what_a_loop_does_often() -> None:
    def steps(x: Any) -> Any:
        x = jax.lax.while_loop(lambda y: y < 100, lambda y: y * 2, x)
        x = jax.lax.fori_loop(0, 9, lambda i, y: y + i + 5, x)
        return jax.lax.scan(lambda y, _: (y + 1, None), x, None, length=3)[0]

    with opened.opened_loops(__name__):
        assert jax.jit(lambda x: steps(x))(jnp.int32(3)) == 3 * 2 + 0 + 5 + 3
        text = str(jax.make_jaxpr(lambda x: steps(x))(jnp.int32(3)))
    assert "while[" not in text
    assert jax.jit(steps)(jnp.int32(3)) == 192 + 36 + 45 + 3


def test_a_compiler_that_says_no_time_has_none() -> None:
    """This machine's says none."""
    assert opened.seconds(lambda x: x + 1, (jnp.ones(3),)) == 0


@pytest.mark.parametrize(("said", "found"), [(-3.0, 0.0), (2.5, 2.5)])
def test_a_negative_time_is_none(
    said: float, found: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made:
        def cost_analysis(self) -> dict[str, float]:
            return {"optimal_seconds": said}

    monkeypatch.setattr(opened, "compiled", lambda *_: Made())
    assert opened.seconds(lambda x: x, (jnp.ones(3),)) == found
    monkeypatch.setattr(opened, "compiled", lambda *_: "no memory is left")
    assert opened.seconds(lambda x: x, (jnp.ones(3),)) == 0


def test_memory_that_does_not_suffice_is_no_error() -> None:
    """Any other error of the compiler is one."""

    class Program:
        def __init__(self, message: str) -> None:
            self.message = message

        def lower(self, *_: Any, **__: Any) -> Program:
            return self

        def compile(self) -> Any:
            raise jax.errors.JaxRuntimeError(self.message)

    short = "RESOURCE_EXHAUSTED: XLA:TPU ran out of memory. Used 20G of 16G.\nLargest: ..."
    assert opened.compiled(Program(short), ()) == "XLA:TPU ran out of memory. Used 20G of 16G."
    with pytest.raises(jax.errors.JaxRuntimeError):
        opened.compiled(Program("INTERNAL: a bug"), ())
