"""Which process speaks: logs, progress, metrics and reports come from process 0."""

from __future__ import annotations

import jax


def is_main() -> bool:
    """True in the one process that writes what a person reads."""
    return jax.process_index() == 0
