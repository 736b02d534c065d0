"""What a run rests on: digests of its data, tokenizer, start, pool and of code that is not this
package's. Loads no jax.

RUN/config.json keeps them (provenance.py), and they are compared whenever the run is resumed.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from rft_jax.config import Config
from rft_jax.data.tokenizers.base import FOLDER_FILES
from rft_jax.io.paths import Folder
from rft_jax.types import Question, Sample

_THREADS = 4  # a training host has other work
_AT_A_TIME = 2**24  # bytes
_INSTALLED = ("site-packages", "dist-packages")


class Input(NamedTuple):
    """where: as messages name it; sha256: of its content, None for a file that is not there; bytes,
    modified: of a file of weights, which is read again only where one of them differs."""

    where: str
    sha256: str | None
    bytes: int | None = None
    modified: int | None = None


Inputs = dict[str, Input]
"""By what they are to the run: `data.train`, `tokenizer/tokenizer.json`, `init_from`, ..."""


def of_questions(source: str, questions: Iterable[Question]) -> Input:
    """All that a source says of its questions, in their order."""
    return _of_rows(source, ([q.id, q.text, q.answer, q.solution] for q in questions))


def of_rows(name: str, source: str, questions: Sequence[Question]) -> Inputs:
    """The questions of a source by their name, and the other columns of its rows where they are
    kept for a verifier."""
    inputs = {name: of_questions(source, questions)}
    if any(question.columns for question in questions):
        columns = ([question.columns] for question in questions)
        inputs[f"{name}, other columns"] = _of_rows(source, columns)
    return inputs


def of_outputs(where: str, pairs: Iterable[tuple[Question, Sample]]) -> Input:
    """The outputs of a pool and their questions, in their order."""
    rows = (
        [
            question.id, question.text, question.answer, sample.sample_index, sample.step,
            sample.text, sample.tokens, sample.log_probs, sample.finished, sample.verdict,
            sample.reason, *([] if sample.reward is None else [sample.reward]),
            *([sample.steps] if sample.steps else []),
        ]
        for question, sample in pairs
    )  # fmt: skip
    return _of_rows(where, rows)


def _of_rows(where: str, rows: Iterable[list[Any]]) -> Input:
    content = hashlib.sha256()
    for row in rows:
        content.update(json.dumps(row).encode() + b"\n")
    return Input(where, content.hexdigest())


def of_file(path: Folder) -> Input:
    """A file, or that it is not there."""
    return Input(str(path), _sha256(path) if path.is_file() else None)


def of_tokenizer(path: Folder) -> Inputs:
    """A tokenizer: the file, or all of a folder that have a say in it and its chat template."""
    if not path.is_dir():
        return {"tokenizer": of_file(path)}
    # The last two may name further ids that end an output.
    names = (*FOLDER_FILES, "generation_config.json", "config.json")
    return {f"tokenizer/{name}": of_file(path / name) for name in names}


def of_weights(folder: Path, known: Mapping[str, Input]) -> Inputs:
    """The files of weights of a published model, those that are there.

    known: of an earlier time; a file of the same size and time is not read again.
    """
    from rft_jax.hub.tensors import files_of_weights  # it loads numpy

    def one(path: Path) -> tuple[str, Input]:
        name, facts = f"init_from/{path.name}", path.stat()
        size, modified = facts.st_size, facts.st_mtime_ns
        before = known.get(name)
        same = before is not None and (before.bytes, before.modified) == (size, modified)
        sha256 = before.sha256 if before is not None and same else _sha256(path)
        return name, Input(str(path), sha256, size, modified)

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(pool.map(one, files_of_weights(folder)))


def of_code(config: Config) -> Inputs:
    """Modules that the config names as `module:function`, with those beside them that they import;
    and the coefficient of a method that an experiment file makes itself."""
    judges = (
        config.verification.verifier, *config.verification.checks, config.evaluation.verifier
    )  # fmt: skip
    modules = [name.partition(":")[0] for name in judges if ":" in name]
    coefficient: Any = config.row.coefficient
    while isinstance(coefficient, functools.partial):
        coefficient = coefficient.func
    maker = coefficient if hasattr(coefficient, "__code__") else type(coefficient)
    inputs: Inputs = {}
    if _files_of(maker.__module__):
        modules.append(maker.__module__)
    elif _top(maker.__module__) != "rft_jax":
        with contextlib.suppress(OSError, TypeError):  # typed in, or no Python
            inputs["method"] = _of_rows(config.row.name, [[inspect.getsource(maker)]])
    for module in modules:
        for name, path in _files_of(module).items():
            inputs[f"code/{name}"] = of_file(path)
    return inputs


def _files_of(module: str) -> dict[str, Path]:
    """The source files of a module of the user's and of those beside it that it imports, by their
    path in the folder that they lie in. Runs none of them.

    Of an installed one those of its own package only.
    """
    # Workers look in the current folder too.
    spec = PathFinder.find_spec(_top(module), [*sys.path, os.getcwd()])
    places = [*(spec.submodule_search_locations or ()), spec.origin] if spec else []
    if not places or places[0] is None or _top(module) in sys.stdlib_module_names:
        return {}
    root = Path(places[0]).parent
    files: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        other = root.name in _INSTALLED and _top(name) != _top(module)
        if other or _top(name) == "rft_jax":  # of which config.json has the commit
            continue
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            stem = "/".join(parts[:count])
            for file in (f"{stem}.py", f"{stem}/__init__.py"):
                if file not in files and (root / file).is_file():
                    files[file] = root / file
                    waiting += _imports(root / file, root)
    return dict(sorted(files.items()))


def _imports(path: Path, root: Path) -> Iterator[str]:
    """Dotted names that a source file imports, and those of what it takes from them."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # which shows when it is imported
        return
    here = path.relative_to(root).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) + 1 - node.level] if node.level else ()
            start = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{start}.{alias.name}".strip(".") for alias in node.names)


def _top(module: str) -> str:
    return module.partition(".")[0]


def _sha256(path: Folder) -> str:
    content = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(_AT_A_TIME):
            content.update(data)
    return content.hexdigest()
