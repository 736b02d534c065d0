"""How XLA makes the programs of tests: as it does for users, or in a third of the time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import pytest

SWITCH = "JAX_DISABLE_MOST_OPTIMIZATIONS"
DEVICES = "--xla_force_host_platform_device_count"
_JAXLIB = tuple(map(int, version("jaxlib").split(".")[:2]))
QUICK = "--xla_cpu_use_fusion_emitters=false" if _JAXLIB < (0, 12) else ""
"""XLA's older code for loops, of the same operations: most of a test's time went to the newer.
Since 0.12 there is no such code, and an unknown flag ends the process."""


def xla_flags(devices: int = 0) -> str:
    """XLA_FLAGS as they are, but for so many simulated devices; 0: JAX_NUM_CPU_DEVICES decides."""
    kept = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(DEVICES)]
    return " ".join(kept + ([f"{DEVICES}={devices}"] if devices else []))


@contextmanager
def as_for_users() -> Iterator[None]:
    """Optimized, and XLA's newer code after all, here and in processes that are started here: it
    reads XLA_FLAGS once, and jax has no setting for all programs."""
    import jax
    from jax._src import compiler

    jax.devices()  # now it has read them
    of_jax, disabled = compiler.get_compile_options, os.environ.get(SWITCH) != "0"

    def options(*args: Any, **kwargs: Any) -> Any:
        made = of_jax(*args, **kwargs)
        if QUICK:
            own = ("xla_cpu_use_fusion_emitters", True)
            made.env_option_overrides = [*made.env_option_overrides, own]
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "get_compile_options", options)
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace(QUICK, ""))
        patch.setenv(SWITCH, "0")
        jax.config.update("jax_disable_most_optimizations", False)
        try:
            yield
        finally:
            jax.config.update("jax_disable_most_optimizations", disabled)
