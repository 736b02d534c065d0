"""The plans of docs/plan.md: five slices of TPUs, and how cost grows; writes plan-*.json.

    python -m benchmarks.plans                       # needs pip install "jax[tpu]"; half an hour
    python -m benchmarks.plans --only v5p grow       # parts of names
    python -m benchmarks.plans --tables              # of the committed results, nothing compiled

Prompts of 512 tokens, outputs of up to 1,024 and 512 on average, half of them accepted, 1,024 a
step; for the growth of cost, GROWTH_OUTPUTS for each chip, and all is counted. The mesh is the best
of a search.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rft_jax.commands.options import PlanOptions
from rft_jax.config import experiment as experiments
from rft_jax.config.serialize import replace_fields

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
RUN = "online_rft"
QWEN, DEEPSEEK = "gsm8k_qwen2.5_1.5b", "math_deepseekmath_7b"
SHAPES: dict[str, Any] = {
    "data.max_prompt_tokens": 512,
    "data.max_completion_tokens": 1024,
    "update.row_length": 1536,
    # All outputs at once; a search takes fewer where they do not fit.
    "rollout.slots": 0,
}
LOGITS = 4 * 384 * 151_936
"""At once in the update for four rows, where cost grows: by default they are so few that reading
the output projection for each part of them takes longer than the products."""
GROWTH_OUTPUTS = 64


@dataclass(frozen=True)
class Case:
    """One plan. questions x samples a step; counted: nothing is compiled; fsdp: over this many
    devices and nothing else, without rematerialisation, in place of a search."""

    name: str
    experiment: str
    topology: str
    questions: int
    samples: int
    counted: bool = False
    fsdp: int = 0


CASES = (
    Case("qwen2.5-1.5b-v5e-2x2", QWEN, "v5e:2x2", 16, 64),
    Case("qwen2.5-1.5b-v5e-4x4", QWEN, "v5e:4x4", 16, 64),
    Case("deepseekmath-7b-v5e-8x8", DEEPSEEK, "v5e:8x8", 16, 64),
    Case("deepseekmath-7b-v5e-16x16", DEEPSEEK, "v5e:16x16", 128, 8),
    Case("deepseekmath-7b-v5p-4x4x4", DEEPSEEK, "v5p:4x4x4", 16, 64),
    Case("deepseekmath-7b-v5p-4x4x4-fsdp", DEEPSEEK, "v5p:4x4x4", 128, 8, fsdp=64),
    *(
        Case(f"grow-{side}x{side}", QWEN, f"v5e:{side}x{side}", side * side, GROWTH_OUTPUTS, True)
        for side in (2, 4, 8, 16)
    ),
)


def path_of(case: Case) -> Path:
    """Where its plan is kept."""
    return RESULTS / f"plan-{case.name}.json"


def make(case: Case) -> None:
    """Search, compile and write a plan."""
    from rft_jax.commands.plan import plan_all

    run = experiments.load(ROOT / "experiments" / f"{case.experiment}.py")[RUN]
    rows = run.update.rows_per_microbatch
    if case.counted:  # the same for each chip
        chips = case.questions
        logits = LOGITS * chips // rows
        run = replace_fields(
            run, {"update.rows_per_microbatch": chips, "update.logits_at_once": logits}
        )
    if case.fsdp:
        logits = run.update.logits_at_once * case.fsdp // rows
        sizes = {"mesh.data": 1, "mesh.fsdp": case.fsdp, "mesh.tensor": 1}
        more = {
            "update.rows_per_microbatch": case.fsdp, "update.logits_at_once": logits,
            "model.remat": "none",
        }  # fmt: skip
        run = replace_fields(run, sizes | more)
    changes = SHAPES | {
        "rollout.questions_per_step": case.questions,
        "rollout.samples_per_question": case.samples,
    }
    options = PlanOptions(
        topology=case.topology, search=not case.fsdp, counted=case.counted, json=path_of(case),
        mean_prompt_tokens=170.0, mean_output_tokens=512.0,
    )  # fmt: skip
    plan_all({RUN: replace_fields(run, changes)}, options)


def growth(plans: dict[str, dict[str, Any]]) -> list[str]:
    """How cost grows: a row for each number of chips."""
    from rft_jax.planning.tables import mesh_text, table

    rows = [["chips", "mesh", "GiB of a device", "s a step", "decoding", "update",
             "its products", "its links", "its tensor exchange", "output tokens/s a chip",
             "efficiency", "bound by"]]  # fmt: skip
    first = None
    for plan in plans.values():
        count, seconds = plan["target"]["count"], plan["seconds"]
        rate = plan["tokens_per_second"]["step"] / count
        first = first or rate
        bounds = [plan["functions"][name]["bound"] for name in ("decode", "update")]
        parts = plan["functions"]["update"]["parts"]
        rows.append(
            [
                str(count), mesh_text(plan["mesh"]), f"{plan['memory']['peak'] / 2**30:.1f}",
                f"{plan['step']:.1f}", f"{seconds['decode']:.1f}", f"{seconds['update']:.1f}",
                *(f"{parts[name]:.2f}" for name in ("products", "links", "tensor exchange")),
                f"{rate:,.0f}",
                f"{rate / first:.0%}", f"{bounds[0]} (decode), {bounds[1]} (update)",
            ]
        )  # fmt: skip
    return table(rows)


def summary(plans: dict[str, dict[str, Any]]) -> list[str]:
    """A row for each of the five plans."""
    from rft_jax.planning.tables import mesh_text, table

    rows = [["plan", "mesh", "GiB of a device", "decode / floor (by)", "update, of peak (by)",
             "weights gathered in the loop", "tokens/s while decoding", "s a step", "hours",
             "chip-hours"]]  # fmt: skip
    for name, plan in plans.items():
        memory = plan["memory"]
        decode, update = (plan["functions"][of]["seconds"] for of in ("decode", "update"))
        cells = ["counted only"] * 3
        if plan["source"] == "compiled":
            gathered = plan["functions"]["decode"]["weights_gathered_in_loop"]
            cells = [
                f"{decode['estimate'] / decode['floor']:.2f} ({decode['by']})",
                f"{update['share_of_peak']:.0%} ({update['by']})",
                ", ".join(gathered) or "none",
            ]
        rows.append(
            [
                name, mesh_text(plan["mesh"]),
                f"{memory['peak'] / 2**30:.1f} of {memory['limit'] / 2**30:.1f}",
                *cells,
                f"{plan['tokens_per_second']['decoding']:,.0f}", f"{plan['step']:.1f}",
                f"{plan['run_hours']:.1f}", f"{plan['chip_hours']:,.0f}",
            ]
        )  # fmt: skip
    return table(rows)


def tables(cases: tuple[Case, ...]) -> str:
    """All that is committed, as Markdown."""
    from rft_jax.planning.tables import markdown

    plans = {
        case.name: json.loads(path_of(case).read_text(encoding="utf-8"))["plans"][0]
        for case in cases
        if path_of(case).exists()
    }
    grown = {name: plan for name, plan in plans.items() if name.startswith("grow")}
    others = {name: plan for name, plan in plans.items() if name not in grown}
    parts = ["\n".join(summary(others)), "\n".join(growth(grown))]
    return "\n\n".join(parts + [markdown(plan) for plan in others.values()])


def main() -> None:
    """Make the plans that are asked for, and print the tables of all there are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--tables", action="store_true", help="of what is there")
    given = parser.parse_args()
    if not given.tables:
        from rft_jax.commands.plan import keep_to_the_cpu

        keep_to_the_cpu()
        for case in CASES:
            if any(part in case.name for part in given.only):
                print(case.name, file=sys.stderr, flush=True)
                make(case)
    print(tables(CASES))


if __name__ == "__main__":
    main()
