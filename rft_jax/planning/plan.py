"""The plan of a run on a target: memory, exchanges and seconds of each of its programs, and hence
of a step and of the run. A plan is a dict of JSON values, which tables.py shows.

**Memory.** What lives while a program works: its own arguments, outputs and temporaries, and what a
run also keeps: masters and moments all the time, the rollout's weights while it samples.

**Seconds.** Each program has a floor and a roofline (roofline.py), and where a TPU's compiler has
compiled it, the compiler's own time and its schedule (aot.py). The estimate is the first there is
of: the compiler's time, and the schedule with splash attention's products at SPLASH of the peak,
both where they are plausible; the roofline. Exchanges of the compiled program are added where the
next product waits for them (all of a decode step, and sums over the mesh's tensor axis); others
count where they take longer than the rest.
"""

from __future__ import annotations

import functools
import math
from operator import attrgetter
from typing import Any

from rft_jax.config import Config
from rft_jax.observe.flops import Cost, Speeds
from rft_jax.planning import aot, memory, programs, roofline
from rft_jax.planning.aot import Compiled
from rft_jax.planning.memory import Parts, Shards
from rft_jax.planning.programs import Setting
from rft_jax.planning.roofline import SHARES, Supposed
from rft_jax.planning.targets import Target

Record = dict[str, Any]

SETTINGS = (
    "data.max_prompt_tokens", "data.max_completion_tokens", "model.compute_dtype", "model.remat",
    "model.lora_rank", "update.row_length", "update.rows_per_microbatch",
    "optimizer.first_moment_dtype",
)  # fmt: skip
"""Those that memory and time follow from."""
SPLASH = 0.5
"""Of the peak, what splash attention's products reach (assumed)."""
FLASH_BACKWARD = 2.5
"""Products of a flash kernel's backward pass, in forward passes: it recomputes the scores."""


def plan(
    name: str, config: Config, target: Target, supposed: Supposed, *, whole: bool = False
) -> Record:
    """The plan of a run. whole: see aot.py. Raises ConfigError when the run cannot be made on the
    target's devices."""
    of = memory.shards(config.mesh, target.count)
    memory.check_parameters(config, of)
    speeds = target.speeds(of, config.model.compute_dtype)
    counted = memory.by_phase(config, of, tpu=target.tpu)
    of_programs = _compiled if target.devices else _counted
    functions = of_programs(config, target, supposed, speeds, whole)
    peaks = {name: sum(one["memory"].values()) for name, one in functions.items()}
    if "evaluation" in counted:
        peaks["evaluation, counted"] = sum(counted["evaluation"].values())
    short = [one["short"] for one in functions.values() if "short" in one]
    record: Record = {
        "run": name,
        "target": {
            "name": target.name,
            "what": target.what,
            "count": target.count,
            "memory": target.memory,
            "rates_known": speeds is not None,
        },
        "mesh": of._asdict(),
        "settings": _settings(config, of),
        "supposed": supposed._asdict(),
        "source": "compiled" if target.devices else "counted",
        "functions": functions,
        "memory": {
            "peaks": peaks,
            "peak": (peak := max(peaks.values())),
            "limit": target.memory,
            "fits": not short and (not target.memory or peak <= target.memory),
            "compiler_says": short,
        },
    }
    if speeds is None:
        return record
    phases = roofline.seconds_of(roofline.costs_of(config, of, supposed), speeds)
    phases |= {name: functions[name]["seconds"]["phase"] for name in phases if name in functions}
    hours = roofline.hours(config, phases, roofline.evaluating(config, of, speeds, supposed))
    step, total = sum(phases.values()), sum(hours.values())
    record |= {"seconds": phases, "step": step, "hours": hours}
    record |= {"run_hours": total, "chip_hours": total * target.count}
    if config.rollout is not None:
        outputs = config.rollout.questions_per_step * config.rollout.samples_per_question
        tokens = outputs * supposed.output
        rates = {"decoding": tokens / phases["decode"], "step": tokens / step}
        record["tokens_per_second"] = rates
    return record


def _settings(config: Config, of: Shards) -> Record:
    found = {name.rpartition(".")[2]: attrgetter(name)(config) for name in SETTINGS}
    if config.rollout is not None:
        asked = config.rollout.questions_per_step
        found |= {
            "questions_per_step": asked,
            "filler_questions": memory.rollout(config, of).questions - asked,
            "samples_per_question": config.rollout.samples_per_question,
            "slots": config.rollout.slots,
        }
    return found


