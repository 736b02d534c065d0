"""What a compiler makes of a run's programs: memory, exchanges between devices, and time.

Sampling's programs write all layers out, so they are compiled with one and with two layers, and
what L layers need follows, as it is linear in them; the update, which scans them, is compiled as it
is. `whole` compiles everything with all layers, which takes minutes for each.

**Seconds.** The compiler's own `optimal_seconds` count a loop's body once, so it is asked about
programs with their loops opened (`open_loops`). They are often no time at all, so they are believed
only where they are plausible. `scheduled` are the cycles that a TPU's compiler puts down for
each operation of the real program, times the trips of the loops around it; exchanges between
devices and kernels written by hand (splash attention) cost nothing there.
"""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental.layout import Format, Layout
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun

from rft_jax.distributed.mesh import batch_sharding
from rft_jax.planning import hlo, programs
from rft_jax.planning.hlo import Collective
from rft_jax.planning.memory import Sampled
from rft_jax.planning.programs import Program, Setting
from rft_jax.training import update as training

logger = logging.getLogger(__name__)

PARTS = ("arguments", "outputs", "aliases", "temporaries")
"""Of a program's memory; aliases are outputs that take the place of arguments."""


class Exchange(NamedTuple):
    """All collectives of one kind. group: devices that take part in one; times: how often; bytes:
    that reach a device, all together."""

    kind: str
    in_loop: bool
    group: int
    times: float
    bytes: float


class Compiled(NamedTuple):
    """A program on one device. memory: bytes of PARTS; exchanges: for one trip of a loop whose
    trips it is told at run time; gathered: weights that are gathered inside a loop; scheduled:
    seconds, None where the compiler puts down no cycles; short: what the compiler says when memory
    does not suffice."""

    memory: Mapping[str, float]
    exchanges: tuple[Exchange, ...] = ()
    gathered: tuple[str, ...] = ()
    scheduled: float | None = None
    short: str = ""

    @property
    def needed(self) -> float:
        """Bytes at most at a time."""
        return sum(self.memory.values()) - 2 * self.memory.get("aliases", 0.0)


def compiled(function: Any, arguments: tuple[Any, ...], **settings: Any) -> Any:
    """A jitted function compiled for its arguments; what the compiler says when the memory of a
    device does not suffice."""
    try:
        return function.lower(*arguments, **settings).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return str(error).splitlines()[0].partition(": ")[2]


def memory_of(made: Any) -> dict[str, float]:
    """The memory of a `Compiled`, of what jax compiled."""
    found, names = made.memory_analysis(), ("argument", "output", "alias", "temp")
    return {p: getattr(found, f"{n}_size_in_bytes") for p, n in zip(PARTS, names, strict=True)}


def measure(
    make: Callable[[Setting], Program],
    of: Setting,
    clock: float,
    *,
    whole: bool = True,
    only_loops: bool = False,
    trips: int = 1,
) -> Compiled:
    """A program of a run, compiled.

    Args:
        make: the program of a setting.
        of: the run.
        clock: cycles/s of the device, 0 where they are not known.
        whole: compile it as it is, not with one and with two layers.
        only_loops: count only the cycles inside loops.
        trips: of loops that are told them at run time.
    """
    layers, given, few = of.config.model.num_layers, make(of).local_bytes, list[Compiled]()
    for setting in [of] if whole or layers <= 2 else [of.of_layers(1), of.of_layers(2)]:
        name, function, arguments, settings = make(setting)
        began = time.perf_counter()
        made = compiled(function, arguments, **settings)
        logger.info("%s: compiled in %.0f s", name, time.perf_counter() - began)
        if isinstance(made, str):
            return Compiled(dict.fromkeys(PARTS, 0.0) | {"arguments": given}, short=made)
        text = made.as_text()
        moved = hlo.collectives(text, trips)
        weights = arguments[0] if name in ("prefill", "decode") else {}
        cycles = [
            runs.times * count
            for runs, count in hlo.cycles(text, trips)
            if runs.in_loop or not only_loops
        ]
        scheduled = sum(cycles) / clock if cycles and clock else None
        few.append(Compiled(memory_of(made), _grouped(moved), _gathered(moved, weights), scheduled))
    result = few[0] if len(few) == 1 else _extrapolated(few[0], few[1], layers)
    # What a program does not read is no argument of the compiled one, and lives all the same.
    most = max(result.memory["arguments"], given)
    return result._replace(memory={**result.memory, "arguments": most})


def _grouped(collectives: Sequence[Collective]) -> tuple[Exchange, ...]:
    groups = dict[tuple[str, bool, int], Exchange]()
    for one in collectives:
        key = (one.kind, one.in_loop, one.group)
        *_, times, moved = groups.get(key, Exchange(*key, 0, 0))
        groups[key] = Exchange(*key, times + one.times, moved + one.times * one.bytes)
    return tuple(groups[key] for key in sorted(groups))


def _gathered(collectives: Sequence[Collective], weights: Any) -> tuple[str, ...]:
    """Gathers inside a loop whose result has the shape of a weight, in whichever order."""
    shapes = {
        tuple(sorted(size for size in shape if size > 1))
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights)
        for shape in (leaf.shape, leaf.sharding.shard_shape(leaf.shape))
        if leaf.ndim > 1 and "bias" not in str(path[-1])  # activations may look like one
    }
    return tuple(
        f"{one.times} x {one.kind} of {'x'.join(map(str, shape))}"
        for one in collectives
        if one.in_loop and one.kind != "all-reduce"
        for shape in one.shapes
        if tuple(sorted(size for size in shape if size > 1)) in shapes
    )


