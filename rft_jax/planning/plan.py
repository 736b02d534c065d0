"""The plan of a run on a target: memory, exchanges and seconds of each of its programs, and hence
of a step and of the run. A plan is a dict of JSON values, which tables.py shows.

**Memory.** What lives while a program works: its own arguments, outputs and temporaries, and what a
run keeps besides: masters and moments all the time, the rollout's weights while it samples.

**Seconds.** Each program has a floor and a roofline (step_costs.py), and where a TPU's compiler has
compiled it, the compiler's own time and its schedule (compiled.py). The estimate is the first there
is of: the compiler's time, and the schedule with splash attention's products at SPLASH of the peak,
both where they are plausible; the roofline. Exchanges of the compiled program are added where the
next product waits for them (all of a decode step, and sums over the mesh's tensor axis); others
count where they take longer than the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rft_jax.config import Config
from rft_jax.observe.flops import attention_flops
from rft_jax.planning import compiled, counted, memory, programs, step_costs
from rft_jax.planning.compiled import Compiled, Exchange
from rft_jax.planning.counted import Sets
from rft_jax.planning.memory import Parts, Shards
from rft_jax.planning.opened import plausible
from rft_jax.planning.programs import Setting
from rft_jax.planning.step_costs import Cost, Lengths, Speeds
from rft_jax.planning.targets import Target

Record = dict[str, Any]

SPLASH = 0.5
"""Of the peak, what splash attention's products reach (assumed)."""
FLASH_BACKWARD = 2.5
"""Products of a flash kernel's backward pass, in forward passes: it makes the scores anew."""


class Supposed(NamedTuple):
    """What a plan takes for granted."""

    lengths: Lengths
    sets: Sets


def plan(
    name: str, config: Config, target: Target, supposed: Supposed, *, whole: bool = False
) -> Record:
    """The plan of a run. whole: see compiled.py. Raises ConfigError when the run cannot be made on
    the target's devices."""
    of = memory.shards(config.mesh, target.count)
    estimate = counted.estimate(config, target, *supposed)
    speeds = counted.speeds_of(config, of, target)
    if target.devices:
        functions = _compiled(config, target, supposed, speeds, whole=whole)
    else:
        functions = _counted(config, target, supposed, speeds)
    phases = dict(estimate.seconds)
    for phase, function in functions.items():
        if phase in phases and "phase" in function.get("seconds", {}):
            phases[phase] = function["seconds"]["phase"]
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
        "supposed": {**supposed.lengths._asdict(), **supposed.sets._asdict()},
        "source": "compiled" if target.devices else "counted",
        "functions": functions,
        "memory": _memory(functions, estimate, target),
    }
    return record | (_times(config, of, target, supposed, phases, estimate) if phases else {})


def _settings(config: Config, of: Shards) -> Record:
    """Those that memory and time follow from."""
    model, rows = config.model, config.update
    found: Record = {
        "max_prompt_tokens": config.data.max_prompt_tokens,
        "max_completion_tokens": config.data.max_completion_tokens,
        "compute_dtype": model.compute_dtype,
        "remat": model.remat,
        "lora_rank": model.lora_rank,
        "row_length": rows.row_length,
        "rows_per_microbatch": rows.rows_per_microbatch,
        "first_moment_dtype": config.optimizer.first_moment_dtype,
    }
    if config.rollout is not None:
        work = memory.rollout(config, of)
        found |= {
            "questions_per_step": config.rollout.questions_per_step,
            "filler_questions": work.questions - config.rollout.questions_per_step,
            "samples_per_question": config.rollout.samples_per_question,
            "slots": config.rollout.slots,
        }
    return found


def _memory(functions: Record, estimate: counted.Estimate, target: Target) -> Record:
    peaks = {name: sum(of["memory"].values()) for name, of in functions.items()}
    if "evaluation" in estimate.memory:
        peaks["evaluation, counted"] = estimate.peaks["evaluation"]
    short = [of["short"] for of in functions.values() if of.get("short")]
    peak = max(peaks.values())
    return {
        "peaks": peaks,
        "peak": peak,
        "limit": target.memory,
        "fits": not short and (not target.memory or peak <= target.memory),
        "compiler_says": short,
    }


def _times(
    config: Config,
    of: Shards,
    target: Target,
    supposed: Supposed,
    phases: dict[str, float],
    estimate: counted.Estimate,
) -> Record:
    hours = counted.hours(config, phases, estimate.evaluating)
    step, total = sum(phases.values()), sum(hours.values())
    found: Record = {"seconds": phases, "step": step, "hours": hours}
    found |= {"run_hours": total, "chip_hours": total * target.count}
    if config.rollout is not None:
        outputs = config.rollout.questions_per_step * config.rollout.samples_per_question
        tokens = outputs * supposed.lengths.output
        found["tokens_per_second"] = {
            "decoding": tokens / phases["decode"], "step": tokens / step,
        }  # fmt: skip
    return found


