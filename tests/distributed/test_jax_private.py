"""What is needed of jax's private modules, which a new version of jax may move or change."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import programs
import pytest
from jax._src import compiler
from packaging.requirements import Requirement

from rft_jax.distributed.jax_private import in_cluster, joined_processes, store

ROOT = Path(__file__).parents[2]

ALLOWED = {
    "rft_jax/distributed/jax_private.py",
    "tests/every_process_keeps.py",
    "tests/programs.py",
}

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-4]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}

PROCESS = """
import sys
import every_process_keeps
import jax
from rft_jax.distributed.jax_private import joined_processes, store

number = int(sys.argv[2])
jax.distributed.initialize(sys.argv[1], 2, number)
assert joined_processes() == 2
own = store()
own.key_value_set(f"test/{number}", "first")
own.key_value_set(f"test/{number}", f"said by {number}", allow_overwrite=True)
own.wait_at_barrier("both have said it", 60_000)
assert sorted(own.key_value_dir_get("test/")) == [("test/0", "said by 0"), ("test/1", "said by 1")]
assert own.blocking_key_value_get(f"test/{1 - number}", 60_000) == f"said by {1 - number}"
assert jax.jit(lambda x: 2 * x)(3.0) == 6
"""
"""A process of a job of two: ADDRESS NUMBER."""


def test_no_other_file_imports_private_modules() -> None:
    folders = ("rft_jax", "tests", "benchmarks", "experiments", "colab")
    private = re.compile(r"^\s*(from|import) jax\._src|jax\._src\.", re.MULTILINE)
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    own = Path(__file__)
    found = {path for path in files if path != own and private.search(path.read_text("utf-8"))}
    assert {path.relative_to(ROOT).as_posix() for path in found} == ALLOWED


def test_jax_is_bounded_from_above() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (bound,) = [
        requirement.specifier
        for requirement in map(Requirement, project["dependencies"])
        if requirement.name == "jax"
    ]
    assert any(part.operator == "<" for part in bound)
    assert bound.contains(jax.__version__)


@pytest.mark.slow
def test_the_store_of_two_processes_and_the_programs_that_each_keeps(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    caches = [tmp_path / str(number) for number in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(number)],
            env=os.environ | {"PYTHONPATH": path, "JAX_COMPILATION_CACHE_DIR": str(cache)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, cache in enumerate(caches)
    ]
    try:
        errors = [process.communicate(timeout=240)[1] for process in running]
    finally:  # one that failed leaves the other waiting
        for process in running:
            process.kill()
            process.communicate()
    assert [process.returncode for process in running] == [0, 0], errors
    assert all(list(cache.glob("jit__lambda*")) for cache in caches)


@pytest.mark.skipif(not programs.QUICK, reason="XLA has one code for loops only")
def test_programs_of_tests_may_be_those_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ("xla_cpu_use_fusion_emitters", True)
    with programs.as_for_users():
        assert own in compiler.get_compile_options(1, 1).env_option_overrides
        assert "fusion_emitters" not in os.environ["XLA_FLAGS"]
    assert own not in compiler.get_compile_options(1, 1).env_option_overrides
    monkeypatch.setattr(compiler, "get_compile_options", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # this is what jax asks
        jax.jit(lambda x: 3 * x).lower(1.0).compile()


def test_no_job_was_joined() -> None:
    assert joined_processes() == 1
    assert store() is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        (SLURM, True),
        (SLURM | {"SLURM_NTASKS": "1"}, False),
        ({"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}, True),
    ],
)
def test_a_job_is_detected_by_its_environment(
    environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert in_cluster() == expected
