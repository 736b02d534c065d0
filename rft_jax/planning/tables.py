"""A plan as text: Markdown tables, and what they suppose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rft_jax.observe.hardware import GIB, GPU_SHARE
from rft_jax.planning.plan import SPLASH, Record
from rft_jax.planning.roofline import SHARES

PARTS = ("parameters", "optimizer", "rollout weights", "caches", "temporaries")
MEANT = {
    "compiler": "the compiler's own time",
    "schedule": "the cycles that the compiler puts down for each operation",
    "roofline": "a roofline from counted FLOPs, bytes and exchanges at published rates",
}


def gib(amount: float) -> str:
    """Bytes as GiB."""
    return f"{amount / GIB:.1f}" if amount >= 0.95 * GIB else f"{amount / GIB:.3g}"


def mesh_text(mesh: Mapping[str, int]) -> str:
    """`fsdp 4 x tensor 2`, without axes of one device."""
    return " x ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one device"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown; the first row is the head."""
    head, *rest = rows
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rest)]


def markdown(plan: Record) -> str:
    """Everything that a plan says."""
    title = f"### {plan['run']} on {plan['target']['name']}: {mesh_text(plan['mesh'])}"
    said = ", ".join(f"{name} {value}" for name, value in plan["settings"].items())
    parts = [title, "", f"{plan['target']['what']}; {said}.", "", *_memory(plan), *_seconds(plan)]
    if plan["source"] == "compiled":
        parts += ["", *_exchanges(plan)]
    parts += ["", *_run(plan), "", _supposed(plan)]
    parts += ["", "What would help, by the count:"] if plan.get("advice") else []
    for one in plan.get("advice", ()):
        saves = f"saves {gib(one['saves'])} GiB, {gib(one['peak'])} GiB at most"
        parts.append(f"- {options(plan['run'], one['changes'])}: {saves}")
    return "\n".join(parts)


def _memory(plan: Record) -> list[str]:
    rows = [["GiB of a device", *PARTS, "together"]]
    for name, of in plan["functions"].items():
        sizes = [of["memory"][part] for part in PARTS]
        rows.append([name, *(gib(size) if size else "" for size in sizes), gib(sum(sizes))])
    memory = plan["memory"]
    lines = table(rows)
    for name, peak in memory["peaks"].items():
        if name not in plan["functions"]:
            lines.append(f"| {name} |" + " |" * len(PARTS) + f" {gib(peak)} |")
    if not memory["limit"]:
        return [*lines, "", f"At most {gib(memory['peak'])} GiB; the device's are not known."]
    verdict = "it fits" if memory["fits"] else "IT DOES NOT FIT"
    lines += ["", f"At most {gib(memory['peak'])} of {gib(memory['limit'])} GiB: {verdict}."]
    return lines + [f"The compiler says: {text}" for text in memory["compiler_says"]]


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:,.1f}"


def _seconds(plan: Record) -> list[str]:
    rows = [
        ["ms", "floor", "roofline", "compiler", "schedule", "waits for others", "estimate", "by",
         "estimate / floor", "bound by", "s a step"],
    ]  # fmt: skip
    for name, of in plan["functions"].items():
        if not (found := of.get("seconds")):
            continue
        least, estimate = found.get("floor"), found.get("estimate")
        what = {"decode": "decode, one step", "update": f"update of {of.get('microbatches')}"}
        rows.append(
            [
                what.get(name, name) if plan["source"] == "compiled" else name,
                _ms(least), _ms(found["roofline"]), _ms(found.get("compiler")),
                _ms(found.get("schedule")), _ms(found.get("exchange_waited")), _ms(estimate),
                found["by"], f"{estimate / least:.2f}" if least and estimate else "",
                of["bound"], f"{found['phase']:.2f}",
            ]
        )  # fmt: skip
    if len(rows) == 1:
        return []
    lines = ["", *table(rows)]
    if "weights" in plan.get("seconds", {}):
        lines += ["", f"Laying out the rollout's weights: {plan['seconds']['weights']:.2f} s."]
    share = plan["functions"]["update"].get("seconds", {}).get("share_of_peak")
    return lines + ([f"The update needs {share:.0%} of the peak matrix rate."] if share else [])


