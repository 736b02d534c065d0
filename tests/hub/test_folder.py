"""Where a model is found, and what is said where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from rft_jax.errors import ModelError
from rft_jax.hub.folder import locate, raw_config


class Response:
    """What the hub's errors want to know of an answer."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.request = None


def http(kind: type[Exception]) -> Exception:
    return kind("not this time\nmore lines", response=Response())  # type: ignore[call-arg]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Arguments of downloads, none of which leaves this machine."""
    made: list[dict[str, Any]] = []

    def download(name: str, **arguments: Any) -> str:
        made.append({"name": name, **arguments})
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return made


def refusal(target: str) -> str:
    """The one line of the error that a target raises."""
    with pytest.raises(ModelError) as error:
        locate(target)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_is_taken_as_it_is(
    tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "org/name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("org/name") == Path("org/name")
    assert locate("~/org") == tmp_path / "org"
    assert not calls


@pytest.mark.parametrize(
    ("target", "name", "revision"),
    [
        ("org/name-1.5B", "org/name-1.5B", None),
        ("org/name@v1.0", "org/name", "v1.0"),
        ("org/name@refs/pr/1", "org/name", "refs/pr/1"),
    ],
)
def test_a_repository_is_downloaded(
    calls: list[dict[str, Any]], tmp_path: Path, target: str, name: str, revision: str | None
) -> None:
    assert locate(target) == tmp_path
    locate(target, weights=False)
    assert [(call["name"], call["revision"]) for call in calls] == [(name, revision)] * 2
    everything, small = (call["allow_patterns"] for call in calls)
    assert set(everything) - set(small) == {"*.safetensors", "*.safetensors.index.json"}
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "LICENSE"} <= set(small)


def test_what_is_downloaded(calls: list[dict[str, Any]]) -> None:
    locate("org/name")
    wanted = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json"]
    unwanted = [
        "consolidated.safetensors",
        "original/model.safetensors",
        "onnx/config.json",
        "pytorch_model.bin",
        "README.md",
        "modeling_own.py",
    ]
    kept = huggingface_hub.utils.filter_repo_objects(
        wanted + unwanted,
        allow_patterns=calls[0]["allow_patterns"],
        ignore_patterns=calls[0]["ignore_patterns"],
    )
    assert list(kept) == wanted


@pytest.mark.parametrize("target", ["", "gpt2", "a/b/c", "a/b@", "a/b@x@y", "/nowhere/to/be/found"])
def test_no_name(calls: list[Any], target: str) -> None:
    assert "there is no such folder, and it is no ORG/NAME" in refusal(target)
    assert not calls


def test_a_file_is_no_folder(tmp_path: Path, calls: list[Any]) -> None:
    (tmp_path / "file").touch()
    assert "there is no such folder" in refusal(str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (http(errors.GatedRepoError), "accepted its licence: accept it on its page, then run `hf"),
        (http(errors.RepositoryNotFoundError), "no such repository that this machine may read"),
        (http(errors.RevisionNotFoundError), "no such revision: name a branch, a tag"),
        (http(errors.HfHubHTTPError), "downloading failed (not this time): try again"),
        (errors.LocalEntryNotFoundError("x"), "the hub cannot be reached: download it where"),
        (errors.OfflineModeIsEnabled("x"), "the hub cannot be reached: download it where"),
        (errors.HFValidationError("x"), "no name that a repository can have: fix"),
        (OSError(28, "No space left on device"), "downloading failed ([Errno 28] No space left"),
        (RuntimeError(), "downloading failed (RuntimeError)"),
    ],
)
def test_downloads_that_fail(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def download(name: str, **arguments: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    message = refusal("org/name@main")
    assert message.startswith("hf:org/name@main: ")
    assert said in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such file: name the folder of a model"),
        ("{'a': 1}", "cannot be read as JSON (Expecting property name"),
        ("[]", "it is a JSON list, expected an object"),
        (b"\xff\xfe", "cannot be read as JSON ('utf-8' codec"),
    ],
)
def test_config_json(tmp_path: Path, content: str | bytes | None, said: str) -> None:
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(ModelError) as error:
        raw_config(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/config.json: ")
    assert said in str(error.value)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert raw_config(tmp_path) == {"model_type": "llama"}
