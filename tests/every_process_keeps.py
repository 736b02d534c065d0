"""Imported by the experiment files of jobs: each process keeps the programs that it compiles.

On CPUs a program is kept under a name that says which process it is for, and yet only process 0
writes what it has compiled: every other one would compile for most of a test, at each start. jax
has no setting for this: tests/distributed/test_jax_private.py says what is needed.
"""

from __future__ import annotations

from types import SimpleNamespace

from jax._src import compiler, distributed

assert distributed.global_state is compiler.distributed.global_state
# What is asked here is who writes, and whether programs go from process to process: not by default.
compiler.distributed = SimpleNamespace(global_state=SimpleNamespace(process_id=0, client=None))
