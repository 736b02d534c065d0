"""The pool of verification workers: verdicts, faults and errors."""

from __future__ import annotations

import logging
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import misbehaving
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rft_jax.errors import VerifierError
from rft_jax.types import Judgement, Verdict
from rft_jax.verification import pool as pool_module
from rft_jax.verification import process as process_module
from rft_jax.verification.pool import Item, VerifierPool
from rft_jax.verification.rules import TRUNCATED, Limits, VerifierSpec, load_verifier

hash_rule = load_verifier(VerifierSpec("hash"))
ACCEPTED = Judgement(Verdict.CORRECT, "accepted")
REJECTED = Judgement(Verdict.INCORRECT, "rejected")

BAD_VERDICT = (
    "error: no verdict: the verifier's verdict is 'perhaps', not one of correct, incorrect, "
    "undecided"
)


def undecided(reason: str) -> Judgement:
    return Judgement(Verdict.UNDECIDED, reason)


def items_of(*outputs: str) -> list[Item]:
    return [Item(reference="good", output=output, finished=True) for output in outputs]


@pytest.fixture(scope="module")
def hash_pool() -> Iterator[VerifierPool]:
    with VerifierPool(VerifierSpec("hash"), Limits(2, 60.0)) as pool:
        yield pool


@pytest.fixture
def acting_pool(_verifiers_of_the_tests: None) -> Iterator[VerifierPool]:
    with VerifierPool(VerifierSpec("misbehaving:act"), Limits(2, 0.5)) as pool:
        yield pool


# Verdicts


def test_the_built_in_rule(hash_pool: VerifierPool) -> None:
    outputs = ["#### 18", "#### 19", "18", "#### 18 or 19"]
    judgements = hash_pool.verify([Item("9 + 9 = 18\n#### 18", output, True) for output in outputs])
    assert judgements == [hash_rule("18", output) for output in outputs]


def test_a_truncated_output_is_incorrect_and_not_run(acting_pool: VerifierPool) -> None:
    items = [Item("good", "exit", finished=False), Item("good", "good", finished=False)]
    assert acting_pool.verify(items) == [Judgement(Verdict.INCORRECT, TRUNCATED)] * 2


def test_a_text_that_is_too_long_is_undecided_and_not_run() -> None:
    limits = Limits(workers=1, timeout_seconds=60.0, max_characters=10)
    with VerifierPool(VerifierSpec("misbehaving:act"), limits) as pool:
        items = [
            *items_of("exit " + "x" * 10, "good"),
            Item("g" * 11, "good", True),
            Item("good", "exit " + "x" * 10, False),
        ]
        assert pool.verify(items) == [
            undecided("too long"),
            ACCEPTED,
            undecided("too long"),
            Judgement(Verdict.INCORRECT, TRUNCATED),
        ]


def test_a_verifier_that_comes_back_twice_is_heard_once(acting_pool: VerifierPool) -> None:
    outputs = ["good", "fork-twice", "good", "fork-twice", "bad"] * 20
    assert acting_pool.verify(items_of(*outputs)) == [
        ACCEPTED if output == "good" else REJECTED for output in outputs
    ]


def test_memory_is_bounded_and_only_its_item_is_lost() -> None:
    limits = Limits(workers=1, timeout_seconds=30.0, memory_mb=256)
    with VerifierPool(VerifierSpec("misbehaving:act"), limits) as pool:
        found = pool.verify(items_of("good", "allocate", "good"))
    assert found == [ACCEPTED, undecided("out of memory"), ACCEPTED]


def test_without_its_nursery_the_pool_ends_with_a_message(acting_pool: VerifierPool) -> None:
    acting_pool._nursery._process.kill()
    acting_pool._nursery._process.wait()
    with pytest.raises(VerifierError, match=r"starts verification workers is gone \(signal 9\)"):
        list(map(acting_pool.verify, [items_of("exit")] * 3))


def test_nothing_to_verify(hash_pool: VerifierPool) -> None:
    assert hash_pool.verify([]) == []


def test_order_is_kept(hash_pool: VerifierPool) -> None:
    items = [Item(str(row % 7), f"#### {row % 5}", row % 11 != 0) for row in range(5000)]
    futures = [hash_pool.submit(items[start : start + 700]) for start in range(0, 5000, 700)]
    judgements = [judgement for future in futures for judgement in future.result()]
    assert judgements == [
        hash_rule(item.reference, item.output)
        if item.finished
        else Judgement(Verdict.INCORRECT, TRUNCATED)
        for item in items
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.text(), st.text(), st.text("#0123456789 \n/.,"))))
def test_any_text_gets_the_verdict_of_the_rule(
    hash_pool: VerifierPool, rows: list[tuple[str, str, str]]
) -> None:
    items = [Item(reference, start + end, True) for reference, start, end in rows]
    expected = [hash_rule(item.reference, item.output) for item in items]
    assert hash_pool.verify(items) == expected


