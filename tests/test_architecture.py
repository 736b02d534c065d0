"""What may import what, and how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rft_jax

ROOT = Path(rft_jax.__file__).parent

FLOORS = (
    {"types", "keys", "errors"},
    {"config", "io"},
    {"data", "distributed", "verification", "observe"},
    {"models", "hub", "report"},
    {"rollout", "training"},
    {"evaluation", "checkpoint", "planning"},
    {"runs"},
    {"commands"},
    {"__main__"},
)
"""Rooms (a folder, or a file of the root) from the bottom up. A room imports lower floors and
itself, so the rooms of one floor do not know each other."""

ROOT_FILES = {"__init__", "__main__", "types", "keys", "errors"}

CORE = {
    "config",
    "data",
    "distributed",
    "io",
    "models",
    "rollout",
    "runs",
    "training",
    "types",
    "keys",
}
"""What a run computes with."""

OUTER = {"planning", "report", "hub", "commands"}
"""What the core does without, but that runs/setup.py opens published models."""

HOST = {"config", "data", "errors", "io", "report", "types", "verification"}
"""Rooms that import no jax, not even indirectly: host processes and start-up must be light."""

JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}

MAX_LINES = 500


def module_name(path: Path) -> str:
    """`data.sources` for rft_jax/data/sources.py; `data` for its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(path: Path) -> tuple[set[str], set[str]]:
    """(modules of this package, top-level names of others) that a file imports, those within
    functions included, those for the type checker alone left out."""
    own: set[str] = set()
    others: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unloaded = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in unloaded:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full"
            assert node.module is not None
            # `from package import name` imports a module where there is one of that name.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, inner = name.partition(".")
            if package != "rft_jax":
                others.add(package)
            elif inner in FILES:
                own.add(inner)
            elif inner.rpartition(".")[0] in FILES:
                own.add(inner.rpartition(".")[0])
    return own, others


GRAPH = {name: imports_of(path) for name, path in FILES.items()}


def room(module: str) -> str:
    return module.partition(".")[0]


def floor(module: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room(module) in rooms:
            return number
    raise AssertionError(f"rft_jax/{room(module)} has no floor: give it one in FLOORS")


def reachable(module: str) -> set[str]:
    """The modules of this package that a module imports, directly or not, itself included."""
    found, waiting = {module}, [module]
    while waiting:
        new = GRAPH[waiting.pop()][0] - found
        found |= new
        waiting.extend(new)
    return found


def test_imports_are_found() -> None:
    assert "commands.run" in GRAPH["commands.main"][0]  # within a function
    assert "config" in GRAPH["config.experiment"][0] | reachable("runs.loop")
    assert "jax" in GRAPH["keys"][1]
    assert "jax" not in GRAPH["types"][1]
    assert "config" in reachable("__main__")


def test_the_root_holds_these_files() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == ROOT_FILES


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module: str) -> None:
    if module == "":  # the package itself: what it gives, it loads when asked
        return
    for imported in GRAPH[module][0] - {""}:
        down = floor(imported) < floor(module) or room(imported) == room(module)
        assert down, f"{module} imports {imported}, which is of its own floor or above"


@pytest.mark.parametrize("module", [name for name in FILES if name])
def test_no_circle(module: str) -> None:
    """An __init__ gives names of its own folder, and no file of the folder takes them from it."""
    for imported in GRAPH[module][0] - {"", module}:
        assert module not in reachable(imported), f"{module} and {imported} import each other"


@pytest.mark.parametrize("module", [name for name in FILES if room(name) in CORE])
def test_the_core_does_without(module: str) -> None:
    if module == "runs.setup":
        return
    outer = {name for name in GRAPH[module][0] if room(name) in OUTER}
    assert not outer, f"{module} imports {outer}"


@pytest.mark.parametrize("module", [name for name in FILES if room(name) in HOST])
def test_host_rooms_reach_no_jax(module: str) -> None:
    for reached in reachable(module):
        found = GRAPH[reached][1] & JAX
        assert not found, f"{module} reaches {found} through {reached}"


def test_host_rooms_and_the_command_line_load_no_jax() -> None:
    """Nor does a package of somebody else that they import bring it in."""
    names = [f"rft_jax.{name}" for name in FILES if room(name) in HOST]
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        f"    found = {JAX!r} & set(sys.modules)\n"
        "    assert not found, f'{name} loads {found}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *names, "rft_jax.commands.main"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_only_models_imports_flax() -> None:
    assert {room(name) for name, (_, others) in GRAPH.items() if "flax" in others} <= {"models"}


@pytest.mark.parametrize("module", FILES)
def test_files_are_short(module: str) -> None:
    lines = len(FILES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{FILES[module].name} has {lines} lines: split it by its meaning"


def test_no_file_is_called_utils() -> None:
    """A name says what is inside."""
    names = {path.stem for path in FILES.values()}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_the_tests_run_on_eight_devices() -> None:
    import jax

    assert [device.platform for device in jax.devices()] == ["cpu"] * 8
    with pytest.raises(ValueError, match="rank_promotion"):
        jax.numpy.ones(3) + jax.numpy.ones((2, 3))
