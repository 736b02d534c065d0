"""The kinds of inputs. Each makes one from a seeded generator, in a folder of its own."""

from __future__ import annotations

import json
import os
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from benchmarks.fuzz import odd
from benchmarks.fuzz.material import OUTPUTS, QUESTIONS, RESUME, SAMPLE, STUDY, Material
from rft_jax.commands import args, options
from rft_jax.config.serialize import field_types


class Input(NamedTuple):
    """words: the command; what: how it was made wrong; compare: whether a status of 0 stands for
    the outcome of undamaged material."""

    words: list[str]
    what: str
    compare: bool = False


COMMANDS: Mapping[str, tuple[type, list[str]]] = {
    "run": (options.RunOptions, ["run", "study.py", "--workdir", "done", "--only", "sft"]),
    "plan": (options.PlanCommand, ["plan", "study.py", "--device", "8xh100", "--only", "sft"]),
    "report": (options.ReportOptions, ["report", "done"]),
    "tokenizer": (options.TokenizerOptions, ["tokenizer", "study.py", "--workdir", "fresh"]),
    "sample": (options.SampleOptions, ["sample", "done/sft", "--out", "o.jsonl", *SAMPLE]),
    "evaluate": (options.EvaluateOptions, ["evaluate", "done/rft", "--out", "out", *SAMPLE]),
    "convert": (options.ConvertOptions, ["convert", "done/sft", "out", "--dtype", "bfloat16"]),
    "verify": (
        options.VerifyOptions,
        ["verify", "outputs.jsonl", "--out", "o.jsonl", "--workers", "1", "--timeout_seconds", "5"],
    ),
}
"""By name: the options of a command, and words that it takes."""


def _tree(material: Material, here: Path, *names: str) -> None:
    """The experiment, its data, some odd paths, and parts of the material by name."""
    for name in ("study.py", "judge.py", "questions.jsonl", "outputs.jsonl", *names):
        material.take(name, here)
    (here / "file.txt").write_text("text\n")
    (here / "folder").mkdir()
    (here / "loop").symlink_to("loop")
    (here / "unreadable").touch(mode=0)
    (here / "shut").mkdir(mode=0)


def _named(words: list[str]) -> list[str]:
    """The parts of the material that a command line names."""
    return [name for name in ("done", "stopped", "model") if any(name in word for word in words)]


def command_line(chance: Random, material: Material, here: Path) -> Input:
    """Words of a command left out, doubled, misspelt, moved, replaced, and options added."""
    command = chance.choice(list(COMMANDS))
    kind, words = COMMANDS[command]
    words, ways = [*words], []
    names = [name for name, one in args.declared(kind).items() if not one.positional]

    def replace_value() -> None:
        words[chance.randrange(1, len(words))] = odd.value(chance)

    def add_option() -> None:
        name = f"--{chance.choice([*names, 'workdir'])}"
        some = [odd.value(chance) for _ in range(chance.choice((0, 1, 1, 1, 1, 2, 3)))]
        words.extend([f"{name}={odd.value(chance)}"] if chance.random() < 0.2 else [name, *some])

    def leave_out() -> None:
        del words[chance.randrange(len(words))]

    def double() -> None:
        at = chance.randrange(len(words))
        words[at:at] = words[at : at + chance.randint(1, 2)]

    def move() -> None:
        words.insert(chance.randrange(len(words)), words.pop(chance.randrange(len(words))))

    def misspell() -> None:
        at = chance.randrange(len(words))
        words[at] = odd.misspelt(words[at], chance)

    def insert() -> None:
        words.insert(chance.randrange(len(words) + 1), odd.value(chance))

    def add_field() -> None:
        run = chance.choice(("all", "sft", "online", "x", "", "all.all"))
        field = chance.choice([*field_types(), "x", "", "data", "x.y.z"])
        words.extend([f"--{run}.{odd.misspelt(field, chance)}", odd.value(chance)])

    def ask_help() -> None:
        words.extend(["--help", odd.value(chance)])

    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        way: Callable[[], None] = chance.choice(
            (replace_value,) * 4 + (add_option,) * 5
            + (leave_out, double, move, misspell, misspell, insert, add_field, ask_help)
        )  # fmt: skip
        if len(words) > 1:
            way()
            ways.append(way.__name__)
    _tree(material, here, *_named(words))
    return Input(words, f"{command}: {', '.join(ways)}")


