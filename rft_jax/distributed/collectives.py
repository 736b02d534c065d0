"""The processes of a job: joining it, and what they tell each other.

All processes run the same program. What they decide together they decide from the same facts: these
are gathered here, or process 0 says them. Arrays on devices are not the business of this file.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int, Shaped

from rft_jax.distributed.jax_private import in_cluster, joined_processes, store
from rft_jax.errors import ConfigError

_LONGEST_WAIT = 7 * 24 * 3600 * 1000
"""Milliseconds. It is `watchdog.py` that ends a job whose processes wait in vain."""
_JOIN_WITHIN = 600
"""Seconds that processes may start apart."""

T = TypeVar("T")


def is_main() -> bool:
    """True in the one process that writes what a person reads."""
    return jax.process_index() == 0


def join(lost_after: float) -> bool:
    """Join the job that this process was started in, if it was; whether there are others.

    A TPU slice, SLURM, Open MPI and Kubernetes say so themselves (jax.distributed); elsewhere
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID do. lost_after: seconds, see
    watchdog.py. Must come before anything that makes jax look for devices. Raises ConfigError for a
    job that is not described whole, RuntimeError when the others do not come.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not address and not in_cluster():
        return False
    # It would take SIGTERM for itself; signals are this package's (process.py).
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            num_processes=_number("JAX_NUM_PROCESSES") if address else None,
            process_id=_number("JAX_PROCESS_ID") if address else None,
            coordinator_bind_address=_bind_address(address) if address else None,
            initialization_timeout=_JOIN_WITHIN,
            # In reserve: watchdog.py says which process is lost, and before that.
            heartbeat_timeout_seconds=int(2 * lost_after) + 30,
            shutdown_timeout_seconds=int(lost_after) + 10,
        )
    except ValueError as error:
        where = f"JAX_COORDINATOR_ADDRESS is {address}" if address else "a job of jax.distributed"
        raise ConfigError(
            f"{where}: this process cannot join it ({' '.join(str(error).split())[:300]}); set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, the same number of "
            "processes in all of them."
        ) from error
    return joined_processes() > 1


def _bind_address(address: str) -> str | None:
    """Where process 0 listens: at the coordinator's address alone, where this machine has it.

    None leaves it to JAX_COORDINATOR_BIND_ADDRESS, or to jax: all addresses. So it is for an
    address that is translated on the way, and for a name that means loopback here and this machine
    elsewhere (/etc/hosts).
    """
    host, _, port = address.rpartition(":")
    if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ or not port.isdecimal():
        return None
    try:
        family, *_, place = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM)[0]
        ip = ipaddress.ip_address(place[0])
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(place)
    except (OSError, ValueError):
        return None
    named = host.strip("[]") not in ("localhost", str(ip))
    if ip.is_unspecified or (ip.is_loopback and named):
        return None
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r}: a number is expected.")
    return int(text)


def gather(values: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "processes ..."]:
    """The values of every process, of one shape in all of them. Every process must call it."""
    if jax.process_count() == 1:
        return values[None]
    # As bytes: devices have no float64.
    content = np.ascontiguousarray(values)
    found = multihost_utils.process_allgather(content.reshape(-1).view(np.uint8))
    return np.asarray(found).view(content.dtype).reshape(-1, *values.shape)


def largest(value: int) -> int:
    """The largest of the numbers that the processes have. Every process must call it."""
    if jax.process_count() == 1:
        return value
    numbers: Int[np.ndarray, "processes 1"] = gather(np.array([value], np.int64))
    return int(numbers.max())


def from_main(what: str, make: Callable[[], T]) -> T:
    """What process 0 makes, a JSON value, in every process. what: unlike that of any other call."""
    if jax.process_count() == 1:
        return make()
    key = f"rft_jax/said/{what}"
    if is_main():
        value = make()
        store().key_value_set(key, json.dumps(value))
        return value
    told: T = json.loads(store().blocking_key_value_get(key, _LONGEST_WAIT))
    return told


def told_by_all(own: T) -> list[T]:
    """A JSON value of every process, in their order. Every process must call it."""
    if jax.process_count() == 1:
        return [own]
    content = json.dumps(own).encode()
    lengths = gather(np.array(len(content), np.int64)).tolist()
    # To a power of two: each size is a program of its own.
    padded = np.zeros(1 << max(lengths).bit_length(), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    texts = [bytes(row[:length]) for row, length in zip(gather(padded), lengths, strict=True)]
    return [json.loads(text) for text in texts]


def by_main(what: str, work: Callable[[], object]) -> None:
    """Have process 0 do something, such as writing a file, that the others wait for."""

    def done() -> bool:
        work()
        return True

    from_main(what, done)


def main_first(what: str, make: Callable[[], T]) -> T:
    """What each process makes for itself, the others once process 0 has: it leaves files that they
    find. what: unlike that of any other call."""
    if not is_main():
        meet(what)
        return make()
    value = make()
    meet(what)
    return value


def meet(what: str) -> None:
    """Wait until every process has come here. what: unlike that of any other call."""
    if jax.process_count() > 1:
        store().wait_at_barrier(f"rft_jax/met/{what}", _LONGEST_WAIT)
