"""Conditions of every test: 8 simulated devices on CPU, shapes and types checked at each call."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import programs

if "jax" in sys.modules:
    raise RuntimeError("jax is imported before tests/conftest.py could set it up: run pytest alone")

# The environment, so that processes which tests start have the same conditions.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        f"{programs.DEVICES}=8",
        # 40 seconds unless told: devices of a busy machine may have to wait longer for each other.
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        # Split, a small program takes longer to compile, on few cores at least.
        "--xla_cpu_parallel_codegen_split_count=1",
        programs.QUICK if os.environ.get(programs.SWITCH) != "0" else "",
    ]
).strip()
# Each worker keeps the programs that it compiles, for its other tests and the processes they start.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="rft_jax-programs-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import hypothesis
import jaxtyping
import pytest

atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# A shell that puts a job in the background has it ignore Ctrl-C, and so would all it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Before any import of the package: every annotated function then checks its arguments.
jaxtyping.install_import_hook("rft_jax", "typecheck.checked")

# A first call compiles, which says nothing about the next.
hypothesis.settings.register_profile("rft_jax", deadline=None)
hypothesis.settings.register_profile("fast", deadline=None, max_examples=20)
hypothesis.settings.load_profile("rft_jax")


OPTIMIZED = (
    "models/",
    "rollout/test_logits.py",
    "rollout/test_sampler.py",
    "training/",
    "runs/test_resume.py",
)
"""Tests, below this folder, whose programs XLA makes as it does for users. In the others most time
would go to that: it optimizes little, and loops are its older code. JAX_DISABLE_MOST_OPTIMIZATIONS,
if set, decides for all: 0 optimizes all."""


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile as OPTIMIZED says, here and in processes that tests start, and keep no program after
    the file: each in memory is some nine mappings of the process, of which Linux allows 65,530."""
    import jax

    path = request.path.relative_to(Path(__file__).parent).as_posix()
    disabled = os.environ.get(programs.SWITCH, "0" if path.startswith(OPTIMIZED) else "1") != "0"
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(programs.SWITCH, "1")
        with nullcontext() if disabled else programs.as_for_users():
            yield
    jax.clear_caches()


FIRST = ("test_jobs.py", "test_resume.py", "test_buckets.py")
"""Files that take minutes: at the end one worker would have to wait for another."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """FIRST before the others, which keep their order."""
    items.sort(key=lambda item: item.path.name not in FIRST)
