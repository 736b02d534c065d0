"""experiments/code_checker.py: programs are run, and gain nothing by what they should not do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rft_jax.types import Judgement, Verdict
from rft_jax.verification.canary import try_examples
from rft_jax.verification.pool import Item, VerifierPool
from rft_jax.verification.rules import Limits, VerifierSpec

pytestmark = pytest.mark.slow

ROW: dict[str, Any] = {
    "function": "double",
    "tests": [[[2], 4], [[-1], -2], [[0], 0], [["a"], "aa"]],
}


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "experiments"))
        with VerifierPool(VerifierSpec("code_checker:passed"), Limits(1, 10.0)) as pool:
            yield pool


def judged(pool: VerifierPool, program: str) -> Judgement:
    item = Item("", f"So:\n```python\n{program}\n```", True, "Write double(x).", ROW)
    return pool.verify([item])[0]


def test_its_examples_are_judged_as_they_say(pool: VerifierPool) -> None:
    try_examples(pool)


@pytest.mark.parametrize(
    ("program", "reward"),
    [
        ("def double(x): return 2 * x", 1.0),
        ("def double(x): return x + x\nprint('noise')", 1.0),
        ("def double(x): return abs(2 * x)", 0.5),
        ("def double(x): return 2.0 * x", 0.0),
        ("def double(x): return x.y", 0.0),
        ("def double(x:", 0.0),
        ("raise SystemExit", 0.0),
        ("import os; os.kill(os.getpid(), 9)", 0.0),
        ("def double(x): return bytearray(1 << 30) and 2 * x", 0.0),
        ("def double(x): return 'x' * 5_000_000", 0.0),
    ],
)
def test_the_reward_is_the_share_of_tests(pool: VerifierPool, program: str, reward: float) -> None:
    found = judged(pool, program)
    assert found.reward == reward
    assert found.verdict is (Verdict.CORRECT if reward == 1.0 else Verdict.INCORRECT)


def test_no_program_is_no_answer(pool: VerifierPool) -> None:
    assert pool.verify([Item("", "2 * x", True, "", ROW)])[0].reward == 0.0


def test_a_program_that_hangs_has_not_passed(pool: VerifierPool) -> None:
    began = time.monotonic()
    found = judged(pool, "while True: pass")
    assert (found.verdict, found.reward) == (Verdict.INCORRECT, 0.0)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize(
    "attempt",
    [
        "open({path!r}, 'w').write('x')",
        "import os; os.system('touch ' + {path!r})",
        "import subprocess; subprocess.run(['touch', {path!r}])",
        "import os; os.fork() or open({path!r}, 'w')",
    ],
)
def test_what_is_not_allowed_leaves_nothing(
    pool: VerifierPool, tmp_path: Path, attempt: str
) -> None:
    path = tmp_path / "made"
    program = f"{attempt.format(path=str(path))}\ndef double(x): return 2 * x"
    assert judged(pool, program).reward == 0.0
    assert not path.exists()


def test_what_is_expected_is_not_there_to_be_read(pool: VerifierPool) -> None:
    program = "import sys, gc\ndef double(x): return sys.argv and [o for o in gc.get_objects()][:0]"
    assert judged(pool, program).reward == 0.0