# With nothing compiled


def _held(config: Config, of: Shards) -> Parts:
    held = memory.held(config, of)
    moments = held.pop("moments")
    return {"parameters": sum(held.values()), "optimizer": moments}


def _grouped(config: Config, of: Shards, parts: Parts) -> Parts:
    """Parts of memory.py as those of a plan."""
    names = {
        "rollout weights": "rollout weights",
        "slots": "caches", "slots before": "caches", "prompts of the queue": "caches",
    }  # fmt: skip
    found = _held(config, of) | {"rollout weights": 0.0, "caches": 0.0, "temporaries": 0.0}
    for part, size in parts.items():
        found[names.get(part, "temporaries")] += size
    return found


def _counted(
    config: Config, target: Target, supposed: Supposed, speeds: Speeds | None
) -> dict[str, Record]:
    of = memory.shards(config.mesh, target.count)
    costs = counted.step_costs_of(config, of, supposed.lengths)
    parts: dict[str, Parts] = {"update": memory.update(config, of, tpu=target.tpu)}
    if config.rollout is not None:
        moments = memory.sampling(config, of, memory.rollout(config, of), tpu=target.tpu)
        parts = moments | parts
    found: dict[str, Record] = {}
    for name, of_function in parts.items():
        found[name] = {"memory": _grouped(config, of, of_function)}
        if name in costs:
            found[name]["counted"] = costs[name]._asdict()
            if speeds is not None:
                seconds = costs[name].seconds(speeds)
                found[name]["seconds"] = {
                    "roofline": seconds, "by": "roofline", "share": counted.SHARES[name],
                    "phase": seconds / counted.SHARES[name],
                }  # fmt: skip
                found[name]["bound"] = costs[name].bound(speeds)
                found[name]["parts"] = costs[name].by_part(speeds)
    return found


# With programs compiled


def _compiled(
    config: Config, target: Target, supposed: Supposed, speeds: Speeds | None, *, whole: bool
) -> dict[str, Record]:
    of = programs.setting(config, target)
    clock = target.chip.clock if target.chip else 0.0
    found: dict[str, Record] = {}
    if config.rollout is not None:
        found = _sampling(of, target, supposed, speeds, clock, whole=whole)
    micro = counted.microbatches(config, supposed.lengths)
    made = compiled.update(of, micro, clock)
    held = _held(config, of.shards)
    rest = made.memory.needed - sum(held.values())
    parts = held | {"rollout weights": 0.0, "caches": 0.0, "temporaries": rest}
    cost, floor = (
        count(config, of.shards, micro) for count in (step_costs.update, step_costs.update_floor)
    )
    found["update"] = _function(made, parts, cost) | {"microbatches": micro}
    if speeds is not None:
        # A compiler that has no time for decoding has none for the update either.
        asked = target.tpu and not made.short
        if "decode" in found and found["decode"]["seconds"]["compiler"] is None:
            asked = False
        own = compiled.update_seconds(of, micro) if asked else None
        splash = _splash(of, micro) / speeds.flops / SPLASH
        seconds = _seconds(floor, cost, made, own, splash, speeds, of.shards, waits=False)
        seconds["phase"] = seconds["estimate"]
        seconds["share_of_peak"] = floor.flops / speeds.flops / seconds["estimate"]
        found["update"] |= {"seconds": seconds, "bound": cost.bound(speeds)}
    return found


def _splash(of: Setting, microbatches: int) -> float:
    """Products of splash attention in an update, where it is what computes attention."""
    if of.config.model.attention != "splash":
        return 0.0
    rows, shape = of.config.update, step_costs.shape_of(of.config)
    tokens = microbatches * rows.row_length * rows.rows_per_microbatch / math.prod(of.shards)
    passes = 1 + FLASH_BACKWARD + (of.config.model.remat == "full")
    return tokens * passes * attention_flops(shape, (rows.row_length + 1) / 2)


