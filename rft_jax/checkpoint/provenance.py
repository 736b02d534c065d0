"""What made a run and what it rests on, in RUN/config.json. Loads no jax.

{"name": RUN, "config": {every field}, "versions": {package: version}, "git_commit": str | null,
 "dirty": bool | null, "device": str, "num_devices": int, "id": str,
 "inputs": {INPUT: {"where": str, "sha256": str | null, ...}}, "policy": {FILE: sha256},
 "changes": [{"step": int, "what": str, "was": ..., "now": ...}, ...]}

It is one file so that a single atomic write keeps settings, inputs (inputs.py) and the changes
between resumes in step with each other. `id` tells runs apart and stays the same; `policy` is of
the files in RUN/policy. Versions up to 0.1.0 wrote none of `id` and what follows it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rft_jax.checkpoint import integrity
from rft_jax.checkpoint.inputs import Input, Inputs
from rft_jax.config import Config
from rft_jax.config.serialize import build, changeable_fields, differences, plain
from rft_jax.errors import CheckpointError, ConfigError
from rft_jax.io.jsonl import parse, read_json
from rft_jax.io.paths import Folder, make, write_atomically

FILE = "config.json"
PACKAGES = (
    "rft_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece",
)  # fmt: skip
_MAX_SHOWN = 3  # differing fields that one message names

logger = logging.getLogger(__name__)


class Commit(NamedTuple):
    """The checked-out commit; dirty: whether tracked files differ from it."""

    commit: str
    dirty: bool


def save_config(
    folder: Folder,
    name: str,
    config: Config,
    *,
    device: str,
    num_devices: int,
    inputs: Inputs | None = None,
    policy: Mapping[str, bytes] | None = None,
    step: int = 0,
) -> None:
    """Write FOLDER/config.json, atomically; a resumed run replaces it and adds what has changed.

    Args:
        folder: of the run.
        name: of the run.
        config: its settings.
        device: kind of device, as jax names it (`cpu`, `TPU v5 lite`).
        num_devices: devices of the mesh.
        inputs: what the run rests on, as it is now.
        policy: files of FOLDER/policy.
        step: the run resumes from it.
    """
    old, commit = _read(folder) or {}, git_commit()
    content: dict[str, Any] = {
        "name": name,
        "config": plain(config),
        "versions": versions(),
        "git_commit": commit.commit if commit else None,
        "dirty": commit.dirty if commit else None,
        "device": device,
        "num_devices": num_devices,
    }
    digests = {key: one.sha256 for key, one in (inputs or {}).items()}
    begun = json.dumps([name, content["config"], digests], sort_keys=True)
    content["id"] = old.get("id") or hashlib.sha256(begun.encode()).hexdigest()[:16]
    content["inputs"] = old.get("inputs", {})
    content["policy"] = {
        file: hashlib.sha256(data).hexdigest() for file, data in (policy or {}).items()
    }
    content["changes"] = [*old.get("changes", []), *_changes(folder, old, content, config, step)]
    _write(folder, content, inputs or {}, step)


def record_inputs(folder: Folder, inputs: Inputs, step: int) -> None:
    """Put inputs into FOLDER/config.json; those that were others before are changes at `step`."""
    content = _read(folder)
    assert content is not None, folder
    _write(folder, {"inputs": {}, "changes": []} | content, inputs, step)


def _write(folder: Folder, content: dict[str, Any], inputs: Inputs, step: int) -> None:
    recorded = _inputs(content)
    changes = [
        {"step": step, "what": name, "was": recorded[name].sha256, "now": one.sha256}
        for name, one in inputs.items()
        if name in recorded and recorded[name].sha256 != one.sha256
    ]
    told = {
        name: {fact: value for fact, value in one._asdict().items() if value is not None}
        | {"sha256": one.sha256}
        for name, one in (recorded | inputs).items()
    }
    content |= {"inputs": told, "changes": [*content["changes"], *changes]}
    make(folder)
    write_atomically(folder / FILE, json.dumps(content, indent=2) + "\n")


def _changes(
    folder: Folder, old: Mapping[str, Any], new: Mapping[str, Any], config: Config, step: int
) -> list[dict[str, Any]]:
    """What of a run's settings, versions, commit and devices differs from an earlier start."""
    if not old:
        return []
    values = {name: pair[::-1] for name, pair in differences(config, load_config(folder)).items()}
    was, now = old.get("versions"), new["versions"]
    if isinstance(was, Mapping):
        values |= {name: (was.get(name), now[name]) for name in now}
    names = ("git_commit", "dirty", "device", "num_devices")
    values |= {name: (old.get(name), new[name]) for name in names}
    return [
        {"step": step, "what": name, "was": before, "now": after}
        for name, (before, after) in values.items()
        if before != after
    ]


