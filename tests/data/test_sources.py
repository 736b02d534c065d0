"""Questions from TFDS and JSONL: rows, slices, ids, and one-line errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rft_jax.data.arithmetic import SPLITS, Problem, splits
from rft_jax.data.arithmetic_builder import ArithmeticProblems
from rft_jax.data.sources import load
from rft_jax.errors import DataError
from rft_jax.types import Question

GSM8K = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k"
GOOD = {"question": "1+1?", "answer": "2"}


class ToySums(tfds.core.GeneratorBasedBuilder):
    """A stranger's data set in GSM8K's form."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = Path(__file__).parent  # this file belongs to no package

    def _info(self):
        fields = dict.fromkeys(("question", "answer", "note"), np.str_)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(fields), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        good = [{"question": f"{i}+1?", "answer": f"It is.\n#### {i + 1}"} for i in range(3)]
        bad = [good[0], good[1] | {"answer": ""}]
        return {"train": self._generate_examples(good), "bad": self._generate_examples(bad)}

    def _generate_examples(self, rows):
        for i, row in enumerate(rows):
            yield i, row | {"note": "unused"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def small(monkeypatch):
    """Fewer problems, where a test prepares its own copy."""
    sizes = dict.fromkeys(SPLITS, 20)
    monkeypatch.setattr("rft_jax.data.arithmetic.SPLITS", sizes)
    return sizes


@pytest.fixture
def jsonl(tmp_path, monkeypatch):
    """Writes q.jsonl into the working directory and gives its source."""
    monkeypatch.chdir(tmp_path)

    def write(*lines):
        texts = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        Path("q.jsonl").write_bytes(b"".join(text + b"\n" for text in texts))
        return "jsonl:q.jsonl"

    return write


def test_jsonl_rows(jsonl):
    source = jsonl(
        {"question": " 1+1? ", "answer": " 2 "},
        {"question": "2*3?", "answer": "6", "solution": "2*3=6\n#### 6", "level": 7},
        {"question": "Big?", "answer": "500*2=<<500*2=1000>>1,000\n#### 1,000 "},
        json.dumps({"question": "Größe \u2028 \U0001f600", "answer": "1,5"}, ensure_ascii=False)
        .encode() + b"\r",
    )  # fmt: skip
    assert load(source) == (
        Question(0, " 1+1? ", "2", None),
        Question(1, "2*3?", "6", "2*3=6\n#### 6"),
        Question(2, "Big?", "1000", "500*2=<<500*2=1000>>1,000\n#### 1,000 "),
        Question(3, "Größe \u2028 \U0001f600", "1,5", None),
    )


def test_a_last_line_needs_no_newline(jsonl):
    source = jsonl(GOOD)
    Path("q.jsonl").write_bytes(json.dumps(GOOD).encode())
    assert load(source) == (Question(0, "1+1?", "2"),)


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"\n \n\t\n\n", b"\r\n", b"\r\n\r\n"])
@pytest.mark.parametrize("mark", [b"", BOM])
def test_a_byte_order_mark_and_blank_lines_at_the_end_are_no_rows(jsonl, mark, end):
    source = jsonl(GOOD)
    row = json.dumps(GOOD).encode()
    Path("q.jsonl").write_bytes(mark + row + (b"\r\n" if b"\r" in end else b"\n") + row + end)
    assert load(source) == (Question(0, "1+1?", "2"), Question(1, "1+1?", "2"))


def test_a_byte_order_mark_stands_only_in_front(jsonl):
    with pytest.raises(DataError, match=r"q\.jsonl:2: not JSON \("):
        load(jsonl(GOOD, BOM + json.dumps(GOOD).encode()))


def test_a_path_may_hold_brackets_and_be_absolute(tmp_path):
    path = tmp_path / "a[1]" / "q[2].jsonl"
    path.parent.mkdir()
    path.write_text(json.dumps(GOOD) + "\n")
    assert len(load(f"jsonl:{path}")) == len(load(f"jsonl:{path}[:1]")) == 1