ENDLESS = ("steps",)
"""Fields that a large number is right for, and that takes for ever."""


def field(chance: Random, material: Material, here: Path) -> Input:
    """Fields of a run with odd values; what is accepted is carried out."""
    run = chance.choice(("sft", "sft", "online", "all"))
    words = ["run", "study.py", "--workdir", "done" if run == "online" else "fresh"]
    if run == "sft":
        words += ["--only", "sft", "--sft.steps", "2"]
    if chance.random() < 0.25:
        words = ["plan", "study.py", "--device", "t4"]
    names = [name for name in field_types() if name not in ENDLESS]
    chosen = chance.sample(names, k=chance.choice((1, 1, 1, 2)))
    for name in chosen:
        words += [f"--{run}.{name}", _near(args.text_type(field_types()[name]), chance)]
    _tree(material, here, *_named(words))
    return Input(words, f"{words[0]}: {', '.join(chosen)}")


def _near(hint: Any, chance: Random) -> str:
    """A word that the type of a field mostly takes."""
    if chance.random() < 0.1:
        return odd.value(chance)
    if hint is int:
        return str(
            chance.choice((-1, 0, 1, 2, 3, 5, 8, 16, 33, 1000, 10**6, 2**31 - 1, 2**31, 10**30))
        )
    if hint is float:
        return chance.choice(odd.NUMBERS[:19])
    choices = [str(one) for one in typing.get_args(hint) if isinstance(one, str)] or [
        "True",
        "False",
    ]
    texts = (
        (odd.TEXTS, odd.PATHS) if hint is str or typing.get_origin(hint) is tuple else (choices,)
    )
    return chance.choice(chance.choice(texts))


EXPERIMENTS = (
    "", "x = 1", "def experiment(): return {}", "def experiment(): return None",
    "def experiment(): return []", "def experiment(): return {'a': 1}", "experiment = 3",
    "def experiment(x): return {}", "1/0", "raise SystemExit", "import sys; sys.exit(0)",
    "import sys; sys.exit('no')", "def experiment():\n    import sys\n    sys.exit(0)",
    "import nosuch", "from . import x", "from rft_jax.config import Nothing",
    "def experiment(): return experiment()", "(" * 5000, "x = " + "1+" * 50_000 + "1",
    "x = " + "[" * 3000 + "]" * 3000, "def experiment(:", "\tx", "'", "x = '\x00'", "\ufeffx = 1",
    "# coding: nosuch\n", "import os; os.chdir('/nowhere')", "raise Exception('a\\nb\\nc' * 10)",
    "raise Exception('x' * 10**6)", "raise ValueError()",
    "class E(Exception):\n    def __str__(self): raise self\nraise E",
    "raise ExceptionGroup('', [ValueError()])", "class B(BaseException): pass\nraise B('x')",
    "import threading; threading.Thread(target=lambda: 1/0)", "x = bytearray(10**14)",
    "assert False", "exit()", "quit(3)", "yield 1", "def experiment(): yield 1",
    "from collections import UserDict\nclass D(UserDict):"
    "\n    def __len__(self): raise RuntimeError\ndef experiment(): return D()",
)  # fmt: skip
"""Files that hold no experiment."""