def _extrapolated(one: Compiled, two: Compiled, layers: int) -> Compiled:
    """From one and two layers to `layers`."""

    def line(first: float, second: float) -> float:
        return first + (second - first) * (layers - 1)

    by_kind = [{exchange[:3]: exchange for exchange in few.exchanges} for few in (one, two)]
    exchanges = []
    for key in sorted({*by_kind[0], *by_kind[1]}):
        sizes = (few.get(key, Exchange(*key, 0, 0))[3:] for few in by_kind)
        exchanges.append(Exchange(*key, *itertools.starmap(line, zip(*sizes, strict=True))))
    times = (one.scheduled, two.scheduled)
    return Compiled(
        {part: max(0.0, line(size, two.memory[part])) for part, size in one.memory.items()},
        tuple(exchanges),
        two.gathered,
        None if times[0] is None or times[1] is None else line(times[0], times[1]),
    )


# The compiler's own time

_ONCE = jax.make_jaxpr(jax.checkpoint(lambda x: x))(0).eqns[0]
"""Computes what it is given behind a barrier, so that nothing is simplified away."""


def open_loops(program: ClosedJaxpr) -> ClosedJaxpr:
    """The program with the body of every while_loop and fori_loop once, and scans unrolled. Loops
    within kernels stay."""
    return ClosedJaxpr(_opened(program.jaxpr), program.consts)


def _opened(value: Any) -> Any:
    """A parameter of an operation, with the programs in it opened."""
    if isinstance(value, ClosedJaxpr):
        return open_loops(value)
    if isinstance(value, Jaxpr):
        return value.replace(eqns=[_opened_operation(one) for one in value.eqns])
    return tuple(map(_opened, value)) if type(value) is tuple else value


def _opened_operation(one: JaxprEqn) -> JaxprEqn:
    if one.primitive.name == "pallas_call":
        return one
    found = {name: _opened(value) for name, value in one.params.items()}
    if one.primitive.name == "while":
        body = found["body_jaxpr"]
        assert not body.consts
        return one.replace(
            primitive=_ONCE.primitive,
            invars=one.invars[found["cond_nconsts"] :],
            params=_ONCE.params | {"jaxpr": body.jaxpr, "differentiated": True},
            effects=body.effects,
        )
    if one.primitive.name == "scan":
        found["unroll"] = found["length"]
    elif one.primitive is _ONCE.primitive:
        # Outside of a scan the compiler would find that it has the values already.
        found["prevent_cse"] = True
    return one.replace(params=found)


def seconds(function: Any, arguments: tuple[Any, ...], settings: Any, **jit: Any) -> float:
    """The compiler's `optimal_seconds` of a jitted function with its loops opened; 0 where it says
    none, or what can be no time, or needs more memory than there is.

    Args:
        function: called with `arguments` and `settings`.
        jit: of jax.jit, for flat arguments and results.
    """
    program, flat = (
        open_loops(function.trace(*arguments, **settings).jaxpr),
        jax.tree.leaves(arguments),
    )
    if "in_shardings" in jit:
        flat = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in flat]
    made = compiled(jax.jit(jaxpr_as_fun(program), **jit), tuple(flat))
    if isinstance(made, str):
        return 0.0
    return max(0.0, float(made.cost_analysis().get("optimal_seconds", 0.0)))


def _by_layers(costs: Callable[[int], float], layers: int) -> float | None:
    """From the seconds of one and two layers those of `layers`; None where they are none."""
    one = costs(1)
    two = costs(2) if one > 0 else 0.0
    return one + (two - one) * (layers - 1) if two > one else None


def decode_seconds(of: Setting, work: Sampled) -> float | None:
    """Of one step, in memory layouts of the compiler's choice."""

    def costs(layers: int) -> float:
        _, function, arguments, settings = programs.decode(of.of_layers(layers), work)
        free = [Format(Layout.AUTO, leaf.sharding) for leaf in jax.tree.leaves(arguments)]
        first, count = (len(jax.tree.leaves(part)) for part in (arguments[:2], arguments[2]))
        slots = range(first, first + count)
        results = [*(free[place] for place in slots), Format(Layout.AUTO, batch_sharding(of.mesh))]
        return seconds(
            function, arguments, settings, donate_argnums=tuple(slots),
            in_shardings=tuple(free), out_shardings=results,
        )  # fmt: skip

    return _by_layers(costs, of.config.model.num_layers)


def update_seconds(of: Setting, microbatches: int) -> float | None:
    """Of an update of `microbatches` micro-batches."""
    layers = of.config.model.num_layers

    def micro(layers: int) -> float:
        small = of.of_layers(layers)
        _, _, (state, *others), settings = programs.update(small, microbatches=1)
        gradients = functools.partial(
            training.gradients, **{n: v for n, v in settings.items() if n != "optimizer"}
        )
        where = [leaf.sharding for leaf in jax.tree.leaves(small.layout.trained)]
        function = jax.jit(lambda *given: gradients(*given).gradients)
        return seconds(function, (state.params, *others), {}, out_shardings=where)

    def update(layers: int) -> float:
        _, function, arguments, settings = programs.update(of.of_layers(layers), microbatches=1)
        state = tuple(range(len(jax.tree.leaves(arguments[0]))))
        return seconds(function, arguments, settings, donate_argnums=state)

    gradient = _by_layers(micro, layers)
    whole = None if gradient is None else _by_layers(update, layers)
    if gradient is None or whole is None:
        return None
    return whole + (microbatches - 1) * gradient