def inputs_of(folder: Folder) -> Inputs | None:
    """What FOLDER/config.json says that the run rests on; None where a version up to 0.1.0 wrote
    it, but for the weights under adapters, of which that kept digests in FOLDER/policy."""
    content = _read(folder)
    if content is None or "inputs" in content:
        return _inputs(content) if content else None
    if "id" in content:  # which came with them
        raise ConfigError(
            f"{folder / FILE} is damaged (it has no inputs): bring it back, or use another "
            "--workdir."
        )
    older = folder / "policy" / "weights.json"
    if not older.is_file():
        return None
    hashes = read_json(older, CheckpointError)
    return {f"init_from/{name}": Input(name, sha256) for name, sha256 in hashes.items()}


def _inputs(content: Mapping[str, Any]) -> Inputs:
    try:
        return {name: Input(**facts) for name, facts in content["inputs"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{FILE} of run {content.get('name')} is damaged (inputs): bring it back, or use "
            "another --workdir."
        ) from error


def check_inputs(folder: Folder, inputs: Inputs, *, accept: bool = False) -> None:
    """ConfigError where inputs of the run in FOLDER hold other content than was recorded.

    What only one of both has is not compared. accept: log it instead.
    """
    recorded = inputs_of(folder) or {}
    changed = [
        f"{name} ({one.where})" if one.where == recorded[name].where
        else f"{name} ({one.where}, was {recorded[name].where})"
        for name, one in inputs.items()
        if name in recorded and recorded[name].sha256 != one.sha256
    ]  # fmt: skip
    if not changed:
        return
    more = f" and {len(changed) - _MAX_SHOWN} more" if len(changed) > _MAX_SHOWN else ""
    said = f"{folder}: the run rests on other content now: {', '.join(changed[:_MAX_SHOWN])}{more}"
    if not accept:
        raise ConfigError(
            f"{said}: bring it back, use another --workdir, or resume on it with --accept_changed."
        )
    logger.warning("%s: accepted", said)


def check_policy(folder: Folder) -> None:
    """CheckpointError when a file of FOLDER/policy is not the one that the run kept there."""
    content = _read(folder) or {}
    for name, sha256 in content.get("policy", {}).items():
        file = folder / "policy" / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            state = "other than the run wrote" if file.is_file() else "missing"
            raise CheckpointError(
                f"{file}: it is {state}: bring it back, or resume the run, which writes it again."
            )


def load_config(folder: Folder) -> Config:
    """The Config in FOLDER/config.json; fields that it lacks get their defaults, which is logged.

    Raises ConfigError when there is no such file, it is damaged, or it has an unknown field or a
    value that is not valid.
    """
    path, content = folder / FILE, _read(folder)
    if content is None:
        raise ConfigError(f"{path} does not exist: {folder} is not the folder of a run.")
    writer = _writer(content)
    try:
        config, defaults = build(content["config"])
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error} The file was written by {writer}; this is rft_jax "
            f"{versions()['rft_jax']}: upgrade to the version that wrote it, or use another "
            "--workdir."
        ) from error
    if defaults:
        _say_defaults(str(path), defaults, writer)
    return config


