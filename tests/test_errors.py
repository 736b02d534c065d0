"""What holds of every message, and which errors are a lack of memory."""

from __future__ import annotations

import jax
import pytest

from rft_jax.errors import LONGEST, ConfigError, out_of_memory


def test_a_message_is_one_line() -> None:
    assert str(ConfigError("workdir is a\nb\r\nc: no.")) == r"workdir is a\nb\nc: no."


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    text = str(ConfigError(f"--out is {'x' * 10**5}: a file is expected."))
    assert text.startswith("--out is xxx")
    assert text.endswith("xxx: a file is expected.")
    assert len(text) == LONGEST + len(" ... ")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes"), True),
        (jax.errors.JaxRuntimeError("INTERNAL: Error: Out of memory allocating 1 bytes"), True),
        (jax.errors.JaxRuntimeError("INTERNAL: something else"), False),
        (ValueError("Out of memory"), False),
    ],
)
def test_out_of_memory(error: Exception, expected: bool) -> None:
    assert out_of_memory(error) is expected