@pytest.mark.parametrize(
    ("written", "ids"),
    [
        ("[:2]", [0, 1]), ("[3:]", [3, 4]), ("[1:3]", [1, 2]), ("[:]", [0, 1, 2, 3, 4]),
        ("[-2:]", [3, 4]), ("[:-4]", [0]), ("[0:5]", [0, 1, 2, 3, 4]),
    ],
)  # fmt: skip
def test_slices_keep_the_row_numbers(jsonl, written, ids):
    source = jsonl(*({"question": f"{i}?", "answer": str(i)} for i in range(5)))
    questions = load(source + written)
    assert [q.id for q in questions] == ids
    assert [q.answer for q in questions] == [str(i) for i in ids]


@pytest.mark.parametrize("written", ["[1]", "[::2]", "[:10%]", "[a:]", "[]", "[1.5:]", "[: 2]"])
def test_a_bad_slice(jsonl, written):
    with pytest.raises(DataError, match=r"the slice .* is not understood: write \[START:STOP\]"):
        load(jsonl(GOOD) + written)


@pytest.mark.parametrize("written", ["[:3]", "[3:]", "[-3:]"])
def test_a_slice_past_the_end(jsonl, written):
    with pytest.raises(DataError, match=r"the slice names row -?3 and there are 2 rows: keep it"):
        load(jsonl(GOOD, GOOD) + written)


@pytest.mark.parametrize("written", ["[1:1]", "[2:]", "[2:1]", "[:0]"])
def test_an_empty_slice(jsonl, written):
    with pytest.raises(DataError, match=r"is empty: it takes 0 of 2 rows; name some\.$"):
        load(jsonl(GOOD, GOOD) + written)


def test_an_empty_file(jsonl):
    with pytest.raises(DataError, match=r"^source 'jsonl:q.jsonl' is empty: it takes 0 of 0 rows"):
        load(jsonl())


def test_other_columns_and_other_answers_are_for_a_verifier_that_reads_them(jsonl, data_dir):
    row = GOOD | {"tests": [[1, 2]], "id": "a"}
    source = jsonl(row, row | {"answer": [2, {"x": None}]}, row | {"answer": None})
    with pytest.raises(DataError, match=r"q.jsonl:2: answer is of type list: it must be text"):
        load(source, columns=True)
    questions = load(source, columns=True, any_answer=True)
    assert [question.answer for question in questions] == ["2", [2, {"x": None}], None]
    assert questions[0].columns == {"tests": [[1, 2]], "id": "a"}
    assert load(source, any_answer=True)[0].columns == {}
    assert load("tfds:toy_sums/train", data_dir, columns=True)[0].columns == {"note": "unused"}
    with pytest.raises(DataError, match=r"q.jsonl:1: answer is missing"):
        load(jsonl({"question": "?"}), any_answer=True)


@pytest.mark.parametrize("source", ["", "q.jsonl", "csv:q", "jsonl:", "tfds:", "[:]"])
def test_a_source_not_understood(source):
    with pytest.raises(DataError, match=r"is not understood: write tfds:NAME/SPLIT, jsonl:PATH or"):
        load(source)


@pytest.mark.parametrize("source", ["tfds:gsm8k", "tfds:gsm8k/", "tfds:/train"])
def test_a_tfds_source_without_split(source):
    with pytest.raises(DataError, match="names no split: write tfds:NAME/SPLIT"):
        load(source)


