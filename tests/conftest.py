"""Conditions of every test: 8 simulated devices on CPU, shapes and types checked at each call."""

from __future__ import annotations

import os
import signal
import sys

if "jax" in sys.modules:
    raise RuntimeError("jax is imported before tests/conftest.py could set it up: run pytest alone")

# The environment, so that processes which tests start have the same conditions.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # 40 seconds unless told: devices of a busy machine may have to wait longer for each other.
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    ]
).strip()

import hypothesis
import jaxtyping

# A shell that puts a job in the background has it ignore Ctrl-C, and so would all it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before any import of the package: every annotated function then checks its arguments.
jaxtyping.install_import_hook("rft_jax", "typecheck.checked")

# A first call compiles, which says nothing about the next.
hypothesis.settings.register_profile("rft_jax", deadline=None)
hypothesis.settings.load_profile("rft_jax")