def _sampling(
    of: Setting,
    target: Target,
    supposed: Supposed,
    speeds: Speeds | None,
    clock: float,
    *,
    whole: bool,
) -> dict[str, Record]:
    config, sizes = of.config, of.shards
    work = memory.rollout(config, sizes)
    weights = memory.rollout_weights(config, sizes)
    kept, rings = memory.caches(config, sizes, work), programs.rings(config)

    def parts(made: Compiled, caches: float, *, besides: float = 0.0) -> Parts:
        """besides: bytes that live beside the program's own."""
        held = _held(config, sizes)
        rest = made.memory.needed + besides - weights - caches
        return held | {"rollout weights": weights, "caches": caches, "temporaries": rest}

    found: dict[str, Record] = {}
    made = compiled.prefill(of, work, clock, whole=whole)
    caches = kept.store + kept.prompts + rings[0] * kept.column
    cost = step_costs.prefill(config, sizes, work)
    found["prefill"] = _function(made, parts(made, caches), cost)
    if speeds is not None:
        floor = Cost(cost.flops, cost.bytes)
        seconds = _seconds(floor, cost, made, None, 0.0, speeds, sizes, waits=True)
        seconds["phase"] = seconds["estimate"]
        found["prefill"] |= {"seconds": seconds, "bound": cost.bound(speeds)}

    grown = compiled.growth(of, work, clock, whole=whole)
    copied = sum(2 * ring * kept.column for ring in rings[1:])
    if grown is not None:
        caches = kept.store + 2 * kept.prompts + (rings[-1] + rings[-2]) * kept.column
        besides = weights + kept.store
        cost = Cost(0.0, copied)
        found["growth"] = _function(grown, parts(grown, caches, besides=besides), cost)

    made = compiled.decode(of, work, clock, whole=whole)
    caches = kept.store + kept.prompts + rings[-1] * kept.column
    like = step_costs.full_step(config, sizes, work)
    cost, floor = step_costs.step(config, sizes, like), step_costs.decode_floor(config, sizes, work)
    found["decode"] = _function(made, parts(made, caches), cost)
    found["decode"]["weights_gathered_in_loop"] = list(made.gathered)
    if speeds is not None:
        own = compiled.decode_seconds(of, work) if target.tpu and not made.short else None
        seconds = _seconds(floor, cost, made, own, 0.0, speeds, sizes, waits=True, only_loops=True)
        all_steps = step_costs.decode(config, sizes, work, supposed.lengths).seconds(speeds)
        # Shorter rings and fewer slots by the count, at the estimate of the full step.
        seconds["phase"] = seconds["estimate"] * all_steps / cost.seconds(speeds)
        seconds["phase"] += copied / speeds.bandwidth
        found["decode"] |= {"seconds": seconds, "bound": cost.bound(speeds)}
    return found


def _function(made: Compiled, parts: Parts, cost: Cost) -> Record:
    """A program's record but for its seconds."""
    return {
        "memory": parts,
        "program": made.memory._asdict(),
        "exchanges": [exchange._asdict() for exchange in made.exchanges],
        "counted": cost._asdict(),
    } | ({"short": made.short} if made.short else {})


def _seconds(
    floor: Cost,
    cost: Cost,
    made: Compiled,
    own: float | None,
    splash: float,
    speeds: Speeds,
    of: Shards,
    *,
    waits: bool,
    only_loops: bool = False,
) -> Record:
    """own: the compiler's time; splash: seconds that its schedule lacks; waits: whether products
    wait for every exchange; only_loops: exchanges outside of loops are no part of it."""
    least, bound = floor.seconds(speeds), cost.seconds(speeds)
    inside = [e for e in made.exchanges if e.in_loop or not only_loops]
    waited = [e for e in inside if waits or _of_tensor(e, of)]
    beside = sum(e.bytes for e in inside if e not in waited) / speeds.links
    exchange = _waited(waited, speeds, of)
    alone = Cost(cost.flops, cost.bytes).seconds(speeds)
    by, base = "roofline", max(alone, beside) + exchange
    whole = None if made.scheduled is None else made.scheduled + splash
    if own is not None and plausible(own, least, bound):
        by, base = "compiler", max(own, beside) + exchange
    elif whole is not None and plausible(whole, least, bound):
        by, base = "schedule", max(whole, beside) + exchange
    return {
        "floor": least,
        "roofline": bound,
        "compiler": own,
        "schedule": made.scheduled,
        "splash": splash,
        "exchange_waited": exchange,
        "exchange_beside": beside,
        "estimate": base,
        "by": by,
    }


def _of_tensor(exchange: Exchange, of: Shards) -> bool:
    """Whether an exchange is one of devices that share products."""
    ambiguous = of.tensor in (of.fsdp, of.data)
    same = of.tensor > 1 and exchange.group == of.tensor
    return same and (not ambiguous or exchange.kind == "all-reduce")


def _waited(exchanges: Sequence[Exchange], speeds: Speeds, of: Shards) -> float:
    rate = speeds.tensor if of.tensor > 1 else speeds.links
    return sum(e.bytes / rate + e.times * speeds.round for e in exchanges)