def _parts(config: Config, of: Shards, **others: float) -> Parts:
    """Memory by the parts that a plan shows."""
    held = memory.held(config, of)
    moments = held.pop("moments")
    parts = {"parameters": sum(held.values()), "optimizer": moments}
    return parts | dict.fromkeys(("rollout weights", "caches", "temporaries"), 0.0) | others


# With nothing compiled


def _counted(
    config: Config, target: Target, supposed: Supposed, speeds: Speeds | None, _: bool
) -> dict[str, Record]:
    of = memory.shards(config.mesh, target.count)
    costs = roofline.costs_of(config, of, supposed)
    moments: dict[str, Parts] = {"update": memory.update(config, of, tpu=target.tpu)}
    if config.rollout is not None:
        work = memory.rollout(config, of)
        moments = memory.sampling(config, of, work, tpu=target.tpu) | moments
    shown = {"rollout weights": "rollout weights"}
    shown |= dict.fromkeys(("slots", "slots before", "prompts of the queue"), "caches")
    found: dict[str, Record] = {}
    for name, sizes in moments.items():
        parts = _parts(config, of)
        for part, size in sizes.items():
            parts[shown.get(part, "temporaries")] += size
        found[name] = {"memory": parts}
        if (cost := costs.get(name)) is None:
            continue
        found[name]["counted"] = cost._asdict()
        if speeds is not None:
            least = cost.seconds(speeds)
            seconds = {"roofline": least, "by": "roofline", "share": SHARES[name]}
            found[name] |= {
                "seconds": seconds | {"phase": least / SHARES[name]},
                "bound": cost.bound(speeds),
                "parts": cost.by_part(speeds),
            }
    return found


# With programs compiled


def _compiled(
    config: Config, target: Target, supposed: Supposed, speeds: Speeds | None, whole: bool
) -> dict[str, Record]:
    of = programs.setting(config, target)
    clock = target.chip.clock if target.chip else 0.0
    found: dict[str, Record] = {}
    if config.rollout is not None:
        found = _sampling(of, target, supposed, speeds, clock, whole)
    sizes, micro = of.shards, roofline.microbatches(config, supposed)
    made = aot.measure(programs.update, of, clock, trips=micro)
    rest = made.needed - sum(memory.held(config, sizes).values())
    cost, floor = (f(config, sizes, micro) for f in (roofline.update, roofline.update_floor))
    found["update"] = _function(made, _parts(config, sizes, temporaries=rest), cost)
    found["update"]["microbatches"] = micro
    if speeds is not None:
        # A compiler that has no time for decoding has none for the update either.
        asked = target.tpu and not made.short
        if "decode" in found and found["decode"]["seconds"]["compiler"] is None:
            asked = False
        own = aot.update_seconds(of, micro) if asked else None
        splash = _splash(of, micro) / speeds.flops / SPLASH
        seconds = _seconds(floor, cost, made, own, speeds, sizes, splash=splash, waits=False)
        seconds["share_of_peak"] = floor.flops / speeds.flops / seconds["estimate"]
        found["update"] |= {"seconds": seconds, "bound": cost.bound(speeds)}
    return found


def _splash(of: Setting, microbatches: int) -> float:
    """Products of splash attention in an update, where it is what computes attention."""
    if of.config.model.attention != "splash":
        return 0.0
    rows = of.config.update
    tokens = microbatches * rows.row_length * rows.rows_per_microbatch / math.prod(of.shards)
    passes = 1 + FLASH_BACKWARD + (of.config.model.remat == "full")
    model = memory.model_of(of.config)
    return tokens * passes * model.attention((rows.row_length + 1) / 2)


