"""Counting what the machine did."""

from __future__ import annotations

import jax
import numpy as np

from rft_jax.observe.system import count_compilations, peak_memory_bytes


def test_compilations_are_counted_while_the_counter_is_open() -> None:
    x, y = np.ones(3, np.float32), np.ones(5, np.float32)
    double = jax.jit(lambda value: value * 2)
    with count_compilations() as seen:
        assert (seen.count, seen.seconds) == (0, 0.0)
        double(x)
        once = seen.count
        assert once >= 1
        assert seen.seconds > 0
        double(x)
        assert seen.count == once
        double(y)
        assert seen.count > once
        last = seen.count
    jax.jit(lambda value: value * 3)(x)
    assert seen.count == last
    with count_compilations() as again:
        assert again.count == 0


def test_peak_memory() -> None:
    """At least this process and the libraries it has loaded, less than a machine has."""
    assert 2**26 < peak_memory_bytes() < 2**44