RUN_NAMES = (
    "''", "' '", "'a b'", "'a/b'", "'..'", "'.'", "'/x'", "'é'", "'ａ'", "'a' * 300", "'all'",
    "'plots'", "'class'", "None", "3", "('a',)", "b'a'", "'a\\nb'", "'\\ud800'", "'a.b'", "'-x'",
    "'CON'", "'x' * 10**5", "True", "float('nan')", "'experiment'", "'tokenizer'", "'__class__'",
)  # fmt: skip
VALUES = (
    "None", "object()", "lambda: 1", "1 + 2j", "float('nan')", "float('inf')", "10**400", "-1", "0",
    "''", "'x'", "b'x'", "[]", "{}", "()", "(1,)", "('x',)", "['x']", "set()", "True", "Ellipsis",
    "int", "Config", "Exception()", "range(3)", "1.5", "1e400", "'a' * 10**5", "'\\ud800'",
    "'a\\nb'", "__import__('numpy').float32(1)", "__import__('numpy').int64(2)",
    "__import__('pathlib').Path('x')", "__import__('fractions').Fraction(1, 3)",
    "__import__('decimal').Decimal('NaN')", "__import__('numpy').zeros(3)", "sft", "sft.model",
    "type('R', (), {'__repr__': lambda self: 1 / 0})()", "print", "'nosuch:f'", "'judge:number'",
)  # fmt: skip


def experiment(chance: Random, material: Material, here: Path) -> Input:
    """Experiment files that are no Python, that fail, or that return something else."""
    _tree(material, here)
    name = chance.choice(
        ("exp.py",) * 6 + ("a b.py", "é.py", "judge.py", "json.py", "exp.txt", "x" * 250 + ".py")
    )
    way = chance.choice(
        ("file", "file", "name", "field", "field", "field", "text", "text", "bytes")
    )
    text, what = STUDY, way
    if way == "file":
        text = what = chance.choice(EXPERIMENTS)
        if chance.random() < 0.3:
            text = STUDY + text
    elif way == "name":
        what = chance.choice(RUN_NAMES)
        text = STUDY.replace('"sft": sft', f"{what}: sft")
    elif way == "field":
        dotted = chance.choice([*field_types(), *(f.partition(".")[0] for f in field_types())])
        section, _, inner = dotted.partition(".")
        new = chance.choice(VALUES)
        change = (
            f"{section}={new}" if not inner else f"{section}=replace(sft.{section}, {inner}={new})"
        )
        if inner and chance.random() < 0.3:  # past every check of the section
            change = f"{section}=past(sft.{section}, {inner!r}, {new})"
        what = change
        text = STUDY.replace(
            "    rft = replace(", f"    sft = replace(sft, {change})\n    rft = replace("
        )
        text += "\n\ndef past(one, name, value):\n    one = replace(one)\n"
        text += "    object.__setattr__(one, name, value)\n    return one\n"
    elif way == "text":
        at = chance.randrange(len(text))
        new = chance.choice(
            (
                "",
                "x",
                "(",
                ")",
                '"',
                "\n",
                " ",
                "=",
                ",",
                ":",
                "\\",
                "None",
                "0",
                "-",
                "é",
                "\x00",
                "\r",
            )
        )
        text = text[:at] + new + text[at + chance.randint(0, 12) :]
        what = f"text at {at}: {new!r}"
    path = here / name
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    if way == "bytes":
        what = odd.damage(path, chance)
    command = chance.choice(("run", "run", "plan", "tokenizer", "help"))
    words = {
        "run": ["run", name, "--workdir", "fresh", "--only", "sft"],
        "plan": ["plan", name, "--device", "8xh100"],
        "tokenizer": ["tokenizer", name, "--workdir", "fresh"],
        "help": ["run", name, "--help", chance.choice(("", "model", "x"))],
    }[command]
    return Input(words, f"{command}: {what[:200]}")


ROW_TEXTS = (
    odd.DEEP, "#### ", "####", "<s>", "</s><unk>", "\u2028", "\\frac{1}{", "9^9^9^9", "a" * 10**6,
    "(" * 10_000, "9" * 10_000,
)  # fmt: skip
FORMS = (
    (b"\xef\xbb\xbf", b"\n"), (b"\xff\xfe", b"\n"), (b"", b"\r\n"), (b"", b"\n\n"), (b"", b"\r"),
    (b" ", b" \n"), (b"[", b",\n"), (b"\x00", b"\n"),
)  # fmt: skip
"""What stands before the first row, and after each."""


