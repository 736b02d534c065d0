"""Workdirs in a bucket, through the client and the HTTP of real ones: a server of this machine
stands in for Google's."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import tiny
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import HANDLERS, create_server
from jobs import WAIT_SECONDS, Study, of_all, one_refused
from killing import RUNS, assert_same, files_in

from rft_jax.checkpoint import integrity
from rft_jax.checkpoint import policy as policies
from rft_jax.checkpoint.provenance import check_same_config, load_config
from rft_jax.checkpoint.start import merged
from rft_jax.commands.main import main
from rft_jax.config.steps import Steps
from rft_jax.errors import ConfigError, DataError, TemporaryError
from rft_jax.io import lock
from rft_jax.io.drafts import Process, this_process
from rft_jax.io.paths import Folder, Mirror, folder_of, in_bucket, write_atomically, write_new
from rft_jax.observe.profiling import open_profiler
from rft_jax.rollout import log as rollout_log
from rft_jax.types import Question, Sample, Verdict

BUCKET = "gs://runs-of-tests"
STEPS = 4
OPTIONS = (
    *of_all(f"steps={STEPS}", "evaluation.every_steps=2"),
    *of_all("checkpoint.every_steps=2", runs=RUNS[:2]),
    *of_all("evaluation.samples_per_question=4"),
    "--rft.pool.rollout_steps=2",
    "--online_rft.checkpoint.every_steps=1",
)


def _download(request: Any, response: Any, storage: Any, *more: Any) -> None:
    """With what TensorStore asks for: which generation of the object it is."""
    _PLAIN_DOWNLOAD(request, response, storage, *more)
    with contextlib.suppress(NotFound):
        found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
        response["x-goog-generation"] = found["generation"]


def _insert(request: Any, response: Any, storage: Any, *more: Any) -> None:
    """With a condition on what is there, as of Google's server: the last of its answers decides."""
    wanted = request.query.get("ifGenerationMatch")
    if wanted:
        names = request.query.get("name") or [request.data["meta"]["name"]]
        there = "0"
        with contextlib.suppress(NotFound):
            bucket = request.params["bucket_name"]
            there = storage.get_file_obj(bucket, names[0])["generation"]
        if wanted != [there]:
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
    _PLAIN_INSERT(request, response, storage, *more)


_PLAIN_DOWNLOAD, _PLAIN_INSERT = objects.download, objects.insert


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    # Of gcsfs and of TensorStore, which Orbax writes arrays with.
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)  # of each miss
    names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, address)
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # it asks for the kind of bucket
        for plain, ours in ((_PLAIN_DOWNLOAD, _download), (_PLAIN_INSERT, _insert)):
            patch.setattr(objects, plain.__name__, ours)
            for _, of_path in HANDLERS:
                for method in [method for method, one in of_path.items() if one is plain]:
                    patch.setitem(of_path, method, ours)
        server = create_server("127.0.0.1", port, True, default_bucket=BUCKET[5:])
        server.start()
        try:
            yield
        finally:
            server.stop()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(tmp_path_factory.mktemp("study"), OPTIONS)


def test_objects_are_there_whole_and_replaced() -> None:
    path = folder_of(f"{BUCKET}/objects/facts.json")
    assert in_bucket(path)
    assert not path.exists()
    for content in ("old", "new", "2" * 2**21, "8" * 2**23, "small"):
        write_atomically(path, content)
        assert path.read_text() == content
    assert [one.name for one in path.parent.iterdir()] == ["facts.json"]


@pytest.mark.slow
def test_of_two_that_make_an_object_one_does() -> None:
    client = fsspec.filesystem("gs")
    for name, options in (("simple", {}), ("resumable", {"chunksize": 2**18})):
        path, data = f"{BUCKET}/made/{name}", b"1" * (2**18 + 1)
        client.pipe_file(path, data, mode="create", **options)
        with pytest.raises(FileExistsError):
            client.pipe_file(path, data[1:], mode="create", **options)
        assert client.cat_file(path) == data
    assert write_new(folder_of(f"{BUCKET}/made/here"), "1")
    assert not write_new(folder_of(f"{BUCKET}/made/here"), "2")


