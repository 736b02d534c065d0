"""Tables as text: Markdown, and columns of equal width for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, one row a line. header, rows: cells, in which `|` is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in escaped)


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, a rule below the header: the first to the left, others to the
    right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    first, *others = (
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (header, *rows)
    )
    rule = "-" * max(map(len, (first, *others)))
    return "\n".join([first, rule, *others])