def rows(chance: Random, material: Material, here: Path) -> Input:
    """Questions, demonstrations and outputs that are odd or damaged, for what reads them."""
    command = chance.choice(("tokenizer", "run", "sample", "evaluate", "verify", "verify"))
    base = OUTPUTS if command == "verify" else QUESTIONS
    _tree(material, here, *({"sample": ["done"], "evaluate": ["done"]}.get(command, [])))
    path = here / ("outputs.jsonl" if command == "verify" else "questions.jsonl")
    way = chance.choice(
        ("field", "field", "field", "row", "damage", "damage", "long", "many", "form")
    )
    lines = [json.dumps(row).encode() for row in base]
    at, what = chance.randrange(len(lines)), way
    row = dict(base[at])
    name = chance.choice(list(row))
    if way == "field":
        odd_text = chance.choice((*odd.JSON_VALUES, *odd.NUMBERS, *ROW_TEXTS))
        row[name] = odd_text
        lines[at] = odd.dumped(row, chance)
        what = f"{name}: {str(odd_text)[:40]!r}"
    elif way == "row":
        lines[at] = odd.dumped(odd.changed(row, chance), chance)
    elif way == "long":
        row[name] = chance.choice(("a", "7", " ", "é", "a b ", "#### ", "\n", "{", "\\frac")) * (
            10**7 // 4
        )
        lines[at] = json.dumps(row).encode()
    elif way == "many":
        lines = lines * 200 if chance.random() < 0.5 else lines[:1]
    elif way == "form":
        start, end = chance.choice(FORMS)
        lines = [line + end for line in lines]
        lines[0] = start + lines[0]
        what = f"form {start + end!r}"
    path.write_bytes(b"".join(lines) if way == "form" else b"\n".join(lines) + b"\n")
    if way == "damage":
        what = odd.damage(path, chance)
    words = {
        "tokenizer": COMMANDS["tokenizer"][1],
        "run": ["run", "study.py", "--workdir", "fresh", "--only", "sft", "--sft.steps", "2"],
        "verify": [
            *COMMANDS["verify"][1],
            *chance.choice(([], ["--skip_bad"], ["--comparison", "math"])),
        ],
        "sample": COMMANDS["sample"][1],
        "evaluate": COMMANDS["evaluate"][1],
    }[command]
    return Input([word.removesuffix("[:8]") for word in words], f"{command}: {what}")


def workdir(chance: Random, material: Material, here: Path) -> Input:
    """A damaged file of a finished or a stopped workdir, and a command that reads it."""
    words: list[str] = chance.choice(
        (
            RESUME, RESUME, RESUME,
            ["run", "study.py", "--workdir", "done"],
            ["report", "done"], ["report", "stopped"],
            ["sample", "done/sft", "--out", "o.jsonl", *SAMPLE],
            ["sample", "done/rft", "--out", "o.jsonl", *SAMPLE],
            ["evaluate", "done/online@best", "--out", "out", *SAMPLE],
            ["evaluate", "done/sft@2", "--out", "out", *SAMPLE],
            ["convert", "done/rft", "out"],
        )
    )  # fmt: skip
    (part,) = _named(words)
    _tree(material, here, part)
    run = words[1].partition("/")[2].partition("@")[0]
    # What a command does not read it cannot tell, and most files are of other runs.
    folder = here / part / run if run and chance.random() < 0.8 else here / part
    path = chance.choice(odd.files(folder))
    what = odd.damage(path, chance)
    name = path.relative_to(here).as_posix()
    inside = any(
        word in name for word in ("checkpoints/", "tokenizer.model", "policy/", "rollouts/")
    )
    return Input([*words], f"{name}: {what}", inside)


