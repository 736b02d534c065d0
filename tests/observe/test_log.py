"""The log of a run, through kills and resumes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rft_jax.errors import DataError, UserError
from rft_jax.observe.log import MetricsLog, Value, read


def write_steps(folder: Path, start: int, end: int, *, note: float = 0.0) -> None:
    """What a loop does: evaluate every second step, the first included."""
    log = MetricsLog(folder, start)
    for step in range(start, end + 1):
        if step > start:
            log.write("train", step, {"note": note})
        if step % 2 == 0:
            log.write("validation", step, {"greedy/accuracy": 0.5})
    log.close()


def keys(folder: Path) -> list[tuple[str, int]]:
    return [(line["kind"], line["step"]) for line in read(folder / "metrics.jsonl")]


def test_a_line_is_on_disk_at_once_and_reads_as_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run", 0)
    log.write("train", 1, {"a/b": 0.25, "n": 3, "bins": [1, 0, 2]})
    lines = read(tmp_path / "run" / "metrics.jsonl")
    log.close()
    assert lines == [{"step": 1, "kind": "train", "a/b": 0.25, "n": 3, "bins": [1, 0, 2]}]


def test_numpy_values_are_written_as_plain_numbers(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.write(
        "test", 1, {"a": np.float32(0.5), "b": np.array(2), "c": np.arange(3), "d": np.bool_(True)}
    )
    log.close()
    (line,) = read(tmp_path / "metrics.jsonl")
    assert (line["a"], line["b"], line["c"], line["d"]) == (0.5, 2, [0, 1, 2], 1)


def test_what_is_not_finite_is_null_and_the_file_stays_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    log.write("train", 1, {"a": math.nan, "b": -math.inf, "c": None, "d": [1.0, math.nan]})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the file"))
    assert (line["a"], line["b"], line["c"], line["d"]) == (None, None, None, [1.0, None])


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("a", np.array("high"), r"metric 'a' is 'high' \(str\): it must be a number or a flat"),
        ("a", np.ones((1, 1)), r"metric 'a' is \[1\.0\] \(list\)"),
        ("step", 3, "a metric is named 'step', which every line has: rename it"),
        ("kind", 3, "a metric is named 'kind'"),
    ],
)
def test_other_values_are_refused(tmp_path: Path, name: str, value: Value, text: str) -> None:
    log = MetricsLog(tmp_path, 0)
    with pytest.raises(UserError, match=text):
        log.write("train", 1, {name: value})
    log.close()


@pytest.mark.parametrize("resume_at", range(5))
@pytest.mark.parametrize("half", ["", '{"step": 5, "kind": "tr'])
def test_a_killed_and_resumed_run_has_every_line_once(
    tmp_path: Path, resume_at: int, half: str
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    write_steps(whole, 0, 6)
    write_steps(killed, 0, 4)
    with (killed / "metrics.jsonl").open("a") as file:
        file.write(half)
    write_steps(killed, resume_at, 6, note=1.0)
    assert keys(killed) == keys(whole)
    assert len(set(keys(killed))) == len(keys(killed))
    notes = [line["note"] for line in read(killed / "metrics.jsonl") if line["kind"] == "train"]
    assert notes == [0.0] * resume_at + [1.0] * (6 - resume_at)


def test_a_line_that_is_there_stays(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0)
    assert not log.has("validation", 0)
    log.write("validation", 0, {"a": 1})
    log.write("validation", 0, {"a": 2})
    assert log.has("validation", 0)
    log.close()
    log = MetricsLog(tmp_path, 0)
    assert log.has("validation", 0)
    log.close()
    assert [line["a"] for line in read(tmp_path / "metrics.jsonl")] == [1]


def test_lines_are_dropped_by_replacing_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_steps(tmp_path, 0, 4)
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def power_cut(self: Path, target: Path) -> Path:
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", power_cut)
        with pytest.raises(OSError, match="power cut"):
            MetricsLog(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    MetricsLog(tmp_path, 2).close()
    assert keys(tmp_path) == [
        ("validation", 0), ("train", 1), ("train", 2), ("validation", 2),
    ]  # fmt: skip
    assert not list(tmp_path.glob("*.draft"))


def test_a_log_without_later_lines_is_not_touched(tmp_path: Path) -> None:
    write_steps(tmp_path, 0, 4)
    path = tmp_path / "metrics.jsonl"
    os.utime(path, (1, 1))
    inode = path.stat().st_ino
    MetricsLog(tmp_path, 4).close()
    assert path.stat().st_ino == inode


def test_damage_inside_the_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "kind": "train"}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:1: field 'kind' is missing"):
        MetricsLog(tmp_path, 1)


def test_tensorboard_has_the_scalars_and_hides_dropped_ones(tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    log = MetricsLog(tmp_path, 7)
    log.write("train", 8, {"pass_rate": 0.5, "bins": [4, 5], "nothing": None})
    log.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    data, events = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        body = data[12 : 12 + size]
        assert int.from_bytes(data[12 + size : 16 + size], "little") == masked_crc32c(body)
        events.append(Event.FromString(body))
        data = data[16 + size :]
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in events
        for value in event.summary.value
    }
    assert scalars == {
        ("train/pass_rate", 8): 0.5, ("train/bins/00", 8): 4.0, ("train/bins/01", 8): 5.0,
    }  # fmt: skip
    # TensorBoard drops what it has of steps from here on.
    assert [event.step for event in events if event.HasField("session_log")] == [8]


def test_no_other_framework_is_imported(tmp_path: Path) -> None:
    """Also where it is installed."""
    for name in ("torch", "tensorflow"):
        (tmp_path / f"{name}.py").write_text("")
    code = (
        "import sys\nfrom pathlib import Path\nfrom rft_jax.observe.log import MetricsLog\n"
        "log = MetricsLog(Path('run'), 0)\nlog.write('train', 1, {'a': 1.5})\nlog.close()\n"
        "assert not {'torch', 'tensorflow', 'jax', 'grpc'} & set(sys.modules)"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        check=True,
        env=os.environ | {"PYTHONPATH": path},
    )


@given(st.dictionaries(st.text(min_size=1), st.floats() | st.integers(-(2**60), 2**60)))
def test_any_number_makes_one_line_of_json(values: dict[str, float]) -> None:
    import tempfile

    values = {name: value for name, value in values.items() if name not in ("step", "kind")}
    with tempfile.TemporaryDirectory() as folder:
        log = MetricsLog(Path(folder), 0)
        log.write("train", 1, values)
        log.close()
        (line,) = read(Path(folder) / "metrics.jsonl")
    for name, value in values.items():
        assert line[name] == (value if math.isfinite(value) else None)


def test_importing_the_log_needs_no_jax() -> None:
    code = "import sys, rft_jax.observe.log, rft_jax.observe.progress, rft_jax.observe.statistics\n"
    code += "assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
