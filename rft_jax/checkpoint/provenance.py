"""What made a run, in RUN/config.json: resolved config, versions, commit, device. Loads no jax.

{"name": RUN, "config": {every field}, "versions": {package: version}, "git_commit": str | null,
 "dirty": bool | null, "device": str, "num_devices": int}
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import logging
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rft_jax.config import Config
from rft_jax.config.serialize import build, changeable_fields, differences, plain
from rft_jax.errors import ConfigError
from rft_jax.io.jsonl import parse
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
    folder: Folder, name: str, config: Config, *, device: str, num_devices: int
) -> None:
    """Write FOLDER/config.json, atomically; a resumed run replaces it.

    Args:
        folder: of the run.
        name: of the run.
        config: its settings.
        device: kind of device, as jax names it (`cpu`, `TPU v5 lite`).
        num_devices: devices of the mesh.
    """
    commit = git_commit()
    content = {
        "name": name,
        "config": plain(config),
        "versions": versions(),
        "git_commit": commit.commit if commit else None,
        "dirty": commit.dirty if commit else None,
        "device": device,
        "num_devices": num_devices,
    }
    make(folder)
    write_atomically(folder / FILE, json.dumps(content, indent=2) + "\n")


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

    Fields marked MAY_CHANGE may differ. A folder without config.json belongs to no run.
    """
    if not (folder / FILE).exists():
        return
    apart = differences(config, load_config(folder))
    changed = [name for name in apart if name not in changeable_fields()]
    if not changed:
        return
    values = [f"{name} is {apart[name][0]!r}, was {apart[name][1]!r}" for name in changed]
    more = f" and {len(changed) - _MAX_SHOWN} more" if len(changed) > _MAX_SHOWN else ""
    raise ConfigError(
        f"{folder} holds a run with another config: {'; '.join(values[:_MAX_SHOWN])}{more}: use "
        "another --workdir or the old values."
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
