"""`rft-jax methods`: every row is shown, and two are compared by their own code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rft_jax.commands import main as cli
from rft_jax.commands.methods import differences, table
from rft_jax.commands.methods_picture import alike, curves
from rft_jax.errors import ConfigError
from rft_jax.training.methods import METHODS


def test_the_table_has_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == table().strip()
    for name, row in METHODS.items():
        (line,) = [one for one in shown.splitlines() if one.startswith(f"| {name} ")]
        assert f" {row.formula} " in line
        assert f" {row.denominator} " in line
        assert f"{name}: {row.about}." in shown


def test_the_docs_have_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs/methods.md").read_text(encoding="utf-8")
    shown = text.partition("<!-- table -->\n")[2].partition("\n<!-- end -->")[0]
    assert shown == table().split("\n\n")[0]


def test_two_methods_are_told_apart_in_words_and_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["methods", "--differences", "online_rft", "w_reinforce", "--group", "4"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"GC +\| I\(o\) +\| 0.1 if correct, -1 if not", shown)
    assert "outputs of" not in shown  # of the policy, both
    rows = [line for line in shown.splitlines() if line.startswith("| 0.")]
    assert [[float(cell) for cell in row.strip("| ").split("|")] for row in rows] == [
        [rate, 1.0, 0.0, 1.0, 0.1, -1.0, 1.1] for rate in (0.05, 0.2, 0.5, 0.8, 0.95)
    ]


@pytest.mark.parametrize(
    ("names", "group", "message"),
    [
        (["grpo"], 8, "--differences is followed by grpo: two methods are expected"),
        (["grpo", "gspo", "dapo"], 8, "followed by grpo gspo dapo: two methods"),
        (["grpo", "online_rf"], 8, "no method 'online_rf'; did you mean online_rft"),
        (["grpo", "dapo"], 1, "--group is 1: methods compare at least 2 outputs"),
        (["grpo", "dapo"], 1100, "--group is 1100: at most 1000 outputs"),
    ],
)
def test_what_cannot_be_compared_is_said(names: list[str], group: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        differences(names, group)


def test_demonstrations_have_no_pass_rate() -> None:
    shown = differences(["sft", "online_rft"], 4)
    assert re.search(r"outputs of +\| demonstrations +\| policy", shown)
    rows = [line.strip("| ").split("|") for line in shown.splitlines() if line.startswith("| 0.")]
    assert [[cell.strip() for cell in row[1:4]] for row in rows] == [["-"] * 3] * 5
    assert [float(row[4]) for row in rows] == [1.0] * 5


def test_a_group_without_methods_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "--group", "4"]) == 2
    assert "--group does nothing without --differences or --picture" in capsys.readouterr().err


def test_rows_of_one_curve_share_a_line() -> None:
    found = curves(group=8)
    assert set(found) == {n for n, row in METHODS.items() if row.source != "demonstrations"}
    together = alike(found)
    assert sorted(name for names in together for name in names) == sorted(found)
    assert [n for n in together if "online_rft" in n] == [["rft", "online_rft", "raft++", "psr"]]
    correct, wrong, factor = found["grpo"][:, 49]  # at pass rate 0.5, as the command prints them
    assert (correct, wrong, factor) == pytest.approx((0.868, -0.868, 1.736), abs=1e-3)


def test_the_picture_of_the_docs_has_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["methods", "--picture", str(tmp_path / "new.svg"), "--group", "4"]) == 0
    assert capsys.readouterr().out == ""
    committed = Path(__file__).parents[2] / "docs" / "figures" / "methods.svg"
    for picture in (tmp_path / "new.svg", committed):
        words = re.findall(r"[\w+]+", " ".join(re.findall(r">([^<]*)</text>", picture.read_text())))
        assert set(curves(group=2)) <= set(words), picture


@pytest.mark.parametrize(
    ("file", "group", "message"),
    [
        ("new.svg", "1", "--group is 1: methods compare at least 2 outputs"),
        ("new", "2", "new: name a file of a format, such as methods.svg"),
        ("new.odd", "8", "new.odd: cannot write here (Format 'odd' is not supported"),
    ],
)
def test_a_picture_that_cannot_be_drawn(
    file: str, group: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["methods", "--picture", str(tmp_path / file), "--group", group]) == 2
    assert message in capsys.readouterr().err
