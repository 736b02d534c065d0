"""What may import what, and how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rft_jax

ROOT = Path(rft_jax.__file__).parent

RANKS = (
    {"folders", "records", "sections", "keys"},
    {"sections_judging", "sections_model", "steps"},
    {"config"},
    {
        "batches", "checkpoint_health", "checkpoint_policy", "fields", "jsonl", "majority",
        "pretrained", "profiling", "progress", "signals", "statistics", "system",
    },
    {"parallel"},
    {"models"},
    {"data", "sampling", "training", "verification"},
    {"exchange"},
    {
        "checkpoint", "experiments", "exporting", "funnel", "importing", "metrics", "options",
        "provenance", "refill", "report", "rollout_log", "rollouts",
    },
    {
        "job", "layout", "local_devices", "policy_files", "run_options", "typed_options",
    },
    {
        "evaluation", "plan_options", "policies", "scoring", "scoring_options", "setup", "starts",
        "supply", "verifiers",
    },
    {"asking", "estimates", "model_card", "planning", "policy_params", "pool"},
    {"updating", "utilization"},
    {"loop"},
    {"converting_command", "evaluating_command", "planning_command", "run", "sampling_command"},
    {"running_command"},
    {"cli"},
    {"__main__"},
)  # fmt: skip
"""Rooms (a folder or a file) from the bottom up. A room imports lower ranks only, so the rooms of
one rank do not know each other."""

WITHOUT_JAX = {
    "asking", "checkpoint_health", "checkpoint_policy", "config", "data", "experiments", "fields",
    "folders", "funnel", "jsonl", "majority", "metrics", "model_card", "options", "plan_options",
    "policies", "policy_files", "pretrained", "progress", "provenance", "records", "refill",
    "report", "rollout_log", "run_options", "scoring", "scoring_options", "sections",
    "sections_judging",
    "sections_model", "signals", "statistics", "steps", "typed_options", "verification",
    "verifiers",
}  # fmt: skip
"""Rooms that import no jax, not even indirectly: host processes and start-up must be light."""

JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
MAX_LINES = 400


def module_name(path: Path) -> str:
    """`data.sources` for rft_jax/data/sources.py; `data` for its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(path: Path) -> tuple[set[str], set[str]]:
    """(modules of this package, top-level names of others) that a file imports, those within
    functions included."""
    own: set[str] = set()
    others: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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


def rank(module: str) -> int:
    for number, rooms in enumerate(RANKS):
        if room(module) in rooms:
            return number
    raise AssertionError(f"rft_jax/{room(module)} has no rank: give it one in RANKS")


def reachable(module: str) -> set[str]:
    """The modules of this package that a module imports, directly or not, itself included."""
    found, waiting = {module}, [module]
    while waiting:
        new = GRAPH[waiting.pop()][0] - found
        found |= new
        waiting.extend(new)
    return found


def test_imports_are_found() -> None:
    assert "running_command" in GRAPH["cli"][0]  # within a function
    assert "config" in GRAPH["experiments"][0]
    assert "jax" in GRAPH["keys"][1]
    assert "config" in reachable("__main__")


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module: str) -> None:
    if module == "":  # the package itself imports nothing
        assert GRAPH[module] == (set(), set())
        return
    for imported in GRAPH[module][0] - {""}:
        down = rank(imported) < rank(module) or room(imported) == room(module)
        assert down, f"{module} imports {imported}, which is of its own rank or above"


@pytest.mark.parametrize(
    "module", [name for name, path in FILES.items() if path.stem == "__init__"]
)
def test_rooms_import_nothing_by_themselves(module: str) -> None:
    assert GRAPH[module] == (set(), set())


@pytest.mark.parametrize("module", [name for name in FILES if room(name) in WITHOUT_JAX])
def test_host_rooms_reach_no_jax(module: str) -> None:
    for reached in reachable(module):
        found = GRAPH[reached][1] & JAX
        assert not found, f"{module} reaches {found} through {reached}"


def test_host_rooms_load_no_jax() -> None:
    """Nor does a package of somebody else that they import bring it in."""
    names = [f"rft_jax.{name}" for name in FILES if room(name) in WITHOUT_JAX]
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        f"    found = {JAX!r} & set(sys.modules)\n"
        "    assert not found, f'{name} loads {found}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *names], capture_output=True, text=True, check=False
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
