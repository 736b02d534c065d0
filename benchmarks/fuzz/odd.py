"""Odd values, and ways to damage words, JSON and files: all drawn from a seeded generator."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

DEPTH = 200_000

NUMBERS = (
    "-1", "0", "1", "2", "3", "7", "16", "-0.5", "0.5", "1e-300", "1e3", "1e38", "1e308", "1e400",
    "nan", "inf", "-inf", "0x10", "1_0", "１２", "½", "2147483647", "2147483648",
    "9223372036854775808", "9" * 30, "9" * 5000, "1/0", "1e-400",
)  # fmt: skip
TEXTS = (
    "", " ", "x", "é", "a\nb", "\t", "\u202e", "\U0001f469\u200d\U0001f467", "\udcff", "a" * 300,
    "a" * 100_000, "True", "true", "None", "null", "[]", "{}", "()", "-", "--", "=", "%s", "{x}",
    "{question}", "${HOME}", "$(id)", "*", "\\", "'", '"', "[bold]x[/bold]", "auto", "random",
    "float32", "bfloat16", "float64", "chat", "text", "1..2", "2..1", "steps",
)  # fmt: skip
PATHS = (
    "jsonl:/dev/zero", "jsonl:/dev/null", ".", "..", "missing", "missing/x", "file.txt",
    "file.txt/x", "folder", "folder/", "unreadable", "shut", "loop", "loop/x", "/proc",
    "/proc/self/mem", "~nobody-here/x", "a" * 300 + "/x", "done", "done/sft", "done/sft@2",
    "done/sft@best", "done/sft@99", "done/sft@", "done/sft@x", "stopped/online", "model",
    "study.py", "questions.jsonl", "jsonl:questions.jsonl", "jsonl:", "jsonl:missing",
    "jsonl:folder", "jsonl:unreadable", "jsonl:loop", "jsonl:~nobody-here/x",
    "jsonl:questions.jsonl[1:]", "jsonl:questions.jsonl[:99]", "jsonl:questions.jsonl[x]",
    "jsonl:questions.jsonl[5:2]", "jsonl:study.py", "tfds:", "tfds:x", "hf:", "hf:model", "hf:x",
    "hf:a/b", "hf:a/b@", "run:", "run:sft", "run:x", "workdir:", "workdir:done/sft", "gs://",
    "judge:even", "judge:", ":even", "nosuch:f", "json:nosuch", "judge:number", "a:b:c",
)  # fmt: skip

JSON_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 2**31, 2**63, 10**18, 10**400, -0.5, 0.5, 1e308, 1e-300,
    float("nan"), float("inf"), "", "x", "é", "a" * 300, "a" * 100_000, "\ud800", "a\x00b", "a\nb",
    "../../x", [], {}, [1], [None], ["x"], {"x": 1}, [[[]]], list(range(1000)), "1", "true",
)  # fmt: skip
DEEP = "@deep@"
"""In a document stands for brackets within brackets, which json.dumps would not write."""


def value(chance: Random) -> str:
    """A word for the command line."""
    return chance.choice(chance.choice((NUMBERS, TEXTS, PATHS)))


def misspelt(word: str, chance: Random) -> str:
    """The word with one character left out, doubled, replaced or in another case."""
    if not word:
        return "-"
    at = chance.randrange(len(word))
    one = chance.choice(("", word[at] * 2, chance.choice("x-_.= é"), word[at].swapcase()))
    return word[:at] + one + word[at + 1 :]


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place within a JSON value, by its keys; () is the whole."""
    inner = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document[:50])
        if isinstance(document, list)
        else ()
    )
    return [path, *(one for key, value in inner for one in places(value, (*path, key)))]


def changed(document: Any, chance: Random) -> Any:
    """A JSON value with one place in it replaced, removed, renamed, wrapped or doubled."""
    document = json.loads(json.dumps(document))
    path = chance.choice(places(document)[:2000])
    way = chance.choice(("replace",) * 6 + ("deep", "remove", "rename", "wrap", "scale"))
    if not path:
        return DEEP if way == "deep" else chance.choice(JSON_VALUES)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    key, old = path[-1], holder[path[-1]]
    if way == "remove":
        del holder[key]
    elif way == "rename" and isinstance(holder, dict):
        holder[misspelt(str(key), chance)] = holder.pop(key)
    elif way == "wrap":
        holder[key] = [old] if chance.random() < 0.5 else {"x": old}
    elif way == "scale" and isinstance(old, int | float):
        holder[key] = chance.choice((-old, old + 1, old * 2, old * 10**9, float(old), str(old)))
    else:
        holder[key] = DEEP if way == "deep" else chance.choice(JSON_VALUES)
    return document


def dumped(document: Any, chance: Random) -> bytes:
    """JSON text of a document, which may hold DEEP; at times doubled in a key, or with a BOM."""
    opening, closing = chance.choice((("[", "]"), ('{"a":', "}")))
    depth = chance.choice((50, 2000, DEPTH))
    inner = opening * depth + "0" + closing * depth
    text = json.dumps(document).replace(f'"{DEEP}"', inner)
    if chance.random() < 0.05 and text.startswith("{"):
        text = '{"x": 1, ' + text[1:]
    data = text.encode("utf-8", "surrogatepass")
    return b"\xef\xbb\xbf" + data if chance.random() < 0.03 else data