def test_submit_returns_while_the_workers_work(acting_pool: VerifierPool) -> None:
    future = acting_pool.submit(items_of("sleep 0.3", "good"))
    assert not future.done()
    assert future.result() == [REJECTED, ACCEPTED]


def test_a_future_cannot_be_cancelled(acting_pool: VerifierPool) -> None:
    assert not acting_pool.submit(items_of("good")).cancel()


# Faults of one item


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("sleep 60", "timeout"),
        ("hang-in-c", "timeout"),
        ("exit", "crashed"),
        ("segfault", "crashed"),
        ("signal", "crashed"),
        ("detached-child", "crashed"),
        ("raise it", "error: KeyError: 'it' (HERE)"),
        ("library", "error: JSONDecodeError: Expecting value: line 1 column 1 (char 0) (HERE)"),
        ("long", "error: KeyError: '" + "x" * 199 + " (HERE)"),
        ("sys.exit", "error: SystemExit: 0 (HERE)"),
        ("bad-verdict", BAD_VERDICT),
    ],
)
def test_a_fault_leaves_only_its_item_undecided(
    acting_pool: VerifierPool, action: str, reason: str
) -> None:
    lines = Path(misbehaving.__file__).read_text().split("\n")
    branch = lines.index(f'    elif action == "{action.split()[0]}":') if "HERE" in reason else 0
    reason = reason.replace("HERE", f"misbehaving.py:{branch + 2}")
    outputs = ["good", "bad", action] + ["good", "bad"] * 20
    judgements = acting_pool.verify(items_of(*outputs))
    expected = {"good": ACCEPTED, "bad": REJECTED, action: undecided(reason)}
    assert judgements == [expected[output] for output in outputs]
    assert acting_pool.verify(items_of("good")) == [ACCEPTED]


@pytest.mark.parametrize("action", ["pickle", "length", "text"])
def test_bytes_of_a_verifier_are_no_message(
    acting_pool: VerifierPool, tmp_path: Path, action: str
) -> None:
    outputs = ["good", "bad", f"{action} {tmp_path / 'ran'}"] + ["good", "bad"] * 20
    judgements = acting_pool.verify(items_of(*outputs))
    assert judgements == [ACCEPTED if output == "good" else REJECTED for output in outputs]
    assert not (tmp_path / "ran").exists()


def test_a_verifier_that_never_stops_writing_meets_its_deadline(acting_pool: VerifierPool) -> None:
    began = time.monotonic()
    outputs = ["good", "write-for-ever", *["bad", "good"] * 10]
    expected = {
        "good": ACCEPTED,
        "bad": REJECTED,
        "write-for-ever": undecided("timeout"),
    }
    assert acting_pool.verify(items_of(*outputs)) == [expected[output] for output in outputs]
    assert time.monotonic() - began < 60.0


def test_a_verifier_that_closes_what_it_finds_loses_no_verdict(acting_pool: VerifierPool) -> None:
    outputs = ["good", "close", "bad"] * 5
    for _ in range(3):
        judgements = acting_pool.verify(items_of(*outputs))
        assert judgements == [ACCEPTED if output == "good" else REJECTED for output in outputs]


def test_a_verdict_that_took_over_half_of_its_time_says_so(acting_pool: VerifierPool) -> None:
    judgements = acting_pool.verify(items_of("good", "sleep 0.3", "sleep 60", "bad"))
    assert [judgement.slow for judgement in judgements] == [False, True, True, False]


