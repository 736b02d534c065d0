"""The command line, with the training itself replaced: what is called, printed and returned."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
import tiny

from rft_jax.checkpoint import provenance
from rft_jax.commands import main as cli
from rft_jax.config.steps import Steps
from rft_jax.distributed import process as local_devices
from rft_jax.errors import ConfigError
from rft_jax.io.lock import held
from rft_jax.runs import run as loop
from rft_jax.runs import setup

FILE = "import tiny\n\ndef experiment():\n    return tiny.experiment()\n"
TESTS = os.pathsep.join(str(folder) for folder in Path(__file__).parents[1:3])
"""Folders of tiny and of the package."""


class Result(NamedTuple):
    """Stands for rft_jax.runs.run.RunResult."""

    steps_done: int
    finished: bool
    stopped_by: int = 0


class Runs:
    """Stands for rft_jax.runs.run.run: records its calls and answers from `results`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, Path]] = []
        self.profiles: list[Steps | None] = []
        self.results: dict[str, Result | BaseException] = {}

    def __call__(
        self,
        name: str,
        experiment: dict,
        workdir: Path,
        profile: Steps | None,
        at: Callable[[str], None],
        *,
        accept_changed: bool,
    ) -> Result:
        self.accepted = accept_changed
        self.calls.append((name, experiment[name].steps, workdir))
        self.profiles.append(profile)
        result = self.results.get(name, Result(3, True))
        if isinstance(result, BaseException):
            raise result
        return result


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Fake training and reporting."""
    fake = Runs()
    for name, members in {
        "rft_jax.report.page": {"write_report": lambda workdir: workdir / "report.html"},
        "rft_jax.report.tables": {"summary_table": lambda workdir: "the table"},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(loop, "run", fake)
    trained = types.SimpleNamespace(vocab_size=270)
    monkeypatch.setattr(setup, "ensure_tokenizer", lambda config, workdir: trained)
    return fake


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has an empty working directory with study.py, and leaves no global setting."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("study.py").write_text(FILE, encoding="utf-8")
    package = logging.getLogger("rft_jax")
    level, handlers = package.level, [*logging.getLogger().handlers]
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    settings = {name: jax.config.values[name] for name in names}
    yield
    package.setLevel(level)
    logging.getLogger().handlers[:] = handlers
    for name, value in settings.items():
        jax.config.update(name, value)


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line on stderr of a command that is refused."""
    assert cli.main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("rft-jax: error: ")
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("rft-jax: error: ").rstrip("\n")


def test_run_carries_out_all_runs_in_order(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "study.py"]) == 0
    workdir = Path("runs/study")
    assert runs.calls == [(name, 3, workdir) for name in ("sft", "rft", "online_rft")]
    assert capsys.readouterr().out == "the table\n\nreport: runs/study/report.html\n"
    assert json.loads((workdir / "experiment.json").read_text()) == {
        "experiment": "study.py",
        "runs": ["sft", "rft", "online_rft"],
    }
    assert [path.name for path in workdir.iterdir()] == ["experiment.json"]


def test_run_with_workdir_only_and_overrides(runs: Runs) -> None:
    args = ["--rft.steps", "9", "--only", "online_rft", "rft", "--workdir=w", "--sft.steps=5"]
    assert cli.main(["run", "study.py", *args]) == 0
    assert runs.calls == [("rft", 9, Path("w")), ("online_rft", 3, Path("w"))]


def test_steps_to_trace_are_those_of_every_run(runs: Runs) -> None:
    args = ["--profile", "steps", "2..3", "--only", "sft", "rft"]
    assert cli.main(["run", "study.py", *args]) == 0
    assert cli.main(["run", "study.py"]) == 0
    assert runs.profiles == [Steps(2, 3)] * 2 + [None] * 3