def flipped(data: bytes, chance: Random) -> bytes:
    """Data with a bit of one to three bytes turned."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _flip(path: Path, chance: Random) -> None:
    _write(path, flipped(path.read_bytes() or b"\0", chance))


def _truncate(path: Path, chance: Random) -> None:
    data = path.read_bytes()
    _write(path, data[: chance.randrange(len(data) or 1)])


def _lengthen(path: Path, chance: Random) -> None:
    more = (
        b"\0",
        b"\n",
        b"{",
        b"x" * 1000,
        b"\xff\xfe",
        b"\n\n\n",
        b"[" * DEPTH,
        b"\n" + b"9" * 5000,
    )
    _write(path, path.read_bytes() + chance.choice(more))


def _insert(path: Path, chance: Random) -> None:
    data = path.read_bytes()
    at = chance.randrange(len(data) + 1)
    more = (b"\0", b"\xff", b"\xed\xa0\x80", b"\r\n", b"9" * 400, b'"', b"x" * 10_000)
    _write(path, data[:at] + chance.choice(more) + data[at:])


def _delete(path: Path, chance: Random) -> None:
    path.unlink()


def _empty(path: Path, chance: Random) -> None:
    _write(path, b"")


def _folder(path: Path, chance: Random) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path, chance: Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _dangling(path: Path, chance: Random) -> None:
    path.unlink()
    path.symlink_to("missing")


def _shut(path: Path, chance: Random) -> None:
    path.chmod(0)


def _swap(path: Path, chance: Random) -> None:
    """With another file of the folder, or of one beside it."""
    others = [one for one in path.parent.parent.glob("*/*") if one.is_file() and one != path]
    beside = [one for one in path.parent.iterdir() if one.is_file() and one != path]
    other = chance.choice(sorted(beside or others) or [path])
    mine, theirs = path.read_bytes(), other.read_bytes()
    _write(path, theirs)
    _write(other, mine)


def _other(path: Path, chance: Random) -> None:
    """The content of any file of the tree."""
    root = path.parents[min(2, len(path.parents) - 1)]
    _write(
        path, chance.choice(sorted(one for one in root.rglob("*") if one.is_file())).read_bytes()
    )


def _json(path: Path, chance: Random) -> None:
    """One place of a JSON file, or of one line of a log."""
    text = path.read_text(encoding="utf-8")
    try:
        _write(path, dumped(changed(json.loads(text), chance), chance))
        return
    except ValueError:
        lines = text.splitlines()
    at = chance.randrange(len(lines))
    row = dumped(changed(json.loads(lines[at]), chance), chance)
    _write(
        path,
        b"\n".join([*(x.encode() for x in lines[:at]), row, *(x.encode() for x in lines[at + 1 :])])
        + b"\n",
    )


def _lines(path: Path, chance: Random) -> None:
    """A line left out, doubled, blank, or all of them in another order."""
    lines = path.read_bytes().splitlines(keepends=True)
    at = chance.randrange(len(lines))
    way = chance.choice(("drop", "double", "blank", "shuffle", "crlf"))
    if way == "shuffle":
        chance.shuffle(lines)
    elif way == "crlf":
        lines = [line.replace(b"\n", b"\r\n") for line in lines]
    else:
        lines[at : at + 1] = {"drop": [], "double": [lines[at]] * 2, "blank": [b"\n"]}[way]
    _write(path, b"".join(lines))


WAYS: Sequence[Callable[[Path, Random], None]] = (
    _flip, _flip, _truncate, _truncate, _lengthen, _insert, _delete, _empty, _folder, _loop,
    _dangling, _shut, _swap, _other,
)  # fmt: skip


def damage(path: Path, chance: Random) -> str:
    """Damage a file in one way; returns the way's name."""
    ways = [*WAYS]
    if path.suffix in (".json", ".jsonl") or path.name in ("metadata", "_METADATA", "_sharding"):
        ways += [_json] * 12
    if path.suffix == ".jsonl":
        ways += [_lines] * 4
    way = chance.choice(ways)
    try:
        way(path, chance)
    except (ValueError, IndexError, RecursionError, UnicodeError):  # no JSON, or nothing in it
        way = _empty
        way(path, chance)
    return way.__name__.lstrip("_")


def files(folder: Path) -> list[Path]:
    """The files below a folder, in an order that random names do not change."""

    def key(path: Path) -> tuple[str, int, str]:
        name = path.relative_to(folder).as_posix()
        return re.sub(r"[0-9a-f]{32}|tfevents.*", "", name), path.stat().st_size, name

    return sorted((path for path in folder.rglob("*") if path.is_file()), key=key)


def remove(folder: Path) -> None:
    """Remove a folder, with what is unreadable in it."""
    for inner in folder.rglob("*"):
        if inner.is_dir() and not inner.is_symlink():
            inner.chmod(0o700)
    shutil.rmtree(folder)