BAD_ROWS = [
    (b"{", "not JSON (Expecting property name enclosed in double quotes at column 2)"),
    (b'{"question": "a" "b"}', "not JSON (Expecting ',' delimiter at column 18)"),
    (b"[" * 100_000, "not JSON to be read here (nested more than 100 deep)"),
    (b'{"answer": ' + b"9" * 5000 + b"}", "not JSON to be read here (Exceeds the limit"),
    (b'{"question": "\xff"}', "byte 15 is not UTF-8: save the file as UTF-8"),
    (b"", "the line is blank: every line must hold one JSON object"),
    (b"  ", "the line is blank"),
    (b"[1]", "a JSON list, not an object: every line must hold one JSON object."),
    (b'"text"', "a JSON str, not an object"),
    ({}, "question is missing: a row needs question and answer, and may have solution (found: no"),
    ({"question": "a", "b": 1}, "answer is missing: a row needs question and answer, and may have"),
    ({"Question": "a", "answer": "1"}, "question is missing: "),
    (GOOD | {"question": 3}, "question is of type int: it must be text, in quotes"),
    (GOOD | {"answer": 2.5}, "answer is of type float: it must be text, in quotes"),
    (GOOD | {"solution": None}, "solution is of type NoneType: it must be text, in quotes"),
    (GOOD | {"question": " \n"}, "question is empty: fill it in or leave the row out"),
    (GOOD | {"answer": ""}, "answer is empty"),
    (GOOD | {"solution": ""}, "solution is empty"),
    (GOOD | {"question": "a\ud800"}, "question has half of a surrogate pair at character 1"),
    (GOOD | {"answer": "#### 1\n#### 2"}, "answer has 2 #### marks: keep the one before the final"),
    (GOOD | {"answer": "1+1=2\n#### , "}, "answer has nothing after ####: write the final answer"),
    (GOOD | {"answer": "#### 2", "solution": "#### 2"}, "answer is a worked solution (it has a"),
]