def _exchanges(plan: Record) -> list[str]:
    rows = [["program", "collective", "where", "devices", "count", "MB to a device"]]
    for name, of in plan["functions"].items():
        for one in of["exchanges"]:
            where = "in a loop" if one["in_loop"] else "outside of loops"
            count, moved = round(one["times"]), one["bytes"] / 1e6
            group = str(one["group"] or "all")
            rows.append([name, one["kind"], where, group, f"{count:,}", f"{moved:,.3g}"])
    lines = table(rows) if len(rows) > 1 else ["No exchange between devices."]
    if "decode" in plan["functions"]:
        found = plan["functions"]["decode"]["weights_gathered_in_loop"]
        said = f"YES: {', '.join(found)}" if found else "none"
        lines += ["", f"Weights gathered inside the decode loop: {said}."]
    return lines


def _run(plan: Record) -> list[str]:
    if "step" not in plan:
        return ["Rates of this device are not known, so there are no seconds."]
    said = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in plan["seconds"].items())
    lines = [f"A step: {plan['step']:.1f} s ({said})."]
    if "tokens_per_second" in plan:
        rates, count = plan["tokens_per_second"], plan["target"]["count"]
        lines[0] += (
            f" Output tokens/s: {rates['decoding']:,.0f} while decoding "
            f"({rates['decoding'] / count:,.0f} a device), {rates['step']:,.0f} of the whole step."
        )
    hours = ", ".join(f"{what} {each:.1f}" for what, each in plan["hours"].items())
    total = f"{plan['run_hours']:.1f} hours ({hours}), {plan['chip_hours']:.0f} chip-hours"
    memory, peaks = plan["memory"], plan["memory"]["peaks"]
    sampling = [peaks[name] for name in ("prefill", "growth", "decode") if name in peaks]
    most = [max(sampling, default=None), peaks["update"], peaks.get("evaluation, counted")]
    short = " / ".join(f"{part / GIB:.1f}" for part in most if part is not None)
    return [
        *lines,
        f"The run: {total}.",
        f"{plan['run']}: {short} of {memory['limit'] / GIB:.1f} GiB, {plan['step']:.0f} s a step, "
        f"{plan['run_hours']:.1f} hours.",
    ]


def _supposed(plan: Record) -> str:
    given = plan["supposed"]
    text = (
        f"Nothing is measured. Supposed: {given['prompt']:.0f} tokens of a prompt, "
        f"{given['output']:.0f} of an output on average, the longest with "
        f"{plan['settings']['max_completion_tokens']}; {given['pass_rate']:.0%} of outputs "
        f"accepted; {given['validation']:,} questions of validation and {given['test']:,} of the "
        "test. Not in it: compiling, checkpoints, verification that sampling does not hide, the "
        "host's own work."
    )
    sources = {of["seconds"]["by"] for of in plan["functions"].values() if "seconds" in of}
    if plan["source"] == "counted":
        shares = ", ".join(f"{phase} {share:.0%}" for phase, share in SHARES.items())
        text += (
            f" Memory is counted; seconds are {MEANT['roofline']}, of which is reached: {shares}."
        )
        if "NVIDIA" in plan["target"]["what"]:
            text += f" Of a GPU's memory {GPU_SHARE:.0%} are given to jax."
        return text
    meant = "; ".join(f"{name}: {MEANT[name]}" for name in MEANT if name in sources)
    if meant:
        text += f" Estimates: {meant}."
    if any(of.get("seconds", {}).get("splash") for of in plan["functions"].values()):
        text += f" Splash attention is supposed to reach {SPLASH:.0%} of the peak."
    return text


def options(run: str, changes: Mapping[str, Any]) -> str:
    """Changes as they stand on the command line."""
    return " ".join(f"--{run}.{field} {value}" for field, value in changes.items())


def ranking(run: str, target: str, rows: Sequence[Record], most: int = 12) -> str:
    """The best meshes of a search."""
    lines = [["mesh", "GiB at most", "fits", "s a step", "sampling", "update", "decode is bound by",
              "update by", "settings other than the mesh"]]  # fmt: skip
    for row in rows[:most]:
        seconds, bound = row["seconds"], row["bound"]
        updating = seconds.get("update", 0.0)
        others = {f: v for f, v in row["changes"].items() if not f.startswith("mesh.")}
        lines.append(
            [
                mesh_text(row["mesh"]), gib(row["peak"]), "yes" if row["fits"] else "no",
                f"{row['step']:.1f}", f"{row['step'] - updating:.1f}", f"{updating:.1f}",
                bound.get("decode", ""), bound.get("update", ""), options(run, others),
            ]
        )  # fmt: skip
    head = f"### {run} on {target}: {len(rows)} meshes by the count"
    return "\n".join([head, "", *table(lines)])