@pytest.mark.slow
def test_a_lock_in_a_bucket_has_one_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    paths: Any = [folder_of(f"{BUCKET}/locks/{name}.lock") for name in ("sft", "rft")]
    for text in _at_once(8, paths):
        assert f"{paths[0]}: process {os.getpid()} on " in text
    assert not paths[0].parent.exists()
    # Left by a killed process of this machine, in the midst of taking it over from another.
    with subprocess.Popen([sys.executable, "-c", ""]) as other:
        pass
    here = this_process()
    for name in ("sft.lock", "sft.lock.claim", "rft.lock"):
        write_atomically(paths[0].with_name(name), _lock_of(here._replace(pid=other.pid)))
    assert all("is at work here since" in text for text in _at_once(8, paths))
    assert not paths[0].parent.exists()
    # Of another machine: dead, and alive. Times in a bucket are whole seconds.
    monkeypatch.setattr(lock, "STALE_SECONDS", 1.5)
    elsewhere = _lock_of(Process("elsewhere", 7, 7))
    for path in paths:
        write_atomically(path, elsewhere)
    told: list[str] = []
    with lock.held(paths, told.append):
        assert len(told) == 1
        assert {json.loads(path.read_text())["pid"] for path in paths} == {os.getpid()}
    monkeypatch.setattr(lock, "STALE_SECONDS", 60.0)
    write_atomically(paths[0], elsewhere)
    beat = threading.Timer(1.1, lambda: write_atomically(paths[0], elsewhere))
    beat.start()
    with pytest.raises(TemporaryError, match="process 7 on"), lock.held(paths):
        pass
    beat.join()


