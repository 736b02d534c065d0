"""What made a run, in RUN/config.json: resolved config, versions, commit, device. No jax.

{"name": RUN, "config": {every field}, "versions": {package: version}, "git_commit": str | null,
 "dirty": bool | null, "device": str, "num_devices": int}
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rft_jax.config import Config
from rft_jax.config.serialize import build, flatten, plain
from rft_jax.errors import ConfigError
from rft_jax.io.paths import Folder, make, write_atomically

FILE = "config.json"
PACKAGES = (
    "rft_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece",
)  # fmt: skip
FREE_FIELDS = (
    "checkpoint.every_minutes",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "checkpoint.keep_best",
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "verification.workers",
    "verification.warn_undecided",
    "verification.stop_undecided",
)
"""Fields that may differ when a run is resumed: they change no parameter, those of the mesh but by
rounding (see moved). `steps` may not: the schedule and the final evaluation depend on it, and a
longer run is another run."""

_MAX_SHOWN = 3  # differing fields that one message names
_GIVEN = "given"  # stands for the fields of a section that only one side has


class Commit(NamedTuple):
    """The checked-out commit; dirty: whether tracked files differ from it."""

    commit: str
    dirty: bool


def save_config(
    folder: Folder, name: str, config: Config, *, device: str, num_devices: int
) -> None:
    """Write FOLDER/config.json for run `name`, atomically; a resumed run replaces it.

    device: the kind of device, as jax names it (`cpu`, `TPU v5 lite`); num_devices: of the mesh.
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
    """The Config in FOLDER/config.json; ConfigError when there is none or it is damaged."""
    path = folder / FILE
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: {folder} is not the folder of a run.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise ConfigError(f"{path} is not JSON ({error}): use another --workdir.") from error
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise ConfigError(f"{path} holds no config: use another --workdir.")
    try:
        return from_dict(content["config"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def from_dict(values: Mapping[str, Any]) -> Config:
    """The Config that `dataclasses.asdict` made `values` of, also after a trip through JSON.

    Raises ConfigError for an unknown or missing field and for a wrong type.
    """
    return build(values)


def check_same_config(folder: Folder, config: Config) -> None:
    """ConfigError when FOLDER belongs to a run with another config; FREE_FIELDS may differ.

    A folder without config.json belongs to no run and passes.
    """
    if not (folder / FILE).exists():
        return
    old, new = flatten(load_config(folder)), flatten(config)
    # A section that one side leaves out is one difference, and not one for each of its fields.
    names = [name for name in old | new if "." not in name or (name in old and name in new)]
    changed = [
        name
        for name in names
        if name not in FREE_FIELDS and old.get(name, _GIVEN) != new.get(name, _GIVEN)
    ]
    if not changed:
        return
    shown = [
        f"{name} is {_shown(name, new)}, was {_shown(name, old)}" for name in changed[:_MAX_SHOWN]
    ]
    more = f" and {len(changed) - _MAX_SHOWN} more" if len(changed) > _MAX_SHOWN else ""
    raise ConfigError(
        f"{folder} holds a run with another config: {'; '.join(shown)}{more}: use another "
        "--workdir or the old values."
    )


def moved(folder: Folder, config: Config, *, device: str, num_devices: int) -> str | None:
    """What to warn of when the run in FOLDER goes on with another mesh or on other devices than
    config.json says; None when both are as they were, or there is no config.json.

    device, num_devices: as in save_config.
    """
    path = folder / FILE
    if not path.exists():
        return None
    before = load_config(folder)  # it is sound, then
    content = json.loads(path.read_text(encoding="utf-8"))
    old = _topology(before, content.get("device"), content.get("num_devices"))
    new = _topology(config, device, num_devices)
    if new == old:
        return None
    return (
        f"goes on with {new}; it was {old} before: sums are made in another order, so results "
        "agree with those of an undisturbed run within rounding, not bit for bit"
    )


def _topology(config: Config, device: object, num_devices: object) -> str:
    mesh = config.mesh
    sizes = f"data={mesh.data} x fsdp={mesh.fsdp} x tensor={mesh.tensor}"
    return f"mesh {sizes} on {num_devices} x {device}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape results, without importing them."""
    found = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version(), **found}


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


def _shown(name: str, values: Mapping[str, Any]) -> str:
    return repr(values[name]) if name in values else _GIVEN