def test_the_first_failures_are_shown(
    acting_pool: VerifierPool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        acting_pool.verify(items_of(*(f"raise number {number}" for number in range(9)), "good"))
    assert len(caplog.records) == pool_module.FAILURES_SHOWN
    assert caplog.messages[0].startswith(
        "verification.verifier 'misbehaving:act' failed, so the output is undecided: KeyError: "
        "'number "
    )


@pytest.mark.slow
def test_a_fault_is_never_laid_on_the_next_item() -> None:
    with VerifierPool(VerifierSpec("misbehaving:act"), Limits(1, 0.5)) as pool:
        for action, reason in (("exit", "crashed"), ("sleep 60", "timeout"), ("exit", "crashed")):
            # Batches of one item and of two: the fault is the whole chunk.
            assert pool.verify(items_of(action)) == [undecided(reason)]
            assert pool.verify(items_of("good", action)) == [ACCEPTED, undecided(reason)]
            assert pool.verify(items_of(action, "good")) == [undecided(reason), ACCEPTED]


def test_many_faults_in_one_batch(acting_pool: VerifierPool) -> None:
    poison = {7: "exit", 60: "signal", 61: "exit", 150: "raise it", 299: "hang-in-c"}
    reasons = {"exit": "crashed", "signal": "crashed", "hang-in-c": "timeout"}
    outputs = [poison.get(row, "good") for row in range(300)]
    judgements = acting_pool.verify(items_of(*outputs))
    assert judgements[150].reason.startswith("error: KeyError: 'it'")
    reasons["raise it"] = judgements[150].reason
    assert judgements == [
        ACCEPTED if output == "good" else undecided(reasons[output]) for output in outputs
    ]


def test_the_deadline_is_one_item_s_and_not_the_batch_s(acting_pool: VerifierPool) -> None:
    # Eight times 0.2 s on two workers last longer than the 0.5 s that one item may take.
    judgements = acting_pool.verify(items_of(*["sleep 0.2"] * 8))
    assert judgements == [REJECTED] * 8


def test_the_deadline_is_kept(acting_pool: VerifierPool) -> None:
    began = time.monotonic()
    assert acting_pool.verify(items_of("sleep 60")) == [undecided("timeout")]
    assert time.monotonic() - began >= 0.5


def test_what_a_verifier_prints_and_reads_harms_nothing(acting_pool: VerifierPool) -> None:
    judgements = acting_pool.verify(items_of("print", "read", "good"))
    assert judgements == [REJECTED, Judgement(Verdict.CORRECT, "read ''"), ACCEPTED]


def test_what_verifiers_print_is_shown_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process_module, "SHOWN_BYTES", 150_000)
    with VerifierPool(VerifierSpec("misbehaving:act"), Limits(1, 60.0)) as pool:
        pool.verify(items_of(*["print"] * 30))
    assert capfd.readouterr().err.replace("\n", "") == (
        "x" * 149_999 + "[what verifiers print from here on is not shown]"
    )


def test_a_worker_killed_while_idle_is_replaced() -> None:
    with VerifierPool(VerifierSpec("misbehaving:act"), Limits(1, 60.0)) as pool:
        (first,) = pool.verify(items_of("pid"))
        os.kill(int(first.reason), signal.SIGKILL)
        (second,) = pool.verify(items_of("pid"))
        assert second.verdict is Verdict.CORRECT
        assert second.reason != first.reason


def test_a_worker_that_is_stopped_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "START_SECONDS", 0.5)
    with VerifierPool(VerifierSpec("misbehaving:act"), Limits(1, 5.0)) as pool:
        (first,) = pool.verify(items_of("pid"))
        os.kill(int(first.reason), signal.SIGSTOP)
        assert pool.verify(items_of("good")) == [ACCEPTED]


# What a worker is


def test_workers_import_no_jax(acting_pool: VerifierPool) -> None:
    heavy = "jax jaxlib flax optax numpy tensorflow torch"
    (judgement,) = acting_pool.verify(items_of(f"modules rft_jax {heavy}"))
    assert judgement.reason == "rft_jax"


def test_workers_see_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with VerifierPool(VerifierSpec("misbehaving:act"), Limits(1, 60.0)) as pool:
        found = pool.verify(
            items_of("environment JAX_PLATFORMS", "environment CUDA_VISIBLE_DEVICES")
        )
    assert [judgement.reason for judgement in found] == ["'cpu'", "''"]


def test_workers_find_the_modules_this_process_finds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "verifier_of_a_user.py").write_text("def f(reference, output): return True\n")
    with VerifierPool(VerifierSpec("verifier_of_a_user:f"), Limits(1, 60.0)) as pool:
        assert pool.verify(items_of("anything")) == [ACCEPTED]
    with VerifierPool(VerifierSpec("misbehaving:act"), Limits(1, 60.0)) as pool:
        expected = "\n".join([*sys.path, str(tmp_path)])
        assert pool.verify(items_of(f"path {expected}")) == [ACCEPTED]


# The pool's own errors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hsh", "verification.verifier is 'hsh': it must be a built-in rule (auto, hash, boxed"),
        ("no_such_module:f", "(ModuleNotFoundError: No module named 'no_such_module')"),
        ("misbehaving:NOT_A_FUNCTION", "misbehaving.NOT_A_FUNCTION is a int;"),
        ("misbehaving:NotAFunction", "misbehaving.NotAFunction is a class; it must be a function"),
        ("misbehaving:later", "misbehaving.later is an async function; it must be a function"),
        (
            "misbehaving:one_argument",
            "misbehaving.one_argument cannot be called with reference, output (too many positional "
            "arguments); it must be a function (question, reference, output, **fields) -> bool, "
            "float or Verdict.",
        ),
    ],
)
def test_a_bad_verifier_is_an_error_at_the_start(name: str, message: str) -> None:
    with pytest.raises(VerifierError) as raised:
        VerifierPool(VerifierSpec(name), Limits(2, 1.0))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def _module(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(folder))
    return f"{name}:f"


