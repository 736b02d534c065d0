"""Whether an experiment fits a device, and about how long it takes there: counted, not measured.

    python -m benchmarks.estimate experiments/gsm8k_qwen2.5_0.5b.py --device t4
    python -m benchmarks.estimate EXPERIMENT --device v5e-4 --only rft --rft.rollout.slots 64

Memory is counted part by part (memory.py) at the moments at which sampling, the update and
evaluations need most. The time of a phase is the longest of its products, its traffic and its
exchange between devices (step_costs.py) at the device's published rates (devices.py), divided by an
assumed share of them. Compiling, checkpoints, verification that sampling does not hide, and the
host's own work are not in it. The exit status is 1 if a run does not fit, 2 for a mistake.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import memory, step_costs
from benchmarks.devices import DEVICES, GIB, GPU_SHARE, Device
from benchmarks.memory import Parts, Sampled, Shards
from benchmarks.step_costs import Cost, Lengths
from rft_jax import experiments
from rft_jax.config import Config, ConfigError
from rft_jax.fields import suggest

SHARES = {"weights": 0.5, "prefill": 0.4, "decode": 0.5, "update": 0.4}
"""Assumed: of the published rates, what each phase reaches."""


class Sets(NamedTuple):
    """Questions of an evaluation on the validation set and on the test set."""

    validation: int
    test: int


class Estimate(NamedTuple):
    """Of one run. memory: parts by phase, at each one's worst moment; costs: by phase, of a step;
    seconds: the same with SHARES; hours: of the whole run, by what it does."""

    memory: Mapping[str, Parts]
    costs: Mapping[str, Cost]
    seconds: Mapping[str, float]
    hours: Mapping[str, float]

    @property
    def peaks(self) -> dict[str, float]:
        """Bytes by phase."""
        return {phase: sum(parts.values()) for phase, parts in self.memory.items()}


def estimate(config: Config, device: Device, lengths: Lengths, sets: Sets) -> Estimate:
    """What a run needs on a device. Raises ConfigError when its mesh cannot be made there."""
    of = memory.shards(config.mesh, device.count)
    costs = step_costs_of(config, of, lengths)
    seconds = {name: _seconds(name, cost, config, device) for name, cost in costs.items()}
    evaluating = evaluation_seconds(config, of, device, lengths, sets)
    sampling = sum(seconds[name] for name in seconds if name != "update")
    rollouts = config.pool.rollout_steps if config.pool else config.steps
    hours = {
        "sampling": sampling * rollouts / 3600,
        "updating": seconds["update"] * config.steps / 3600,
        "evaluating": evaluating / 3600,
    }
    return Estimate(memory_of(config, of, device), costs, seconds, hours)


def memory_of(config: Config, of: Shards, device: Device) -> dict[str, Parts]:
    """By phase the parts at the moment that needs most."""
    held = memory.held(config, of)

    def worst(works: Sequence[Sampled]) -> Parts:
        moments = [
            parts
            for work in works
            for parts in memory.sampling(config, of, work, tpu=device.tpu).values()
        ]
        return held | max(moments, key=lambda parts: sum(parts.values()))

    phases: dict[str, Parts] = {}
    if config.rollout is not None:
        phases["sampling"] = worst([memory.rollout(config, of)])
    phases["update"] = held | memory.update(config, of, tpu=device.tpu)
    if config.evaluation.every_steps or config.data.test:
        phases["evaluation"] = worst(memory.evaluations(config, of))
    return phases


def step_costs_of(config: Config, of: Shards, lengths: Lengths) -> dict[str, Cost]:
    """By phase, of one rollout and one update."""
    costs: dict[str, Cost] = {}
    outputs = float(config.update.sequences_per_step)
    if config.rollout is not None:
        work = memory.rollout(config, of)
        costs = {
            "weights": step_costs.laying_out(config, of),
            "prefill": step_costs.prefill(config, of, work),
            "decode": step_costs.decode(config, of, work, lengths),
        }
        outputs = outputs or lengths.pass_rate * work.questions * work.samples
    return costs | {"update": step_costs.update(config, of, outputs, lengths)}


def evaluation_seconds(
    config: Config, of: Shards, device: Device, lengths: Lengths, sets: Sets
) -> float:
    """Of all evaluations of a run."""
    settings = config.evaluation
    every = settings.every_steps
    total = 0.0
    for questions, count, times in (
        (sets.validation, settings.samples_per_question, 1 + config.steps // every if every else 0),
        (sets.test, settings.test_samples_per_question, int(bool(config.data.test))),
    ):
        for samples in {1, count} - {0}:
            block = math.lcm(memory.BATCHES_AT_ONCE * settings.questions_per_batch, of.batch)
            work = Sampled(block, samples, settings.questions_per_batch * samples)
            for phase, cost in (
                ("prefill", step_costs.prefill(config, of, work)),
                ("decode", step_costs.decode(config, of, work, lengths)),
            ):
                total += times * questions / block * _seconds(phase, cost, config, device)
    return total


def _seconds(phase: str, cost: Cost, config: Config, device: Device) -> float:
    return cost.seconds(device, config.model.compute_dtype) / SHARES[phase]


def report(name: str, found: Estimate, device: Device) -> str:
    """The tables of a run in Markdown."""
    phases = list(found.memory)
    lines = [
        f"{name}: GiB on each {device.what}, counted",
        "",
        "| | " + " | ".join(phases) + " |",
        "|" + " --- |" * (1 + len(phases)),
    ]
    parts = dict.fromkeys(part for of in found.memory.values() for part in of)
    for part in parts:
        sizes = [found.memory[phase].get(part, 0.0) / GIB for phase in phases]
        if any(sizes):
            lines.append(f"| {part} | " + " | ".join(f"{x:.2f}" if x else "" for x in sizes) + " |")
    peaks = found.peaks
    lines.append("| peak | " + " | ".join(f"{peaks[phase] / GIB:.1f}" for phase in phases) + " |")
    usable = f"{device.memory / GIB:.1f}"
    lines += [
        f"| usable | {usable} |" + " |" * (len(phases) - 1),
        "",
        f"{name}: a step on each {device.what}, estimated",
        "",
        "| | TFLOP | GB of memory | GB from others | assumed share of peak | s |",
        "|" + " --- |" * 6,
    ]
    for phase, cost in found.costs.items():
        cells = [
            phase, f"{cost.flops / 1e12:,.1f}", f"{cost.bytes / 1e9:,.0f}",
            f"{cost.links / 1e9:,.1f}", f"{SHARES[phase]:.0%}", f"{found.seconds[phase]:,.1f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    said = ", ".join(f"{hours:.1f} {what}" for what, hours in found.hours.items())
    lines += ["", f"{name}: {summary(found, device)}, of them {said}.", ""]
    return "\n".join(lines)


def summary(found: Estimate, device: Device) -> str:
    """Peaks by phase, seconds of a step and hours of the run, as docstrings of experiments have."""
    peaks = " / ".join(f"{peak / GIB:.1f}" for peak in found.peaks.values())
    seconds, hours = sum(found.seconds.values()), sum(found.hours.values())
    return f"{peaks} of {device.memory / GIB:.1f} GiB, {seconds:.0f} s a step, {hours:.1f} hours"


def assumptions(config: Config, device: Device, lengths: Lengths, sets: Sets) -> str:
    """What the figures suppose, in words."""
    memory_is = (
        "what the compiler says is available"
        if device.tpu
        else f"{GPU_SHARE:.0%} of the GPU's, which XLA_PYTHON_CLIENT_MEM_FRACTION={GPU_SHARE} gives"
    )
    return (
        f"Counted and estimated, not measured. Supposed: {lengths.prompt:.0f} tokens of a prompt, "
        f"{lengths.output:.0f} of an output on average, the longest with "
        f"{config.data.max_completion_tokens}; {lengths.pass_rate:.0%} of outputs accepted; "
        f"{sets.validation:,} questions of validation and {sets.test:,} of the test; usable memory "
        f"is {memory_is}.\n"
    )


def default_lengths(config: Config) -> tuple[float, float]:
    """Of a prompt and of an output: a third and a half of the longest."""
    return config.data.max_prompt_tokens / 3, config.data.max_completion_tokens / 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0],
        epilog="Further options are fields of runs, as for rft-jax run: --RUN.section.field VALUE.",
        allow_abbrev=False,
    )
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--device", required=True, help=", ".join(DEVICES))
    parser.add_argument("--only", nargs="+", metavar="RUN")
    parser.add_argument("--prompt-tokens", type=float, help="of a prompt; a third of the longest")
    parser.add_argument("--output-tokens", type=float, help="of an output; half of the longest")
    parser.add_argument("--pass-rate", type=float, default=0.5, help="share accepted; 0.5")
    parser.add_argument("--validation-questions", type=int, default=256)
    parser.add_argument("--test-questions", type=int, default=1319)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the estimates of an experiment's runs. Returns the exit status."""
    given, fields = _parser().parse_known_args(arguments)
    try:
        return _estimate_all(given, fields)
    except ConfigError as error:
        print(f"estimate: error: {error}", file=sys.stderr)
        return 2