def _at_once(count: int, paths: Any) -> list[str]:
    """One holds the locks; what kept each of the others from it."""
    outcomes: list[str] = []
    ready, over = threading.Barrier(count), threading.Event()

    def start() -> None:
        ready.wait()
        try:
            with lock.held(paths):
                outcomes.append("")
                over.wait(WAIT_SECONDS)
        except Exception as error:
            outcomes.append(f"{type(error).__name__} {error}")

    threads = [threading.Thread(target=start) for _ in range(count)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + WAIT_SECONDS
    while len(outcomes) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    over.set()
    for thread in threads:
        thread.join()
    refused = [text for text in outcomes if text.startswith("TemporaryError ")]
    assert sorted([*refused, ""]) == sorted(outcomes)
    return refused


def _lock_of(process: Process) -> str:
    return json.dumps({"host": "node7", **process._asdict(), "since": "2026-01-01T00:00:00+00:00"})


@pytest.mark.slow
def test_what_another_process_writes_is_seen(study: Study) -> None:
    """Nobody's list of a folder is an old one."""
    folder = folder_of(f"{BUCKET}/seen")
    write_atomically(folder / "one", "1")
    assert [path.name for path in folder.iterdir()] == ["one"]
    code = (
        "from rft_jax.io.paths import folder_of, write_atomically;"
        f"write_atomically(folder_of('{BUCKET}/seen/two'), '2')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert sorted(path.name for path in folder.iterdir()) == ["one", "two"]
    assert sorted(path.name for path in folder.glob("t*")) == ["two"]


def test_a_mirror_copies_what_has_changed() -> None:
    folder = folder_of(f"{BUCKET}/mirror")
    write_atomically(folder / "log", "1\n")
    mirror = Mirror(folder)
    path = mirror.fetch("log")
    assert path.read_text() == "1\n"
    (mirror.local / "inner").mkdir()
    (mirror.local / "inner" / "other").write_text("a")
    for number in range(2, 9):
        with path.open("a") as file:
            file.write(f"{number}\n")
        mirror.copy_soon()
    mirror.copy()
    lines = "".join(f"{number}\n" for number in range(1, 9))
    assert (folder / "log").read_text() == lines
    assert (folder / "inner" / "other").read_text() == "a"
    path.write_text("last")
    mirror.close()
    assert (folder / "log").read_text() == "last"
    assert not mirror.local.exists()


def test_a_trace_is_copied_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, steps in (("traced", Steps(1, 1)), ("plain", None)):
        folder = folder_of(f"{BUCKET}/{name}")
        with open_profiler(folder, steps, done=0) as profiler, profiler.step(1):
            pass
        traces = list((folder / "profile").glob("plugins/profile/*/*.trace.json.gz"))
        assert len(traces) == (steps is not None)
    assert not list(tmp_path.iterdir())


def test_a_bucket_that_is_not_there_is_one_line(
    study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = "gs://no-such-bucket-here/work"
    assert main(["run", str(study.file), "--workdir", workdir]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rft-jax: error: {workdir}: cannot write here (")


def test_what_is_missing_or_misplaced_in_a_bucket_shows(caplog: pytest.LogCaptureFixture) -> None:
    run = folder_of(f"{BUCKET}/records/run")
    for step in (2, 4):
        path = run / "checkpoints" / str(step)
        for name in ("params/d/0", "commit_success.txt"):
            write_atomically(path / name, f"{step}")
        integrity.write_record(path, None)
    kept = run / "checkpoints"
    for name in ("params/d/0", "files.json", "commit_success.txt"):  # renamed to 9
        write_atomically(
            run / f"checkpoints/9/{name}", (run / f"checkpoints/4/{name}").read_bytes()
        )
    found = integrity.newest_whole(kept)
    assert found.step == 4
    assert [damaged.reason for damaged in found.damaged] == [
        "it is that of step 4: the folder was renamed"
    ]
    with pytest.raises(ConfigError, match=r"config.json, .* is missing, and there is checkpoints"):
        check_same_config(run, tiny.sft())
    question = Question(0, "1+1?", "2")
    facts: Any = {"text": "2", "tokens": (5,), "log_probs": (-1.0,), "finished": True}
    samples = [Sample(0, n, 0, verdict=Verdict.CORRECT, reason="", **facts) for n in range(2)]
    rollout_log.write(run / "rollouts", 0, samples, [question], seed=0)
    assert rollout_log.is_whole(run / "rollouts", 0, 2)
    path = rollout_log.path_of(run / "rollouts", 0)
    write_atomically(path, path.read_bytes()[:-9])
    assert not rollout_log.is_whole(run / "rollouts", 0, 2)
    assert "sampled again, as it is damaged" in caplog.text
    with pytest.raises(DataError, match=r"step-000000.jsonl:2: .* is not JSON"):
        rollout_log.read_folders([f"{run}/rollouts"])


# A whole study, killed twice


@pytest.fixture(scope="module")
def on_disk(study: Study) -> Folder:
    workdir = study.folder / "whole"
    with study.start(workdir, 2, 4) as job:
        job.finish()
    return workdir


@pytest.fixture(scope="module")
def killed(study: Study) -> Folder:
    """A job resumes each time as on machines that have nothing of it, the first beside one that is
    refused; once its newest checkpoint is damaged."""
    workdir: Any = folder_of(f"{BUCKET}/killed")
    for run, count in (("sft", 2), ("online_rft", 1)):
        with contextlib.ExitStack() as stack:
            started = [study.start(workdir, 2, 4, "--lost_after", "5") for _ in range(count)]
            for each in started:
                stack.enter_context(each)
            job = one_refused(started)[0] if count == 2 else started[0]
            saved = workdir / run / "checkpoints" / "2" / "commit_success.txt"
            deadline = time.monotonic() + WAIT_SECONDS
            while not saved.exists():
                assert time.monotonic() < deadline, job.told()
                assert job.processes[0].poll() is None, job.told()
                time.sleep(0.05)
            job.signal(0, signal.SIGKILL)
            assert all(job.statuses())
    folder = workdir / "online_rft" / "checkpoints"
    # The kill may have left one beyond these half written; now there is one for sure.
    steps = [int(path.parent.name) for path in folder.glob("*/commit_success.txt")]
    (folder / str(max(steps)) / "params" / "_METADATA").unlink()
    write_atomically(folder / str(min(max(steps) + 1, STEPS)) / "params" / "manifest.ocdbt", "half")
    with study.start(workdir, 2, 4) as job:
        job.finish()
    assert "this checkpoint is damaged" in job.errors(0)
    return workdir


@pytest.mark.slow
def test_a_job_killed_in_a_bucket_ends_with_the_bits_of_one_on_a_disk(
    killed: Any, on_disk: Any
) -> None:
    assert_same(on_disk, killed, STEPS)
    named = {path.name for path in (killed / "sft").iterdir()}
    assert {"tensorboard", "policy", "config.json", "finished.json"} <= named
    assert b"<html" in (killed / "report.html").read_bytes()


@pytest.mark.slow
def test_commands_read_a_bucket(
    killed: Any, on_disk: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(killed)]) == 0
    assert f"report: {killed}/report.html" in capsys.readouterr().out
    assert load_config(killed / "rft").init_from == "run:sft"
    pairs = rollout_log.read_folders([f"{killed}/online_rft/rollouts"])
    assert len(pairs) == STEPS * 8 * 4
    for which in ("", "@3"):
        here = merged(policies.find(f"{killed}/online_rft{which}"))
        there = merged(policies.find(f"{on_disk}/online_rft{which}"))
        np.testing.assert_array_equal(here["embedding"], there["embedding"])


@pytest.mark.slow
def test_other_data_than_those_of_a_run_in_a_bucket_are_refused(killed: Any, study: Study) -> None:
    """By a job of two processes; the run is finished, and is to be resumed."""
    questions, finished = study.folder / "questions.jsonl", killed / "rft/finished.json"
    kept, end = questions.read_text(), finished.read_text()
    try:
        questions.write_text(kept.replace('"answer": "3"', '"answer": "4"'))
        for _ in range(2):
            with study.start(killed, 2, 4, "--only", "rft") as job:
                assert job.statuses() == [2, 2], job.told()
                (line,) = (text for text in job.errors(0).splitlines() if "error:" in text)
            assert f"{killed}/rft: the run rests on other content now: data.train (" in line
            finished.unlink(missing_ok=True)
    finally:
        questions.write_text(kept)
        finished.write_text(end)


@pytest.mark.slow
def test_any_checkpoint_in_a_bucket_is_a_policy(
    killed: Any, on_disk: Any, study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a run that is finished, and of one that is not."""
    asked = ["--questions", f"jsonl:{study.folder}/questions.jsonl[:4]"]
    caplog.set_level("INFO", "rft_jax")

    def made(workdir: Any, command: str, policy: str, *options: str) -> dict[str, bytes]:
        folder = tmp_path / f"{command}-{workdir.name}"
        out = folder / "rows.jsonl" if command == "sample" else folder
        folder.mkdir()
        to = [str(out)] if command == "convert" else [*options, "--out", str(out)]
        assert main([command, f"{workdir}/{policy}", *to]) == 0
        # The model card says more of where it is from.
        names = {name: data for name, data in files_in(folder).items() if name != "README.md"}
        return {
            name: data.replace(bytes(str(workdir), "utf-8"), b"") for name, data in names.items()
        }

    def alike(command: str, policy: str, *options: str) -> None:
        ours = made(killed, command, policy, *options)
        assert ours
        assert ours == made(on_disk, command, policy, *options)

    alike("sample", "online_rft@best", *asked)
    alike("convert", "online_rft@3")
    ends = [workdir / "online_rft" / "finished.json" for workdir in (killed, on_disk)]
    kept = [end.read_text() for end in ends]
    for end in ends:
        end.unlink()
    try:
        alike("evaluate", "online_rft", *asked)
    finally:
        for end, text in zip(ends, kept, strict=True):
            end.write_text(text)
    said = f"{killed}/online_rft: step {STEPS} of {STEPS}, which are not all made yet"
    assert said in caplog.text


@pytest.mark.slow
def test_jobs_start_from_any_checkpoint_and_make_more_steps(
    killed: Any, on_disk: Any, study: Study
) -> None:
    """In a bucket the same bits as on a disk."""
    file = study.folder / "more" / study.file.name  # the same experiment, with two more runs
    file.parent.mkdir()
    file.write_text(
        "from dataclasses import replace\n"
        + study.file.read_text().replace("return ", "runs = ")
        + "    short = replace(runs['sft'], steps=1, optimizer=runs['online_rft'].optimizer)\n"
        "    more = {'at_step': 'run:sft@2', 'at_best': 'run:online_rft@best'}\n"
        "    return runs | {run: replace(short, init_from=more[run]) for run in more}\n"
    )
    more = {"online_rft": STEPS + 2, "at_step": 1, "at_best": 1}
    changed = of_all(
        f"steps={STEPS + 2}", "evaluation.every_steps=1", "checkpoint.keep_best=1",
        runs=["online_rft"],
    )  # fmt: skip
    names = {option.partition("=")[0] for option in changed}
    kept = [option for option in OPTIONS if option.partition("=")[0] not in names]
    slow = of_all("optimizer.learning_rate=1e-6", runs=("at_step", "at_best"))
    longer = replace(study, options=(*kept, *changed, *slow, "--only", *more))
    for workdir in (on_disk, killed):
        with longer.start(workdir, 2, 4, file=file) as job:
            job.finish()
    for run, steps in more.items():
        assert_same(on_disk, killed, steps, [run])
    changes = json.loads((killed / "online_rft" / "config.json").read_text())["changes"]
    assert {"step": STEPS, "what": "steps", "was": STEPS, "now": STEPS + 2} in changes
    assert {"evaluation.every_steps", "checkpoint.keep_best"} < {one["what"] for one in changes}
    for run, start in (("at_step", "sft@2"), ("at_best", "online_rft@best")):
        policy = policies.find(f"{killed}/{start}")
        kept = json.loads((killed / run / "policy" / "start.json").read_text())
        assert kept == {"init_from": f"run:{start}", "step": policy.step}
        now, before = merged(policies.find(f"{killed}/{run}")), merged(policy)
        np.testing.assert_allclose(now["embedding"], before["embedding"], atol=1e-5)
        other = merged(policies.find(f"{killed}/sft"))
        assert np.abs(now["embedding"] - other["embedding"]).max() > 1e-3


@pytest.mark.slow
def test_an_output_of_a_command_is_on_a_disk(
    on_disk: Folder, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["convert", f"{on_disk}/sft", f"{BUCKET}/out"],
        ["evaluate", f"{on_disk}/sft", "--questions", "arithmetic:test", "--out", f"{BUCKET}/out"],
    ):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"is {BUCKET}/out: a place on a disk is expected; copy it afterwards.")