def check_same_config(folder: Folder, config: Config) -> None:
    """ConfigError when FOLDER belongs to a run with another config.

    Fields marked MAY_CHANGE may differ, and `steps` where the schedule does not depend on it.
    """
    content = _read(folder)
    if content is None:
        _check_new(folder)
        return
    check_name(folder)
    apart = differences(config, load_config(folder))
    changed = [name for name in apart if name not in changeable_fields()]
    # The only pool's rollouts under a schedule of sources stand for all steps.
    stands_for_all = (
        config.pool is not None and not config.pool.every_steps and config.schedule is not None
    )
    if "steps" in changed and config.optimizer.schedule == "constant" and not stands_for_all:
        done = max(integrity.steps(folder / "checkpoints"), default=0)
        if config.steps < done:
            raise ConfigError(
                f"{folder}: steps is {config.steps} and {done} steps are done: set it to {done} or "
                "more, or use another --workdir."
            )
        changed.remove("steps")
    if not changed:
        return
    values = [f"{name} is {apart[name][0]!r}, was {apart[name][1]!r}" for name in changed]
    more = f" and {len(changed) - _MAX_SHOWN} more" if len(changed) > _MAX_SHOWN else ""
    raise ConfigError(
        f"{folder} holds a run with another config: {'; '.join(values[:_MAX_SHOWN])}{more}: use "
        "another --workdir or the old values."
    )


def check_name(folder: Folder) -> None:
    """ConfigError when FOLDER holds a run of another name."""
    name = (_read(folder) or {}).get("name")
    if name not in (None, folder.name):
        raise ConfigError(
            f"{folder} holds run {name}, as its {FILE} says: rename the folder back, or use "
            "another --workdir."
        )


def _check_new(folder: Folder) -> None:
    """ConfigError for a folder without config.json in which a run has worked."""
    made = [
        name
        for name in (
            "checkpoints/*",
            "metrics.jsonl",
            "rollouts/*",
            "evaluation/*",
            "finished.json",
        )
        if folder.is_dir() and any(folder.glob(name))
    ]
    if made:
        raise ConfigError(
            f"{folder}: {FILE}, which says what run this is, is missing, and there is {made[0]}: "
            "bring it back, or use another --workdir."
        )


def moved(folder: Folder, config: Config, *, device: str, num_devices: int) -> str | None:
    """What to warn of when the run in FOLDER resumes with another mesh or on other devices than
    config.json says; None when both are the same, or there is no config.json.

    device, num_devices: as in save_config.
    """
    content = _read(folder)
    if content is None:
        return None
    old = _topology(load_config(folder), content.get("device"), content.get("num_devices"))
    new = _topology(config, device, num_devices)
    if new == old:
        return None
    return (
        f"resumes with {new}; it was {old} before: sums are computed in another order, so results "
        "agree with those of an undisturbed run within rounding, not bit for bit"
    )


def _read(folder: Folder) -> dict[str, Any] | None:
    """FOLDER/config.json, with a dict `config` in it; None where there is no such file."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = parse(path.read_bytes())
    except ValueError as error:  # of JSON or of UTF-8
        raise ConfigError(f"{path} is not JSON ({error}): use another --workdir.") from error
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise ConfigError(f"{path} holds no config: use another --workdir.")
    for name, kind in (("inputs", dict), ("policy", dict), ("changes", list)):
        if not isinstance(content.get(name, kind()), kind):
            raise ConfigError(
                f"{path} is damaged ({name}): bring it back or use another --workdir."
            )
    return content


def _writer(content: Mapping[str, Any]) -> str:
    """`rft_jax VERSION (commit HASH)` that wrote a config.json, as far as it says."""
    recorded = content.get("versions")
    version = recorded.get("rft_jax") if isinstance(recorded, dict) else None
    commit = f" (commit {content['git_commit'][:9]})" if content.get("git_commit") else ""
    return f"rft_jax {version or 'of an unknown version'}{commit}"


@functools.cache
def _say_defaults(path: str, defaults: tuple[str, ...], writer: str) -> None:
    """Log it, once for each file."""
    logger.info(
        "%s, written by %s, lacks %s: the defaults are taken.", path, writer, ", ".join(defaults)
    )


def _topology(config: Config, device: object, num_devices: object) -> str:
    mesh = config.mesh
    sizes = f"data={mesh.data} x fsdp={mesh.fsdp} x tensor={mesh.tensor}"
    return f"mesh {sizes} on {num_devices} x {device}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape results, without importing them."""
    packages = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version(), **packages}


def git_commit(folder: Path = Path(__file__).parent) -> Commit | None:
    """The commit of the checkout that holds this package; None where it is no checkout.

    An installed copy inside somebody else's checkout is not tracked there, and gives None.
    """
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None or status is None else Commit(commit, bool(status))


def _git(folder: Path, *args: str) -> str | None:
    """What git prints, or None where it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
