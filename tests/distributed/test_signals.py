"""Asking a run to stop."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from rft_jax.distributed.process import stop_on_signals


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_told_and_does_nothing_else(number: int) -> None:
    before = handlers()
    with stop_on_signals() as stopped:
        assert stopped() == 0
        os.kill(os.getpid(), number)
        assert stopped() == number
    assert handlers() == before


def test_a_closed_terminal_asks_but_not_under_nohup() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler, told in ((signal.SIG_DFL, signal.SIGHUP), (signal.SIG_IGN, 0)):
            signal.signal(signal.SIGHUP, handler)
            with stop_on_signals() as stopped:
                os.kill(os.getpid(), signal.SIGHUP)
                assert stopped() == told
            assert signal.getsignal(signal.SIGHUP) == handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_does_not_ask() -> None:
    before = handlers()
    with stop_on_signals() as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopped() == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


def test_other_threads_take_no_signals() -> None:
    found: list[int] = []

    def work() -> None:
        with stop_on_signals() as stopped:
            found.append(stopped())

    before = handlers()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0]
    assert handlers() == before
