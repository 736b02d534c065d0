"""What a compiler makes of a run's programs: memory, exchanges between devices, and time.

Sampling's programs write all layers out, so they are compiled with one and with two layers, and
what L layers need follows, as it is linear in them; the update, which scans them, is compiled as it
is. `whole` compiles everything with all layers, which takes minutes for each.

**Seconds.** `by_compiler` is the compiler's `optimal_seconds`. It counts a loop's body once, so it
is asked about programs with their loops opened (opened.py). It is often no time at all, so it is
believed where it is plausible alone. `scheduled` are the cycles that a TPU's compiler puts down for
each operation of the real program, times the trips of the loops around it; exchanges between
devices and kernels written by hand (splash attention) cost nothing there.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from rft_jax.distributed.mesh import batch_sharding
from rft_jax.planning import hlo, opened, programs
from rft_jax.planning.hlo import Collective
from rft_jax.planning.memory import Sampled
from rft_jax.planning.programs import Program, Setting, local_bytes
from rft_jax.training import update as training

logger = logging.getLogger(__name__)


class Memory(NamedTuple):
    """Bytes of a device: what a program is given, what it returns, what of that takes the place of
    what it is given, and what it needs at work."""

    arguments: float
    outputs: float
    aliases: float
    temporaries: float

    @property
    def needed(self) -> float:
        """At most at a time."""
        return self.arguments + self.outputs - self.aliases + self.temporaries


class Exchange(NamedTuple):
    """All collectives of one kind. group: devices that take part in one; times: how
    often; bytes: that reach a device, all together."""

    kind: str
    in_loop: bool
    group: int
    times: float
    bytes: float


class Compiled(NamedTuple):
    """A program on one device. exchanges: for one trip of a loop whose trips it is told at run
    time; gathered: weights that are gathered inside a loop; scheduled: seconds, None where the
    compiler puts down no cycles; short: what the compiler says when memory does not suffice."""

    memory: Memory
    exchanges: tuple[Exchange, ...]
    gathered: tuple[str, ...]
    scheduled: float | None
    short: str = ""


def _measure(
    program: Program, clock: float, *, only_loops: bool, weights: Any = None, trips: int = 1
) -> Compiled | str:
    """trips: of loops that are told them at run time; only_loops: count what is inside loops."""
    began = time.perf_counter()
    made = opened.compiled(program.function, program.arguments, **program.settings)
    logger.info("%s: compiled in %.0f s", program.name, time.perf_counter() - began)
    if isinstance(made, str):
        return made
    text, found = made.as_text(), made.memory_analysis()
    memory = Memory(
        found.argument_size_in_bytes,
        found.output_size_in_bytes,
        found.alias_size_in_bytes,
        found.temp_size_in_bytes,
    )
    collectives = hlo.collectives(text, trips)
    cycles = [
        runs.times * count
        for runs, count in hlo.cycles(text, trips)
        if runs.in_loop or not only_loops
    ]
    scheduled = sum(cycles) / clock if cycles and clock else None
    return Compiled(memory, _grouped(collectives), _gathered(collectives, weights), scheduled)


def _grouped(collectives: Sequence[Collective]) -> tuple[Exchange, ...]:
    groups: dict[tuple[str, bool, int], list[int]] = defaultdict(lambda: [0, 0])
    for one in collectives:
        groups[one.kind, one.in_loop, one.group][0] += one.times
        groups[one.kind, one.in_loop, one.group][1] += one.times * one.bytes
    return tuple(Exchange(*key, *sums) for key, sums in sorted(groups.items()))


def _gathered(collectives: Sequence[Collective], weights: Any) -> tuple[str, ...]:
    """Gathers inside a loop whose result has the shape of a weight, in whichever order."""
    shapes = {
        tuple(sorted(size for size in of if size > 1))
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights)
        for of in (leaf.shape, leaf.sharding.shard_shape(leaf.shape))
        if leaf.ndim > 1 and "bias" not in str(path[-1])  # activations may look like one
    }
    return tuple(
        f"{one.times} x {one.kind} of {'x'.join(map(str, shape))}"
        for one in collectives
        if one.in_loop and one.kind != "all-reduce"
        for shape in one.shapes
        if tuple(sorted(size for size in shape if size > 1)) in shapes
    )


def _extrapolated(few: Sequence[Compiled], layers: int) -> Compiled:
    """From one and two layers so many."""
    one, two = few

    def line(first: float, second: float) -> float:
        return first + (second - first) * (layers - 1)

    kinds = {exchange[:3]: [0.0, 0.0, 0.0, 0.0] for of in few for exchange in of.exchanges}
    for index, of in enumerate(few):
        for exchange in of.exchanges:
            kinds[exchange[:3]][index] = exchange.times
            kinds[exchange[:3]][2 + index] = exchange.bytes
    exchanges = tuple(
        Exchange(*key, line(*of[:2]), line(*of[2:])) for key, of in sorted(kinds.items())
    )
    times = (one.scheduled, two.scheduled)
    return Compiled(
        Memory(*(max(0.0, line(*pair)) for pair in zip(one.memory, two.memory, strict=True))),
        exchanges,
        two.gathered,
        None if times[0] is None or times[1] is None else line(times[0], times[1]),
    )


def _of_layers(
    of: Setting,
    make: Callable[[Setting], Program],
    clock: float,
    *,
    whole: bool,
    only_loops: bool = False,
) -> Compiled:
    layers = of.config.model.num_layers
    sizes = [of] if whole or layers <= 2 else [of.of_layers(1), of.of_layers(2)]
    few = []
    for small in sizes:
        weights = programs.rollout_params(small)
        made = _measure(make(small), clock, only_loops=only_loops, weights=weights)
        if isinstance(made, str):
            return Compiled(_arguments(make(of)), (), (), None, made)
        few.append(made)
    found = few[0] if len(few) == 1 else _extrapolated(few, layers)
    # What a program does not read is no argument of the compiled one, and lives all the same.
    given = max(found.memory.arguments, _arguments(make(of)).arguments)
    return found._replace(memory=found.memory._replace(arguments=given))


def _arguments(program: Program) -> Memory:
    return Memory(local_bytes(program.arguments), 0.0, 0.0, 0.0)


def prefill(of: Setting, work: Sampled, clock: float, *, whole: bool) -> Compiled:
    """Of all prompts of a call of the sampler."""
    ring = programs.rings(of.config)[0]
    make = functools.partial(programs.prefill, work=work, ring=ring)
    return _of_layers(of, make, clock, whole=whole)


def growth(of: Setting, work: Sampled, clock: float, *, whole: bool) -> Compiled | None:
    """Of the ring to its full length; None where it never grows."""
    if len(programs.rings(of.config)) == 1:
        return None

    def make(of: Setting) -> Program:
        program = programs.growth(of, work)
        assert program is not None
        return program

    return _of_layers(of, make, clock, whole=whole)


def decode(of: Setting, work: Sampled, clock: float, *, whole: bool) -> Compiled:
    """Of one step with every slot in use and the ring at its full length."""
    make = functools.partial(programs.decode, work=work)
    return _of_layers(of, make, clock, whole=whole, only_loops=True)


def update(of: Setting, microbatches: int, clock: float) -> Compiled:
    """Of an update of so many micro-batches."""
    program = programs.update(of)
    made = _measure(program, clock, only_loops=False, trips=microbatches)
    return Compiled(_arguments(program), (), (), None, made) if isinstance(made, str) else made


# The compiler's own time


def _line(costs: Callable[[int], float], layers: int) -> float | None:
    """From the seconds of one and two layers those of so many; None where they are none."""
    one = costs(1)
    if one <= 0:
        return None
    two = costs(2)
    return one + (two - one) * (layers - 1) if two > one else None


def decode_seconds(of: Setting, work: Sampled) -> float | None:
    """Of one step, in memory layouts of the compiler's choice."""
    from jax.experimental.layout import Format, Layout

    def costs(layers: int) -> float:
        program = programs.decode(of.of_layers(layers), work)
        free = jax.tree.map(lambda leaf: Format(Layout.AUTO, leaf.sharding), program.arguments)
        bare = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), program.arguments
        )
        summary = Format(Layout.AUTO, batch_sharding(of.mesh))
        step = functools.partial(opened.unjitted(program.function), **program.settings)
        return opened.seconds(
            step, bare, donate_argnums=2, in_shardings=free, out_shardings=(free[2], summary)
        )

    return _line(costs, of.config.model.num_layers)


def update_seconds(of: Setting, microbatches: int) -> float | None:
    """Of an update of so many micro-batches."""
    layers = of.config.model.num_layers

    def micro(layers: int) -> float:
        small = of.of_layers(layers)
        program = programs.update(small, microbatches=1)
        settings = {n: v for n, v in program.settings.items() if n != "optimizer"}
        gradients = functools.partial(training.gradients, **settings)
        where = jax.tree.map(lambda leaf: leaf.sharding, small.layout.trained)
        state, *others = program.arguments
        return opened.seconds(
            lambda *given: gradients(*given).gradients,
            (state.params, *others),
            out_shardings=where,
        )

    def update(layers: int) -> float:
        program = programs.update(of.of_layers(layers), microbatches=1)
        step = functools.partial(opened.unjitted(program.function), **program.settings)
        return opened.seconds(step, program.arguments, donate_argnums=0)

    gradient = _line(micro, layers)
    whole = None if gradient is None else _line(update, layers)
    if gradient is None or whole is None:
        return None
    return whole + (microbatches - 1) * gradient
