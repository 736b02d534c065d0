"""What a compiler counts for a program with its loops opened: it counts their bodies once."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax


def plausible(seconds: float, floor: float, bound: float) -> bool:
    """Whether `optimal_seconds` can be: not below 0.9 of the floor, nor above 10 rooflines."""
    return 0.9 * floor <= seconds <= 10 * bound


@contextlib.contextmanager
def opened_loops(package: str = "rft_jax") -> Iterator[None]:
    """While tracing: while_loop and fori_loop of `package` run their body once, scan is unrolled.

    Loops of others, such as those inside a kernel, stay.
    """

    def patched(module: Any, name: str, instead: Callable[..., Any]) -> Any:
        original = getattr(module, name)

        def here(caller: str) -> Callable[..., Any]:
            return instead if caller.startswith(package) else original

        # A lambda: nothing that wraps annotated functions may stand between it and its caller.
        return mock.patch.object(
            module,
            name,
            lambda *arguments, **settings: here(sys._getframe(1).f_globals["__name__"])(
                *arguments, **settings
            ),
        )

    def once(lower: Any, upper: Any, body: Callable[..., Any], start: Any) -> Any:
        return body(lower, jax.lax.optimization_barrier(start))  # adding to zeros is to stay

    scan, checkpoint = functools.partial(jax.lax.scan, unroll=True), jax.checkpoint

    def recomputed(function: Any, **settings: Any) -> Any:
        # Outside of a scan the compiler would find that it has the values already.
        return checkpoint(function, **settings | {"prevent_cse": True})

    with (
        patched(jax.lax, "while_loop", lambda _, body, start: body(start)),
        patched(jax.lax, "fori_loop", once),
        patched(jax.lax, "scan", scan),
        patched(jax, "checkpoint", recomputed),
    ):
        yield


def unjitted(function: Any) -> Callable[..., Any]:
    """What jit wraps."""
    inner: Callable[..., Any] = function.__wrapped__
    return inner


def compiled(function: Any, arguments: tuple[Any, ...], **settings: Any) -> Any:
    """A jitted function compiled for its arguments; what the compiler says when the memory of a
    device does not suffice."""
    try:
        return function.lower(*arguments, **settings).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return str(error).splitlines()[0].partition(": ")[2]


def seconds(function: Callable[..., Any], arguments: tuple[Any, ...], **jit: Any) -> float:
    """The compiler's `optimal_seconds` of `function` with its loops opened; 0 where it says none,
    or what can be no time, or needs more memory than there is."""

    def traced(*arguments: Any) -> Any:  # a new one each time: jit keeps what it has traced
        with opened_loops():
            return function(*arguments)

    made = compiled(jax.jit(traced, **jit), arguments)
    if isinstance(made, str):
        return 0.0
    return max(0.0, float(made.cost_analysis().get("optimal_seconds", 0.0)))
