"""What the TPU compiler counts for a program with its loops opened: it counts their bodies once."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
from jax.sharding import Mesh

from benchmarks.tpu_programs import (
    Chip,
    Program,
    decode_arguments,
    decode_settings,
    update_arguments,
    update_settings,
)
from benchmarks.tpu_text import collectives
from rft_jax.config import ModelConfig
from rft_jax.parallel.mesh import batch_sharding
from rft_jax.sampling import sampler
from rft_jax.training import update as training


class Cost(NamedTuple):
    """Per device. seconds: the compiler's optimal_seconds; links: bytes of collectives."""

    flops: float
    bytes: float
    links: float
    seconds: float

    def scaled(self, times: float) -> Cost:
        """So many of it."""
        return Cost(*(times * part for part in self))

    def plus(self, other: Cost) -> Cost:
        """Both."""
        return Cost(*map(sum, zip(self, other, strict=True)))


def roofline(cost: Cost, chip: Chip) -> float:
    """Seconds, when products, memory and links are at work at the same time."""
    return max(cost.flops / chip.flops, cost.bytes / chip.bandwidth, cost.links / chip.links)


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

        def choose(*arguments: Any, **settings: Any) -> Any:
            caller = sys._getframe(1).f_globals["__name__"]
            function = instead if caller.startswith(package) else original
            return function(*arguments, **settings)

        return mock.patch.object(module, name, choose)

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
    """A jitted function, or one traced with its loops opened, compiled for its arguments."""
    return function.lower(*arguments, **settings).compile()


def fitting(function: Any, arguments: tuple[Any, ...], **settings: Any) -> Any:
    """`compiled`, or what the compiler says when the memory of a device does not suffice."""
    try:
        return compiled(function, arguments, **settings)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return str(error).splitlines()[0].partition(": ")[2]


def opened(function: Callable[..., Any], arguments: tuple[Any, ...], **jit: Any) -> Any:
    """`function` compiled with its loops opened."""

    def traced(*arguments: Any) -> Any:  # a new one each time: jit keeps what it has traced
        with opened_loops():
            return function(*arguments)

    return compiled(jax.jit(traced, **jit), arguments)


def of_layers(costs: Sequence[Cost], layers: int) -> Cost:
    """From the costs of one and of two layers that of so many."""
    one, two = costs
    return one.plus(two.plus(one.scaled(-1)).scaled(layers - 1))


def decode_cost(program: Program, mesh: Mesh, config: ModelConfig) -> Cost:
    """Of one step, in layouts of the compiler's choice."""
    from jax.experimental.layout import Format, Layout

    arguments = decode_arguments(program, mesh, config)
    free = jax.tree.map(lambda leaf: Format(Layout.AUTO, leaf.sharding), arguments)
    bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    step = functools.partial(
        unjitted(sampler.decode),
        **decode_settings(program, mesh, config),
    )
    summary = Format(Layout.AUTO, batch_sharding(mesh))
    return cost(
        opened(step, bare, donate_argnums=2, in_shardings=free, out_shardings=(free[2], summary))
    )


def update_costs(program: Program, mesh: Mesh, config: ModelConfig) -> tuple[Cost, Cost]:
    """(of the gradient of a micro-batch, of an update with one micro-batch)."""
    arguments = update_arguments(program, mesh, config)
    state, *others = arguments
    settings = update_settings(program, mesh, config)
    update = functools.partial(unjitted(training.update), **settings)
    del settings["optimizer"]
    gradients = functools.partial(training.gradients, **settings)
    where = jax.tree.map(lambda leaf: leaf.sharding, state.params)
    alone = opened(
        lambda *given: gradients(*given).gradients, (state.params, *others), out_shardings=where
    )
    return cost(alone), cost(opened(update, arguments, donate_argnums=0))


def cost(program: Any) -> Cost:
    """What the compiler counts for a program without loops."""
    said = program.cost_analysis()
    moved = sum(one.times * one.bytes for one in collectives(program.as_text()))
    return Cost(said["flops"], said["bytes accessed"], moved, said.get("optimal_seconds", -1.0))