def _sampling(
    of: Setting,
    target: Target,
    supposed: Supposed,
    speeds: Speeds | None,
    clock: float,
    whole: bool,
) -> dict[str, Record]:
    config, sizes, rings = of.config, of.shards, memory.rings(of.config)
    work = memory.rollout(config, sizes)
    weights, kept = memory.rollout_weights(config, sizes), memory.caches(config, sizes, work)
    one_step = roofline.step(config, sizes, roofline.full_step(config, sizes, work))
    copied = sum(2 * ring * kept.column for ring in rings[1:])
    costs = {
        "prefill": roofline.prefill(config, sizes, work),
        "growth": Cost(0.0, copied),
        "decode": one_step,
    }
    floors = {
        "prefill": Cost(*costs["prefill"][:2]),
        "decode": roofline.decode_floor(config, sizes, work),
    }
    caches = {
        "prefill": kept.store + kept.prompts + rings[0] * kept.column,
        "growth": kept.store + 2 * kept.prompts + sum(rings[-2:]) * kept.column,
        "decode": kept.store + kept.prompts + rings[-1] * kept.column,
    }
    found: dict[str, Record] = {}
    for name, cost in costs.items():
        if name == "growth" and len(rings) == 1:
            continue
        make = functools.partial(getattr(programs, name), work=work)
        decoding = name == "decode"
        made = aot.measure(make, of, clock, whole=whole, only_loops=decoding)
        # What lives beside the program's own.
        beside = weights + kept.store if name == "growth" else 0.0
        rest = made.needed + beside - weights - caches[name]
        shown = {"rollout weights": weights, "caches": caches[name], "temporaries": rest}
        found[name] = _function(made, _parts(config, sizes, **shown), cost)
        if decoding:
            found[name]["weights_gathered_in_loop"] = list(made.gathered)
        if speeds is not None and name in floors:
            asked = decoding and target.tpu and not made.short
            own = aot.decode_seconds(of, work) if asked else None
            seconds = _seconds(floors[name], cost, made, own, speeds, sizes, only_loops=decoding)
            found[name] |= {"seconds": seconds, "bound": cost.bound(speeds)}
    if speeds is not None:
        # Shorter rings and fewer slots by the count, at the estimate of the full step.
        steps = roofline.decode(config, sizes, work, supposed.output).seconds(speeds)
        seconds = found["decode"]["seconds"]
        seconds["phase"] = seconds["estimate"] * steps / one_step.seconds(speeds)
        seconds["phase"] += copied / speeds.bandwidth
    return found


def _function(made: Compiled, parts: Parts, cost: Cost) -> Record:
    """A program's record but for its seconds."""
    return {
        "memory": parts,
        "program": dict(made.memory),
        "exchanges": [exchange._asdict() for exchange in made.exchanges],
        "counted": cost._asdict(),
    } | ({"short": made.short} if made.short else {})


def plausible(seconds: float, floor: float, bound: float) -> bool:
    """Whether a compiler's time can be: not below 0.9 of the floor, nor above 10 rooflines."""
    return 0.9 * floor <= seconds <= 10 * bound


def _seconds(
    floor: Cost,
    cost: Cost,
    made: Compiled,
    own: float | None,
    speeds: Speeds,
    of: Shards,
    *,
    splash: float = 0.0,
    waits: bool = True,
    only_loops: bool = False,
) -> Record:
    """The seconds of a program.

    Args:
        floor: the least it could do.
        cost: what it does.
        own: the compiler's time.
        splash: seconds that its schedule lacks.
        waits: whether products wait for every exchange.
        only_loops: exchanges outside of loops are no part of it.
    """
    least, bound = floor.seconds(speeds), cost.seconds(speeds)
    inside = [e for e in made.exchanges if e.in_loop or not only_loops]
    ambiguous = of.tensor in (of.fsdp, of.data)
    waited = [
        e
        for e in inside
        if waits or (1 < of.tensor == e.group and (not ambiguous or e.kind == "all-reduce"))
    ]
    beside = sum(e.bytes for e in inside if e not in waited) / speeds.links
    rate = speeds.tensor if of.tensor > 1 else speeds.links
    exchange = sum(e.bytes / rate + e.times * speeds.round for e in waited)
    by, base = "roofline", Cost(cost.flops, cost.bytes).seconds(speeds)
    whole = None if made.scheduled is None else made.scheduled + splash
    for source, time in (("schedule", whole), ("compiler", own)):
        if time is not None and plausible(time, least, bound):
            by, base = source, time
    estimate = max(base, beside) + exchange
    return {
        "floor": least,
        "roofline": bound,
        "compiler": own,
        "schedule": made.scheduled,
        "splash": splash,
        "exchange_waited": exchange,
        "exchange_beside": beside,
        "estimate": estimate,
        "by": by,
        "phase": estimate,
    }
