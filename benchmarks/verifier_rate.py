"""Verdicts a second through the pool on GSM8K-style outputs, with and without pathological ones.

    python -m benchmarks.verifier_rate --workers 2

One output in a hundred of the second row is pathological text (digits without end, unclosed braces,
towers of powers, code): the rule meets it in its own limits, so that it costs about what another
does. A crash of a worker costs a fork; `benchmarks.verifier_faults` shows that. Medians of rounds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from benchmarks.contest import available_cores
from benchmarks.verifier_fuzz import hostile
from rft_jax.verification.pool import Item, VerifierPool
from rft_jax.verification.rules import Limits, VerifierSpec


def gsm8k_style(count: int, chance: random.Random) -> list[Item]:
    """Outputs of about the length and form of GSM8K's solutions (280 characters), half right."""
    items = []
    for _ in range(count):
        steps, answer = [], 0
        for _ in range(4):
            first, second = chance.randint(2, 99), chance.randint(2, 99)
            answer = first * second
            steps.append(
                f"Each of the {first} boxes holds {second} pens, so there are "
                f"{first}*{second}=<<{first}*{second}={answer}>>{answer} pens."
            )
        stated = answer + chance.randint(0, 1)
        items.append(Item(f"{answer:,}", "\n".join(steps) + f"\n#### {stated}", True))
    return items


def main() -> None:
    """Measure both rows in turn and print the median rates and their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--comparison", choices=("exact", "math"), default="exact")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    chance = random.Random(0)
    clean = gsm8k_style(arguments.items, chance)
    poisoned = [hostile(chance) if chance.random() < 0.01 else item for item in clean]
    rates: dict[str, list[float]] = {"clean": [], "1 % pathological": []}
    spec = VerifierSpec("auto", arguments.comparison)
    with VerifierPool(spec, Limits(arguments.workers, 10.0)) as pool:
        for _ in range(arguments.rounds):
            for (_, found), items in zip(rates.items(), (clean, poisoned), strict=True):
                began = time.perf_counter()
                pool.verify(items)
                found.append(len(items) / (time.perf_counter() - began))
    for name, found in rates.items():
        low, median, high = min(found), statistics.median(found), max(found)
        print(f"{name}: {median:,.0f} verdicts/s ({low:,.0f} to {high:,.0f})")
    first, second = (statistics.median(found) for found in rates.values())
    print(f"ratio {second / first:.2f}; {arguments.workers} workers, {available_cores()} cores")


if __name__ == "__main__":
    main()