def test_a_finished_run_is_passed_with_a_line(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    runs.results["sft"] = Result(0, True)
    assert cli.main(["run", "study.py", "--only", "sft"]) == 0
    assert caplog.messages == ["sft: already finished"]


@pytest.mark.parametrize(
    ("stopped_by", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (0, 130)]
)
def test_a_stopped_run_ends_the_command(
    runs: Runs, capsys: pytest.CaptureFixture[str], stopped_by: int, status: int
) -> None:
    runs.results["rft"] = Result(1, False, stopped_by)
    assert cli.main(["run", "study.py"]) == status
    assert [call[0] for call in runs.calls] == ["sft", "rft"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ("rft-jax: run rft is stopped and saved; the same command resumes it.\n")


def test_ctrl_c_outside_the_loop(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.results["sft"] = KeyboardInterrupt()
    assert cli.main(["run", "study.py"]) == 130
    assert capsys.readouterr().err == "rft-jax: interrupted; the same command resumes it.\n"


def test_an_error_of_the_package_is_one_line(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    class OtherError(ConfigError):
        """An error of some room."""

    OtherError.__module__ = "rft_jax.data.sources"
    runs.results["sft"] = OtherError("questions.jsonl:3: no answer.")
    assert refusal(capsys, "run", "study.py") == "questions.jsonl:3: no answer."


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug")])
def test_any_other_error_keeps_its_traceback(runs: Runs, error: Exception) -> None:
    runs.results["sft"] = error
    with pytest.raises(type(error), match="a bug"):
        cli.main(["run", "study.py"])


def test_another_config_is_refused_before_any_run(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    provenance.save_config(Path("w/rft"), "rft", tiny.rft(seed=4), device="cpu", num_devices=1)
    assert refusal(capsys, "run", "study.py", "--workdir", "w") == (
        "w/rft holds a run with another config: seed is 0, was 4: use another --workdir or the "
        "old values."
    )
    assert runs.calls == []
    assert not Path("w/experiment.json").exists()
    # That run is not asked for here.
    assert cli.main(["run", "study.py", "--workdir", "w", "--only", "sft"]) == 0


def test_the_same_command_goes_on(runs: Runs) -> None:
    for _ in range(2):
        assert cli.main(["run", "study.py", "--workdir", "w"]) == 0
    assert len(runs.calls) == 6
    assert not runs.accepted
    assert cli.main(["run", "study.py", "--workdir", "w", "--accept_changed"]) == 0
    assert runs.accepted


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no command: one of run, study, plan, report, methods, tokenizer, sample, evaluate, "
         "convert, verify is expected; see --help."),
        (["rum"], "unknown command 'rum'; did you mean run?"),
        (["xyz"], "unknown command 'xyz'."),
        (["run"], "rft-jax run is followed by nothing: EXPERIMENT is expected; see --help."),
        (["run", "--workdir", "w"],
         "rft-jax run is followed by --workdir: EXPERIMENT is expected; see --help."),
        (["run", "stud.py"], "experiment file stud.py does not exist; did you mean study.py?"),
        (["run", "study.py", "sft"],
         "unexpected argument 'sft': options are written --NAME value."),
        (["run", "study.py", "--workdir"], "--workdir takes one value, found none."),
        (["run", "study.py", "--workdir", "a", "b"], "--workdir takes one value, found 2: a b."),
        (["run", "study.py", "--workdir", "study.py"],
         "--workdir study.py is a file: a folder is expected."),
        (["run", "study.py", "--only"], "--only takes one or more values, found none."),
        (["run", "study.py", "--only", "online"],
         "only names 'online', which is no run; did you mean online_rft?"),
        (["run", "study.py", "--profile", "steps", "3-5"],
         "--profile takes `steps FIRST..LAST`, such as `steps 3..5` or `steps 3..3`, found "
         "'steps 3-5'."),
        (["run", "study.py", "--profile", "steps", "3..5"],
         "profile is 'steps 3..5' and run sft ends with step 3: name steps that it has, or leave "
         "the run out (--only)."),
        (["run", "study.py", "--profiles", "steps", "3..5"],
         "unknown option --profiles; did you mean --profile?"),
        (["run", "study.py", "--workdri", "w"],
         "unknown option --workdri; did you mean --workdir?"),
        (["run", "study.py", "--sft.stepz", "3"],
         "unknown option --sft.stepz; did you mean --sft.steps?"),
        (["report"], "rft-jax report is followed by nothing: WORKDIR is expected; see --help."),
        (["report", "w", "--only", "sft"], "unknown option --only."),
        (["tokenizer", "study.py", "--workdirs", "w"],
         "unknown option --workdirs; did you mean --workdir?"),
        (["tokenizer", "study.py", "--only", "sft"], "unknown option --only."),
        (["tokenizer", "study.py", "--profile", "steps", "1..2"], "unknown option --profile."),
        (["sample"], "rft-jax sample is followed by nothing: CHECKPOINT is expected; see --help."),
        (["sample", "w/sft", "--samples_per_question", "x"],
         "--samples_per_question is 'x': INT is expected."),
        (["sample", "w/sft", "--out", "o"],
         "--questions is missing: give the source of the questions: jsonl:PATH or "
         "tfds:NAME/SPLIT, with a slice such as [:100] if wanted."),
        (["evaluate", "w/sft", "--outs", "o"], "unknown option --outs; did you mean --out?"),
        (["convert", "w/sft", "--dtype", "float32"],
         "rft-jax convert w/sft is followed by --dtype: OUT is expected; see --help."),
        (["convert", "w/sft", "out"],
         "w/sft: the checkpoint is missing: name the folder of a run (WORKDIR/RUN) or of "
         "a model in the Hugging Face format, or hf:ORG/NAME of the hub."),
        (["verify", "--out", "o"],
         "rft-jax verify is followed by --out: FILE is expected; see --help."),
    ],
)  # fmt: skip
def test_a_bad_command_is_refused_in_one_line(
    runs: Runs, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert refusal(capsys, *args) == message
    assert runs.calls == []


def test_a_workdir_of_another_experiment_is_refused(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "study.py", "--workdir", "w"]) == 0
    capsys.readouterr()
    Path("other.py").write_text(FILE, encoding="utf-8")
    assert refusal(capsys, "run", "other.py", "--workdir", "w") == (
        "w holds experiment study.py, not other.py: use another --workdir."
    )
    Path("w/experiment.json").write_text("[", encoding="utf-8")
    assert refusal(capsys, "run", "study.py", "--workdir", "w") == (
        "w/experiment.json is damaged: remove it or use another --workdir."
    )


def test_report(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "w"]) == 0
    assert capsys.readouterr().out == "the table\n\nreport: w/report.html\n"


def test_tokenizer(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tokenizer", "study.py"]) == 0
    assert capsys.readouterr().out == "runs/study/tokenizer.model: 270 pieces\n"


def test_tokenizer_that_is_not_trained(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    text = "import tiny\nfrom rft_jax.config import TokenizerConfig\n\ndef experiment():\n"
    text += "    return {'sft': tiny.sft(tokenizer=TokenizerConfig(path='a.model'))}\n"
    Path("study.py").write_text(text, encoding="utf-8")
    assert refusal(capsys, "tokenizer", "study.py") == (
        "study.py: every run loads its tokenizer.path: there is none to train."
    )


@pytest.mark.parametrize("args", [["--help"], ["-h"]])
def test_help(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: rft-jax COMMAND")
    for command in ("run", "plan", "report", "sample", "convert"):
        assert f"\n  rft-jax {command} " in out
    assert max(len(line) for line in out.splitlines()) <= 100


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("run", "--workdir STR"), ("study", "--seeds INT"), ("plan", "--topology STR"),
        ("report", "-h, --help"),
        ("tokenizer", "--workdir STR"), ("sample", "--greedy"), ("evaluate", "--verifier STR"),
        ("convert", "--max_shard_gb FLOAT"), ("verify", "--skip_bad"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", [[], ["--x"]])
def test_help_of_a_command(
    command: str, option: str, before: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, *before, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: rft-jax {command} ")
    assert f"\n  {option}" in out
    assert max(len(line) for line in out.splitlines()) <= 100


def test_help_of_an_experiment(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "study.py", "--help"]) == 0
    out = capsys.readouterr().out
    for word in (
        "--workdir",
        "--only",
        "--profile steps",
        "--RUN.steps",
        "  rollout ",
    ):
        assert word in out
    assert runs.calls == []
    assert len(out.splitlines()) <= 150
    for command in ("run", "plan"):
        assert cli.main([command, "study.py", "--help", "rollout"]) == 0
        assert "--RUN.rollout.temperature FLOAT" in capsys.readouterr().out
    assert refusal(capsys, "run", "study.py", "--help", "roll") == (
        "--help roll: there is no such section; did you mean rollout?"
    )
    assert runs.calls == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == "rft-jax 0.1.0\n"


def test_compilations_are_kept_where_the_user_says(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    here = str(Path("here").absolute())
    monkeypatch.setattr(local_devices, "CACHE_DIR", here)
    assert cli.main(["run", "study.py", "--only", "sft"]) == 0
    assert jax.config.values["jax_compilation_cache_dir"] == here
    assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == 0.5
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "there")
    monkeypatch.setattr(local_devices, "CACHE_DIR", "elsewhere")
    assert cli.main(["run", "study.py", "--only", "sft"]) == 0
    assert jax.config.values["jax_compilation_cache_dir"] == here


def test_absl_speaks_from_warning() -> None:
    script = """
import logging, absl.logging
from rft_jax.commands import main as cli
cli.main(["--version"])
logging.getLogger("absl").info("quiet")
logging.getLogger("absl").warning("absl speaks")
logging.getLogger("jax").info("quiet")
logging.getLogger("rft_jax.runs.run").info("we speak")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["absl speaks", "we speak"]


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["run", "study.py", "--help"],
        ["plan", "study.py", "--help", "model"],
        ["run", "study.py", "--sft.stepz", "3"],
        ["plan", "study.py", "--sft.steps", "three"],
        ["run", "study.py", "--only", "stf"],
        ["tokenizer", "study.py", "--workdirs", "w"],
        ["sample", "--help"],
        ["evaluate", "w/sft", "--questions", "jsonl:q", "--outs", "o"],
        ["convert", "w/sft", "out", "--dtype", "int8"],
    ],
)
def test_help_and_errors_import_no_jax(args: list[str]) -> None:
    script = (
        "import sys\nfrom rft_jax.commands import main as cli\nstatus = cli.main(sys.argv[1:])\n"
        "slow = {'jax', 'numpy', 'flax', 'optax', 'orbax'} & set(sys.modules)\n"
        "assert not slow, slow\nsys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *args],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": TESTS},
    )  # fmt: skip
    assert done.returncode == (0 if "--help" in args else 2), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["run", "study.py", "--help"]])
def test_a_reader_that_has_enough_is_no_error(args: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "rft_jax", *args],
            stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
            env=os.environ | {"PYTHONPATH": TESTS},
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize(
    "args", [["sample", "w/sft", "--questions", "jsonl:q", "--out", "o"], ["convert", "w", "out"]]
)
def test_a_bad_checkpoint_is_found_without_jax(args: list[str]) -> None:
    script = (
        "import sys\nfrom rft_jax.commands import main as cli\nstatus = cli.main(sys.argv[1:])\n"
        "assert 'jax' not in sys.modules\nsys.exit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "the checkpoint is missing" in done.stderr


def test_python_m_rft_jax_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rft_jax", "rum"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "rft-jax: error: unknown command 'rum'; did you mean run?\n"


def test_memory_that_runs_out_is_one_line(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.results["sft"] = MemoryError("of 3 GiB")
    assert refusal(capsys, "run", "study.py").startswith("out of memory (of 3 GiB): lower ")


def test_a_run_at_work_elsewhere_is_refused_and_others_are_not(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("w").mkdir()
    with held([Path("w/rft.lock")]):
        assert cli.main(["run", "study.py", "--workdir", "w"]) == 75
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"rft-jax: error: w/rft.lock: process {os.getpid()} on ")
        assert runs.calls == []
        assert cli.main(["run", "study.py", "--workdir", "w", "--only", "sft"]) == 0
    assert cli.main(["run", "study.py", "--workdir", "w"]) == 0
    assert not list(Path("w").glob("*.lock"))


def test_drafts_of_killed_processes_are_removed(runs: Runs) -> None:
    for folder in ("w/plots", "w/sft/policy"):
        Path(folder).mkdir(parents=True)
        Path(folder, "a.json.4194305.tmp").write_text("half")
    assert cli.main(["run", "study.py", "--workdir", "w"]) == 0
    assert not list(Path("w").rglob("*.tmp"))


def test_a_full_disk_is_one_line_to_start_again_from(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.results["sft"] = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert cli.main(["run", "study.py", "--workdir", "w"]) == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rft-jax: error: w: cannot write here (No space left on device): free")


@pytest.mark.parametrize(
    ("leaves", "said"),
    [("sys.exit(0)", ": 0"), ("raise SystemExit", ""), ("sys.exit('enough')", ": enough")],
)
def test_an_experiment_that_leaves_is_an_error(
    capsys: pytest.CaptureFixture[str], leaves: str, said: str
) -> None:
    Path("study.py").write_text(f"import sys\n{leaves}\n", encoding="utf-8")
    assert refusal(capsys, "run", "study.py") == f"study.py:2: SystemExit{said}"


def test_code_of_a_user_that_leaves_amid_a_run_is_an_error(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.results["sft"] = SystemExit(0)
    assert "called sys.exit(0)" in refusal(capsys, "run", "study.py")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "study.py", "--workdir", "w" * 300], f"{'w' * 300}: File name too long."),
        (["run", "study.py", "--only", "x"], "only names 'x', which is no run: there are sft, "),
        (
            ["run", "study.py", "--steps", "2"],
            "unknown option --steps: it is a field of runs, --al",
        ),
        (
            ["run", "study.py", "--help", "bogus"],
            "--help bogus: there is no such section: there are ",
        ),
        (
            ["sample", "c", "--questions", "jsonl:q", "--out", "."],
            "--out . is a folder: name a file",
        ),
        (["evaluate", "c", "--questions", "q", "--out", "study.py"], "--out study.py is no folder"),
    ],
)
def test_dead_ends_say_where_to_go(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert refusal(capsys, *args).startswith(message)


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-", "2>&1 | head -c 0"])
def test_closed_streams_stop_nothing(closed: str) -> None:
    command = (
        f"set -o pipefail; {sys.executable} -m rft_jax verify in.jsonl --out out.jsonl {closed}"
    )
    Path("in.jsonl").write_text('{"reference": "1", "output": "#### 1"}\n', encoding="utf-8")
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "PYTHONPATH": TESTS}, check=False
    )
    assert done.returncode in ((0, 141) if "head" in closed else (0,))
    assert json.loads(Path("out.jsonl").read_text(encoding="utf-8"))["verdict"] == "correct"


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["JAX_NUM_CPU_DEVICES=x", "JAX_ENABLE_X64=maybe"])
def test_a_malformed_variable_is_one_line(variable: str) -> None:
    name, _, value = variable.partition("=")
    done = subprocess.run(
        [sys.executable, "-m", "rft_jax", "run", "study.py"],
        env={**os.environ, "PYTHONPATH": TESTS, name: value},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("rft-jax: error: ")
    assert name.lower() in line.lower()
