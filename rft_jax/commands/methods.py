"""`rft-jax methods`: the table of methods, and in which two of them differ."""

from __future__ import annotations

from collections.abc import Sequence

from rft_jax.config.method import Method, Ratio
from rft_jax.errors import ConfigError, suggest_or_list
from rft_jax.training.methods import METHODS

PASS_RATES = (0.05, 0.2, 0.5, 0.8, 0.95)
MOST = 1000
"""Outputs of a question, of which the ways to choose half of them are still a float."""
HEAD = (
    "method", "outputs of", "trained on", "GC", "compares with", "divided by", "pi_theta / pi_old",
    "KL of the source", "equation",
)  # fmt: skip


def ratio_text(ratio: Ratio | None) -> str:
    """What a ratio does, in a few words."""
    if ratio is None:
        return "none"
    low = f"{1 - ratio.low:g}" if ratio.low < 1 else "0"
    words = [f"{ratio.how} in [{low}, {1 + ratio.high:g}]", f"per {ratio.per}"]
    words += ["of negatives"] if ratio.of == "negatives" else []
    words += [f"dual {ratio.dual:g}"] if ratio.dual else []
    return ", ".join(words)


def _cells(name: str, row: Method) -> tuple[str, ...]:
    compared = "value function" if row.values else "group" if row.group else "-"
    return (
        name, row.source, row.trains_on, row.formula, compared, row.denominator,
        ratio_text(row.ratio), row.kl or "-", row.equation or "-",
    )  # fmt: skip


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *rest = rows
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rest]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def table() -> str:
    """Every row of the table, in Markdown, and where each is from."""
    rows = [HEAD, *(_cells(name, row) for name, row in METHODS.items())]
    sources = "\n".join(f"{name}: {row.about}." for name, row in METHODS.items())
    return f"{_markdown(rows)}\n\n{sources}"


def check_group(group: int) -> None:
    """ConfigError unless a question has several outputs, and no more than floats can count."""
    if group < 2:
        raise ConfigError(f"--group is {group}: methods compare at least 2 outputs of a question.")
    if group > MOST:
        raise ConfigError(f"--group is {group}: at most {MOST} outputs of a question are compared.")


def differences(names: Sequence[str], group: int = 8) -> str:
    """In which two methods differ, in words and numbers.

    Args:
        names: of two rows.
        group: outputs of a question, G.

    Raises:
        ConfigError: there are not two names, or no such row.
    """
    if len(names) != 2:
        raise ConfigError(
            f"--differences is followed by {' '.join(names) or 'nothing'}: two methods are "
            "expected."
        )
    for name in names:
        if name not in METHODS:
            raise ConfigError(f"--differences: no method {name!r}{suggest_or_list(name, METHODS)}")
    check_group(group)
    from rft_jax.training.expectation import expected_coefficients

    first, second = (METHODS[name] for name in names)
    cells = [_cells(name, row) for name, row in zip(names, (first, second), strict=True)]
    apart = [row for row in zip(HEAD, *cells, strict=True) if row[1] != row[2]]
    head = ["pass rate"]
    for name in names:
        head += [f"{name}: correct", "wrong", "x grad p"]
    numbers = [head]
    for rate in PASS_RATES:
        line = [f"{rate:g}"]
        for row in (first, second):
            if row.source == "demonstrations":  # which have no pass rate
                line += ["-"] * 3
                continue
            correct, wrong = expected_coefficients(row, row.denominator, rate, group)
            line += [f"{correct:.3f}", f"{wrong:.3f}", f"{correct - wrong:.3f}"]
        numbers.append(line)
    return "\n\n".join(
        [
            _markdown([("", *names), *apart]),
            f"Expected coefficient of an output of a question, by its pass rate p, with {group} "
            "outputs a question;\nwithout 1/|o| the expected gradient is grad p times the third:",
            _markdown(numbers),
        ]
    )
