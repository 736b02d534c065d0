"""What the package needs of jax's private modules, and no other file imports.

The job's store of keys and values has no public name, and jax.distributed cannot be asked whether
it would find a job without joining it. pyproject.toml bounds jax from above: a new version is
allowed once tests/distributed/test_jax_private.py passes with it.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

from jax._src import clusters, distributed


def in_cluster() -> bool:
    """Whether jax would detect by itself which job this is, and of which there may be others."""
    if os.environ.get("SLURM_NTASKS") == "1":
        return False  # jax would give the one task one of its GPUs
    kinds = clusters.ClusterEnv._cluster_types
    with warnings.catch_warnings():
        # In a Kubernetes container outside such a job it would name a package to install.
        warnings.simplefilter("ignore")
        return any(not kind.opt_in_only_method and kind.is_env_present() for kind in kinds)


def joined_processes() -> int:
    """The number of processes in the job that jax.distributed joined, itself included; asking makes
    jax look for no devices."""
    return int(distributed.global_state.num_processes)


def store() -> Any:
    """The client of the job's store of keys and values; None when jax.distributed joined no job."""
    return distributed.global_state.client