def _estimate_all(given: argparse.Namespace, fields: Sequence[str]) -> int:
    if given.device not in DEVICES:
        names = ", ".join(DEVICES)
        raise ConfigError(
            f"--device is {given.device!r}, which is not known; choose one of {names}."
        )
    if not 0 <= given.pass_rate <= 1:
        raise ConfigError(f"--pass-rate is {given.pass_rate}: it must lie in [0, 1].")
    device = DEVICES[given.device]
    runs = experiments.override(experiments.load(given.experiment), fields)
    for name in given.only or ():
        if name not in runs:
            raise ConfigError(f"--only names {name!r}, which is no run{suggest(name, runs)}")
    sets, short = Sets(given.validation_questions, given.test_questions), []
    for name in given.only or runs:
        config = runs[name]
        prompt, output = default_lengths(config)
        lengths = Lengths(
            given.prompt_tokens or prompt, given.output_tokens or output, given.pass_rate
        )
        try:
            found = estimate(config, device, lengths, sets)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
        print(f"{given.experiment}, run {name}, on {device.count} x {device.what}\n")
        print(assumptions(config, device, lengths, sets))
        print(report(name, found, device))
        for phase, peak in found.peaks.items():
            if peak > device.memory:
                short.append(f"{name} ({phase}: {peak / GIB:.1f} GiB)")
    if short:
        usable = f"{device.memory / GIB:.1f} GiB"
        print(
            f"estimate: does not fit {given.device}, {usable}: {', '.join(short)}", file=sys.stderr
        )
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
