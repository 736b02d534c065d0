"""Throw hostile texts at the verifier and check that it stays exact about none of them and calm.

    python -m benchmarks.verifier_fuzz --inputs 1000000
    python -m benchmarks.verifier_fuzz --inputs 20000 --comparison math

Outputs and references are made of LaTeX, numbers, markers, code, control characters and noise, by a
seeded generator, and judged through the pool. It fails when a verdict is an error, a crash, blocked
code or overdue, when a verdict changes between two batches, or when memory of the workers grows by
more than `--growth` MiB after the first tenth.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.contest import available_cores
from rft_jax.types import Judgement, Verdict
from rft_jax.verification.pool import Item, VerifierPool
from rft_jax.verification.rules import Limits, VerifierSpec

FRAGMENTS = (
    "#### ", "####", "\n", r"\boxed{", "}", "{", r"\frac{", r"\frac", r"\sqrt{", r"\sqrt[3]{", "1",
    "2", "10", "0", "-", "−", "+", "*", "/", "^", "^{", "_", "(", ")", "[", "]", ",", ";", ".", "%",
    r"\%", "$", r"\$", " or ", " and ", r"\text{", r"\pi", r"\cdot ", r"\le ", "<", ">", "=", "x",
    r"\cup", r"\infty", "y", "e", "i", "!", "|", "&", r"\\", r"\begin{pmatrix}", r"\in ", r"\pm ",
    r"\end{pmatrix}", "9" * 50, "9" * 5000, "^9^9^9", "<answer>", "</answer>", "\x00", "٣", "７",
    "½", "\ud800", "\u202e", "__import__('os').system('false')", "eval(1)", "exec('1')", "lambda:0",
    "`id`", "$(id)", ";ls", "nan", "inf", "1e400", "0x10", "\\", r"\left(", r"\right)", "dollars",
    r"\binom{5}{2}", r"\int_0^1", r"\log ", r"\sin ", "\t", "  ", r"^\circ", "A", "(B)", "True",
    "None", "{" * 300, "(" * 300,
)  # fmt: skip
SHAPES = ("{}", "#### {}", r"\boxed{{{}}}", "<answer>{}</answer>", "so {}\n#### {}", "{}{}")
REFERENCES = ("18", "-3", "1/2", r"\frac{1}{2}", r"2\sqrt{3}", "(1,2]", r"\{1,2\}", "x=5", "x^2-1")
ROWS_AT_ONCE = 8192


def hostile(chance: random.Random) -> Item:
    """One item; one in eight has a hostile reference too."""

    def text() -> str:
        return "".join(chance.choices(FRAGMENTS, k=chance.randint(0, 8)))

    shape = chance.choice(SHAPES)
    output = shape.format(*(text() for _ in range(shape.count("{}") + shape.count("{{{}}}"))))
    return Item(text() if chance.random() < 0.125 else chance.choice(REFERENCES), output, True)


def resident_mib() -> float:
    """Resident memory of this process and all below it, shared pages counted once for each."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                pages[int(entry.name)] = int((entry / "statm").read_text().split()[1])
            except OSError:  # it ended meanwhile
                continue
            parents[int(entry.name)] = int(fields[1])
    own, total = Path("/proc/self").resolve().name, 0
    for process in pages:
        above = process
        while above in parents and str(above) != own:
            above = parents[above]
        total += pages[process] if str(above) == own and str(process) != own else 0
    return total * 4096 / 2**20


def bad(judgement: Judgement) -> bool:
    """Whether a verdict says that the verifier did not cope."""
    return judgement.verdict is Verdict.UNDECIDED and judgement.reason.startswith(
        ("error", "crashed", "timeout", "blocked", "out of memory")
    )


def main() -> int:
    """Fuzz, print the verdicts by reason, and return 1 when a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--rule", default="auto")
    parser.add_argument("--comparison", choices=("exact", "math"), default="exact")
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--growth", type=float, default=64.0, help="MiB for all workers together")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[tuple[Item, Judgement]] = []
    early = peak = 0.0
    spec = VerifierSpec(arguments.rule, arguments.comparison)
    limits = Limits(arguments.workers, arguments.timeout)
    began = time.monotonic()
    with VerifierPool(spec, limits) as pool:
        done = 0
        while done < arguments.inputs:
            items = [hostile(chance) for _ in range(min(ROWS_AT_ONCE, arguments.inputs - done))]
            judged = pool.verify(items)
            if done == 0:  # once more, in another order and cut differently
                again = pool.verify(items[::-1][:500])
                changed = zip(items[::-1], judged[::-1], again, strict=False)
                failures += [(item, one) for item, one, other in changed if one != other]
            counts.update((one.verdict.value, one.reason) for one in judged)
            failures += [pair for pair in zip(items, judged, strict=True) if bad(pair[1])]
            done += len(items)
            peak = resident_mib()
            if done <= max(ROWS_AT_ONCE, arguments.inputs // 10):
                early = peak
    seconds = time.monotonic() - began
    for (verdict, reason), count in counts.most_common():
        print(f"{count:>9,}  {verdict}: {reason}")
    print(f"{arguments.inputs:,} inputs in {seconds:.0f} s ({arguments.inputs / seconds:,.0f}/s)")
    print(f"memory of the workers: {early:.0f} MiB early, {peak:.0f} MiB at the end")
    for item, judgement in failures[:10]:
        print(f"FAILED {judgement.verdict} ({judgement.reason}): {item!r:.500}", file=sys.stderr)
    print(f"failures: {len(failures)}")
    return int(bool(failures) or peak - early > arguments.growth)


if __name__ == "__main__":
    sys.exit(main())