TEMPLATES = (
    "{{", "{% for %}", "{{ 1/0 }}", "{{ messages.x.y }}", "{{ raise_exception('no') }}", "hello",
    "", "{{ range(10**9)|list }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}", "{{ messages|tojson(indent=10**9) }}", "{{ ''.__class__.__mro__ }}",
    "{{ strftime_now('%Y') }}", "{{ 9**9**9 }}", "{% include 'x' %}", "{% set x = x %}{{ x }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ '%1000000000d' % 1 }}",
    "{{ messages[0].content }}" * 10_000, "{% if 1 %}" * 5000,
    "{{ " + "(" * 5000 + ")" * 5000 + " }}", "{{ '{:>1000000000}'.format(1) }}",
    "{{ messages[0].content|center(10**9) }}", "\ud800",
)  # fmt: skip


EXTRA = (
    "model.safetensors", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "chat_template.json", "pytorch_model.bin",
)  # fmt: skip
"""Files that a folder may have too."""


def model(chance: Random, material: Material, here: Path) -> Input:
    """A damaged folder of a published model, and a command that reads it."""
    _tree(material, here, "model", "model_study.py")
    folder = here / "model"
    path = chance.choice([one for one in odd.files(folder) if one.name != "README.md"])
    way = chance.choice(
        ("damage", "damage", "json", "json", "header", "template", "field", "extra")
    )
    jsons = [one for one in odd.files(folder) if one.suffix == ".json"]
    if way == "damage":
        what = odd.damage(path, chance)
    elif way in ("json", "field"):
        path = chance.choice(jsons) if way == "json" else folder / "config.json"
        document = json.loads(path.read_text())
        for _ in range(chance.choice((1, 1, 2))):
            document = odd.changed(document, chance) if document != odd.DEEP else document
        path.write_bytes(odd.dumped(document, chance))
        what = way
    elif way == "template":
        path = folder / "chat_template.jinja"
        what = chance.choice(TEMPLATES)
        path.write_text(what, encoding="utf-8", errors="surrogatepass")
    elif way == "header":
        path = chance.choice(sorted(folder.glob("*.safetensors")))
        what = f"header: {_header(path, chance)}"
    else:
        what = chance.choice(EXTRA)
        path = folder / what
        path.write_bytes(chance.choice((b"", b"{}", b"[]", b"x", b"\0" * 100, b'{"a": {"b": []}}')))
    words: list[str] = chance.choice(
        (
            ["sample", "model", "--out", "o.jsonl", *SAMPLE],
            ["evaluate", "model", "--out", "out", *SAMPLE, "--verifier", "judge:even"],
            ["convert", "model", "out"],
            ["run", "model_study.py", "--workdir", "fresh"],
        )
    )  # fmt: skip
    weights = path.suffix == ".safetensors" and way == "damage" and what in ("truncate", "empty")
    return Input([*words], f"{path.name}: {what[:200]}", weights)


def _header(path: Path, chance: Random) -> str:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = data[8 : 8 + length], data[8 + length :]
    way = chance.choice(("length", "json", "json", "json", "flip", "body"))
    if way == "length":
        size = chance.choice((0, 1, length - 1, length + 1, 2**32, 2**63, 2**64 - 1, 10**8))
        path.write_bytes(size.to_bytes(8, "little") + data[8:])
        return f"length {size}"
    if way == "json":
        header = odd.dumped(odd.changed(json.loads(header), chance), chance)
    elif way == "flip":
        header = odd.flipped(header, chance)
    else:
        body = chance.choice((body[:-4], body + b"\0" * 4, b"\xff" * len(body), b""))
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)
    return way


KINDS: Mapping[str, Callable[[Random, Material, Path], Input]] = {
    "command_line": command_line,
    "field": field,
    "experiment": experiment,
    "rows": rows,
    "workdir": workdir,
    "model": model,
}


def make(kind: str, seed: int, number: int, material: Material, here: Path) -> Input:
    """The input of a kind, a seed and a number, in the folder `here`."""
    made = KINDS[kind](Random(f"{seed}/{kind}/{number}"), material, here)
    # What no process can be given.
    return made._replace(
        words=[os.fsdecode(os.fsencode(word.replace("\0", ""))) for word in made.words]
    )