@pytest.mark.parametrize(("line", "message"), BAD_ROWS)
def test_a_malformed_row_is_named_by_file_and_line(jsonl, line, message):
    """Also when the slice leaves it out: the file is wrong."""
    with pytest.raises(DataError) as error:
        load(jsonl(GOOD, GOOD, line, GOOD) + "[:1]")
    assert str(error.value).startswith(f"q.jsonl:3: {message}")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^no.jsonl: cannot read the questions \(No such file"):
        load("jsonl:no.jsonl")
    with pytest.raises(DataError, match=r"cannot read the questions \(Is a directory\): give"):
        load(f"jsonl:{tmp_path}")


@pytest.mark.skipif(not GSM8K.is_dir(), reason="the official GSM8K files are not there")
@pytest.mark.parametrize(("split", "rows"), [("train", 7473), ("test", 1319)])
def test_the_official_gsm8k_files(split, rows):
    questions = load(f"jsonl:{GSM8K / split}.jsonl")
    assert [q.id for q in questions] == list(range(rows))
    assert all(int(q.answer) == float(q.answer) for q in questions)
    assert all(q.solution and "####" in q.solution for q in questions)


@pytest.mark.slow
def test_tfds_rows_equal_the_generators(data_dir):
    for split, rows in splits().items():
        questions = load(f"tfds:arithmetic_problems/{split}", data_dir)
        assert [q.id for q in questions] == list(range(SPLITS[split]))
        assert [Problem(q.text, q.answer, q.solution) for q in questions] == rows


@pytest.mark.slow
def test_tfds_slices_keep_the_row_numbers(data_dir):
    whole = load("tfds:arithmetic_problems/test", data_dir)
    assert load("tfds:arithmetic_problems/test[10:12]", data_dir) == whole[10:12]
    assert [q.id for q in whole[10:12]] == [10, 11]
    assert load("tfds:arithmetic_problems/test[2000:]", data_dir) == whole[2000:]
    with pytest.raises(DataError, match="names row 2049 and there are 2048 rows"):
        load("tfds:arithmetic_problems/test[:2049]", data_dir)


def test_an_unknown_split_names_the_known(data_dir):
    with pytest.raises(DataError) as error:
        load("tfds:arithmetic_problems/dev", data_dir)
    assert str(error.value) == (
        "source 'tfds:arithmetic_problems/dev': there is no split dev; choose one of "
        "demonstrations, train, validation, test, reworded_train, reworded_validation, "
        "reworded_test."
    )


def test_preparing_is_silent(tmp_path, capfd):
    load("tfds:toy_sums/train", str(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_another_data_set_of_tfds(data_dir):
    assert load("tfds:toy_sums/train[1:]", data_dir) == (
        Question(1, "1+1?", "2", "It is.\n#### 2"),
        Question(2, "2+1?", "3", "It is.\n#### 3"),
    )
    with pytest.raises(DataError, match=r"^tfds:toy_sums/bad: row 1: answer is empty: fill"):
        load("tfds:toy_sums/bad", data_dir)


def test_a_data_set_that_tfds_does_not_give(data_dir, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError) as error:
        load("tfds:no_such_data/train", data_dir)
    assert str(error.value) == (
        "tfds:no_such_data: TFDS cannot give it (TensorFlow is not installed; "
        "DatasetNotFoundError: Dataset no_such_data not found.): its own data sets need TensorFlow "
        "(pip install tensorflow) and, the first time, network; or download the official JSONL "
        "files and name them as jsonl:PATH."
    )


def test_without_network(tmp_path, monkeypatch):
    def fail(self, *args):
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr(ToySums, "_split_generators", fail)
    with pytest.raises(DataError, match=r"\(.*ConnectionError: no route to host\): its own data"):
        load("tfds:toy_sums/train", str(tmp_path))


def test_a_data_dir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be made or read in data_dir, .*file \(.*: see"):
        load("tfds:arithmetic_problems/train", str(tmp_path / "file"))


def test_prepared_files_that_are_damaged(tmp_path, small):
    load("tfds:arithmetic_problems/test[:1]", str(tmp_path))
    (record,) = tmp_path.rglob("*-test.array_record*")
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(DataError, match=r"or delete its folder arithmetic_problems, which is then"):
        load("tfds:arithmetic_problems/test", str(tmp_path))


def test_an_interrupted_preparation_leaves_nothing_that_looks_prepared(
    tmp_path, monkeypatch, small
):
    generate = ArithmeticProblems._generate_examples

    def interrupted(self, rows):
        yield from generate(self, rows)
        raise KeyboardInterrupt

    monkeypatch.setattr(ArithmeticProblems, "_generate_examples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("tfds:arithmetic_problems/test", str(tmp_path))
    monkeypatch.setattr(ArithmeticProblems, "_generate_examples", generate)
    assert len(load("tfds:arithmetic_problems/test", str(tmp_path))) == small["test"]


def test_who_comes_second_reads_what_the_first_wrote(tmp_path, monkeypatch, small):
    generate = ArithmeticProblems._generate_examples
    folder = str(tmp_path)

    def overtaken(self, rows):
        yield from generate(self, rows)
        if not first:
            with monkeypatch.context() as patch:
                patch.setattr(ArithmeticProblems, "_generate_examples", generate)
                first.extend(load("tfds:arithmetic_problems/test", folder))

    first = []
    monkeypatch.setattr(ArithmeticProblems, "_generate_examples", overtaken)
    second = load("tfds:arithmetic_problems/test", folder)
    assert list(second) == first
    assert [path.name for path in (tmp_path / "arithmetic_problems").iterdir()] == ["1.1.0"]


ALONE = """
import socket, sys
def refuse(*args, **kwargs): raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refuse
from rft_jax.data import prompts, stream as questions, sources
from rft_jax.data.tokenizers import load as tokenizer
assert "tensorflow_datasets" not in sys.modules
print(len(sources.load("tfds:arithmetic_problems/train", sys.argv[1])))
print([name for name in ("tensorflow", "jax", "flax", "torch") if name in sys.modules])
"""


@pytest.mark.slow
def test_processes_that_start_together_need_no_tensorflow_jax_or_network(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ALONE, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.communicate(timeout=120) == ("8192\n[]\n", "")
