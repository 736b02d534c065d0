"""How a process leaves its job: in order, or at once with a word to the others."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from typing import Any

import jax
import pytest

from rft_jax.distributed import collectives
from rft_jax.distributed import process as job
from rft_jax.distributed.watchdog import EXIT_LOST, Limits, Watch
from rft_jax.errors import ConfigError, TemporaryError


class Ended(BaseException):
    """In place of the end of the process."""


class Listener(Watch):
    """In place of the thread: what it was told."""

    def __init__(self, told: list[str]) -> None:
        self.told = told

    def at(self, what: str) -> None:
        self.told.append(f"at {what}")

    def done(self) -> None:
        self.told.append("done")

    def failed(self, why: str, status: int = EXIT_LOST) -> None:
        self.told.append(f"failed: {why}, all by {status}")

    def wait_for_verdict(self) -> None:
        self.told.append("waits")


LIMITS = Limits(7.0, 70.0)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to the watch and the job of a process that has joined one."""
    found: list[str] = []

    def leave(status: int) -> None:
        found.append(f"exit {status}")
        raise Ended

    def joined(lost_after: float) -> bool:
        assert lost_after == LIMITS.lost_after
        return True

    monkeypatch.setattr(job, "join", joined)
    monkeypatch.setattr(job, "store", lambda: None)

    def watch(store: Any, process: int, processes: int, limits: Limits) -> Watch:
        assert limits == LIMITS
        return Listener(found)

    monkeypatch.setattr(job, "Watch", watch)
    monkeypatch.setattr(job, "meet", lambda what: found.append(f"meets at {what}"))
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: found.append("shutdown"))
    return found


def carry_out(work: Callable[[Callable[[str], None]], object]) -> None:
    with job.joined(LIMITS) as at:
        work(at)


def raising(error: BaseException) -> Callable[[Callable[[str], None]], object]:
    def work(at: Callable[[str], None]) -> None:
        raise error

    return work


def test_a_job_is_left_when_all_have_come_to_the_end(told: list[str]) -> None:
    carry_out(lambda at: at("update of step 1"))
    assert told == ["at update of step 1", "at the end", "meets at the end", "done", "shutdown"]


def test_an_error_for_the_user_is_one_line(
    told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Ended):
        carry_out(raising(ConfigError("mesh.data is 3: it must divide 8.")))
    assert told == ["failed: ConfigError: mesh.data is 3: it must divide 8., all by 2", "exit 2"]
    assert capsys.readouterr().err == "rft-jax: error: mesh.data is 3: it must divide 8.\n"


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (KeyError("a"), "KeyError: 'a'"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (ValueError("one\ntwo"), "ValueError: one"),
        (ValueError("x" * 1000), "ValueError: " + "x" * 300),
    ],
)
def test_another_error_is_told_whole(
    told: list[str], capsys: pytest.CaptureFixture[str], error: BaseException, why: str
) -> None:
    with pytest.raises(Ended):
        carry_out(raising(error))
    assert told == [f"failed: {why}, all by {EXIT_LOST}", f"exit {EXIT_LOST}"]
    assert capsys.readouterr().err.startswith("Traceback")


def test_a_failed_exchange_waits_for_what_is_known_of_the_others(
    told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Ended):
        carry_out(raising(jax.errors.JaxRuntimeError("UNAVAILABLE: connection reset\nby peer")))
    assert told[0] == "waits"
    assert told[1].startswith("failed: JaxRuntimeError: UNAVAILABLE: connection reset")
    assert told[2] == f"exit {EXIT_LOST}"
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "rft-jax: JaxRuntimeError: UNAVAILABLE: connection reset"


def test_alone_errors_go_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "join", lambda lost_after: False)
    carry_out(lambda at: at("anywhere"))
    with pytest.raises(KeyError):
        carry_out(raising(KeyError("a")))


@pytest.mark.parametrize("process", [0, 1])
def test_process_0_speaks(told: list[str], monkeypatch: pytest.MonkeyPatch, process: int) -> None:
    logger = logging.getLogger("rft_jax")
    monkeypatch.setattr(logger, "level", logging.INFO)
    monkeypatch.setattr(job, "is_main", lambda: process == 0)
    levels = []
    carry_out(lambda at: levels.append(logger.level))
    assert levels == [logging.INFO if process == 0 else logging.WARNING]


def test_others_that_never_came(monkeypatch: pytest.MonkeyPatch) -> None:
    def join(lost_after: float) -> bool:
        raise RuntimeError("DEADLINE_EXCEEDED: barrier timed out\nmore of it")

    monkeypatch.setattr(job, "join", join)
    with pytest.raises(TemporaryError) as error:
        carry_out(lambda at: at("anywhere"))
    assert str(error.value) == (
        "the job was not joined (RuntimeError: DEADLINE_EXCEEDED: barrier timed out)"
    )


@pytest.mark.parametrize(
    ("address", "bound"),
    [
        ("127.0.0.1:8476", "127.0.0.1:8476"),
        ("[::1]:8476", "[::1]:8476"),
        ("192.0.2.1:8476", None),  # of no machine, as one that is translated on the way
        ("an-alias-of-loopback:8476", None),
        ("no-port", None),
    ],
)
def test_process_0_listens_at_the_address_alone(
    monkeypatch: pytest.MonkeyPatch, address: str, bound: str | None
) -> None:
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **settings: Any) -> Any:
        return resolve("127.0.0.1" if host == "an-alias-of-loopback" else host, *args, **settings)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    told: dict[str, Any] = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **settings: told.update(settings))
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    collectives.join(60.0)
    assert told["coordinator_bind_address"] == bound
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "0.0.0.0:8476")  # of the user's choice
    collectives.join(60.0)
    assert told["coordinator_bind_address"] is None