def test_a_module_that_ends_the_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = _module(monkeypatch, tmp_path, "ends_the_worker", "import os\nos._exit(4)\n")
    with pytest.raises(VerifierError) as raised:
        VerifierPool(VerifierSpec(name), Limits(1, 1.0))
    assert str(raised.value) == (
        "verification.verifier is 'ends_the_worker:f': the worker ended while it loaded it "
        "(exit code 4); see its messages above."
    )


def test_a_module_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process_module, "START_SECONDS", 1.0)
    name = _module(monkeypatch, tmp_path, "loads_for_ever", "import time\ntime.sleep(600)\n")
    with pytest.raises(VerifierError) as raised:
        VerifierPool(VerifierSpec(name), Limits(1, 1.0))
    assert str(raised.value) == (
        "verification.verifier is 'loads_for_ever:f': a worker did not load it within 1 s; make "
        "its module quicker to import."
    )


def test_workers_that_end_before_any_item(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # A thread ends each worker shortly after it said that it is ready.
    name = _module(
        monkeypatch,
        tmp_path,
        "ends_soon",
        """
        import os, threading
        threading.Timer(0.2, os._exit, [5]).start()
        def f(reference, output): return True
        """,
    )
    with VerifierPool(VerifierSpec(name), Limits(1, 1.0)) as pool:
        monkeypatch.setattr(process_module.WorkerProcess, "send", _wait_for_the_end)
        with pytest.raises(VerifierError) as raised:
            pool.verify(items_of("good"))
        assert str(raised.value) == (
            "verification workers end before they begin an item (exit code 5, 3 in a row); see "
            "their messages above."
        )
        with pytest.raises(VerifierError, match="before they begin an item"):
            pool.submit(items_of("good"))


def test_a_replacement_that_ends_at_its_start_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # The module counts its imports: the second and third end the worker.
    name = _module(
        monkeypatch,
        tmp_path,
        "ends_twice",
        """
        import os
        from pathlib import Path
        count = Path(__file__).with_suffix(".count")
        count.write_text((count.read_text() if count.exists() else "") + "x")
        if count.read_text() in ("xx", "xxx"): os._exit(6)
        def f(reference, output): return output == "good" or os._exit(7)
        """,
    )
    with VerifierPool(VerifierSpec(name), Limits(1, 60.0)) as pool:
        assert pool.verify(items_of("exit", "good")) == [undecided("crashed"), ACCEPTED]


def test_replacements_that_all_end_at_their_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = _module(
        monkeypatch,
        tmp_path,
        "ends_later",
        """
        import os
        from pathlib import Path
        if Path(__file__).with_suffix(".seen").exists(): os._exit(6)
        Path(__file__).with_suffix(".seen").touch()
        def f(reference, output): os._exit(7)
        """,
    )
    with VerifierPool(VerifierSpec(name), Limits(1, 5.0)) as pool:
        with pytest.raises(VerifierError) as raised:
            pool.verify(items_of("exit", "good"))
        assert str(raised.value) == (
            "verification.verifier is 'ends_later:f': the worker ended while it loaded it (exit "
            "code 6); see its messages above."
        )


def _wait_for_the_end(process: process_module.WorkerProcess, chunk: object) -> None:
    while not process.ended:
        time.sleep(0.01)
    raise process_module.WorkerGone


def test_a_failure_inside_the_pool_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more_files(process: process_module.WorkerProcess, chunk: object) -> None:
        raise OSError(24, "Too many open files")

    with VerifierPool(VerifierSpec("hash"), Limits(1, 1.0)) as pool:
        monkeypatch.setattr(process_module.WorkerProcess, "send", no_more_files)
        with pytest.raises(VerifierError) as raised:
            pool.verify(items_of("good"))
    assert str(raised.value) == (
        "the verifier pool failed: OSError: [Errno 24] Too many open files"
    )


def test_closing_ends_what_is_not_done() -> None:
    with VerifierPool(VerifierSpec("misbehaving:act"), Limits(2, 60.0)) as pool:
        future = pool.submit(items_of("sleep 60", "good", "sleep 60"))
        time.sleep(0.1)
    pool.close()
    with pytest.raises(VerifierError) as raised:
        future.result(timeout=60.0)
    assert str(raised.value) == "the verifier pool was closed before this batch was done."
    with pytest.raises(VerifierError) as raised:
        pool.submit(items_of("good"))
    assert str(raised.value) == "the verifier pool is closed: submit while it is open."
