"""What the runs of a study measured: results as JSON, and from these its tables and figure."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rft_jax.config.study import TUNING_SEED, Study
from rft_jax.errors import UserError
from rft_jax.io.jsonl import read_jsonl
from rft_jax.io.paths import Folder
from rft_jax.observe import log
from rft_jax.observe.statistics import crossed_interval, pass_at_k
from rft_jax.observe.tables import markdown
from rft_jax.report.load import COLOURS
from rft_jax.report.tables import BOOTSTRAP_SEED, NOTHING, compact

Results = dict[str, Any]
Line = dict[str, Any]

CURVES = ("greedy/accuracy", "policy/entropy", "questions/distinct_correct", "cost/sampled_outputs",
          "cost/sampled_tokens", "cost/updates", "seconds")  # fmt: skip
"""What is kept of each evaluation of a run, beside the study's score."""
COSTS = {"samples": "cost/sampled_outputs", "updates": "cost/updates",
         "tokens": "cost/sampled_tokens", "seconds": "seconds", "flops": "flops"}  # fmt: skip
"""What a run took, and the metric that counts it."""
LAST_STEPS = 20
"""Steps at the end of a run over which acceptance is measured."""
CLOSE = 0.02
"""Budgets that differ by no more than this share are equal."""


# One run


def lines_of(workdir: Folder, name: str) -> list[Line]:
    """A run's metrics, each line with its `seconds` so far without those of evaluations, and its
    `flops` of sampling and updating."""
    evaluating, flops, lines = 0.0, 0.0, log.read(workdir / name / "metrics.jsonl")
    for line in lines:
        flops += sum(line.get(f"utilization/{part}_flops") or 0 for part in ("sampling", "update"))
        line["flops"] = flops
        if line["kind"] != "train":
            evaluating += line.get("seconds/evaluating") or 0.0
        line["seconds"] = line["seconds/elapsed"] - evaluating
    return lines


def curve(workdir: Folder, name: str, measures: Iterable[str] = CURVES) -> dict[str, list[Any]]:
    """Validation metrics over a run, by name."""
    rows = [line for line in lines_of(workdir, name) if line["kind"] == "validation"]
    return {key: [row.get(key) for row in rows] for key in ("step", *measures)}


def test_line(workdir: Folder, name: str) -> Line:
    """The metrics of a run on the test questions; UserError where they are not there."""
    # A run that continued after its end is tested again.
    tests = [line for line in lines_of(workdir, name) if line["kind"] == "test"]
    if not tests:
        raise UserError(f"{workdir / name} has no test in metrics.jsonl: run the study to its end.")
    return tests[-1]


def validation_score(workdir: Folder, name: str, score: str, last: int) -> float:
    """The mean of a measure over the last evaluations of a run on validation questions."""
    values = [value for value in curve(workdir, name, (score,))[score] if value is not None]
    if not values:
        raise UserError(
            f"{workdir / name} has no evaluation with {score}: no question could be decided; look "
            "at its outputs (rft-jax report)."
        )
    return float(np.mean(values[-last:]))


def per_question(workdir: Folder, name: str, measure: str, file: str = "test.jsonl") -> np.ndarray:
    """A measure of each question of an evaluation, in order; NaN where it is not decided.

    Args:
        measure: greedy/accuracy, pass_at/K or questions/distinct_correct.
        file: of RUN/evaluation.
    """
    rows = read_jsonl(workdir / name / "evaluation" / file, {"question_id": int})
    rows.sort(key=lambda row: row["question_id"])
    kind, _, k = measure.partition("/")
    if kind == "pass_at":
        return np.array([
            float(pass_at_k(row["num_samples"], row["num_correct"], int(k)))
            if row["num_samples"] >= int(k) else np.nan
            for row in rows
        ])  # fmt: skip
    field = {"greedy": "greedy_correct", "questions": "num_distinct_correct"}[kind]
    return np.array([np.nan if row[field] is None else row[field] for row in rows], float)


def accepted(workdir: Folder, name: str) -> float | None:
    """The share of outputs that are correct in the last steps of a run that samples."""
    steps = [line for line in lines_of(workdir, name) if line.get("funnel/sampled")][-LAST_STEPS:]
    if not steps:
        return None
    correct, sampled = (
        sum(step[f"funnel/{key}"] for step in steps) for key in ("correct", "sampled")
    )
    return float(correct / sampled)


# All of them


def scores(study: Study, workdir: Folder) -> dict[str, list[float]]:
    """What each try of each arm scored on validation questions."""
    return {
        arm: [
            validation_score(workdir, study.name(arm, TUNING_SEED, tried), study.score, study.last)
            for tried in range(len(study.tries))
        ]
        for arm in study.arms
    }


def collect(
    study: Study,
    workdir: Folder,
    tried: Mapping[str, Sequence[float]],
    chosen: Mapping[str, int],
    seeds: Sequence[int],
) -> Results:
    """The results of a study whose runs of these seeds are finished, as JSON holds them.

    Args:
        tried: scores of each arm's tries; empty where nothing was chosen.
        chosen: number of each arm's try, where something was.
        seeds: those that are compared.
    """
    compared, configs = study.compared(chosen), {**study.starts, **study.arms}
    runs = {
        name: [compared[seed][name] for seed in seeds]
        for name, config in configs.items()
        if config.data.test
    }
    samples = {
        name: config.evaluation.test_samples_per_question for name, config in configs.items()
    }
    data = study.arms[study.base].data
    scored = [study.score]
    scored += [f"{value.partition('=')[0]}/{study.score}" for value in data.more_validation]
    tested = {
        name: _tested(workdir, own, configs[name].data.more_test) for name, own in runs.items()
    }
    pairs = [(start, arm) for start in study.starts if start in runs for arm in study.arms]
    pairs += [(study.base, arm) for arm in study.arms if arm != study.base]
    arms = {arm: runs[arm] for arm in study.arms}
    return {
        "seeds": list(seeds),
        "compared": list(study.arms),
        "baseline": study.base,
        "score": study.score,
        "scored": scored,
        "equal": list(study.equal),
        "intervals": "seeds and questions",
        "tuning": {
            arm: [
                {"settings": values, "score": score}
                for values, score in zip(study.tries, of_arm, strict=True)
            ]
            for arm, of_arm in tried.items()
        },
        "arms": {
            name: {
                "settings": {} if name in study.starts else study.tries[chosen.get(name, 0)],
                "test": {measure: _estimate(values) for measure, values in tested[name].items()},
                "accepted": _estimate([[accepted(workdir, run)] for run in own]),
                "costs": {
                    cost: float(np.mean([lines_of(workdir, run)[-1][metric] for run in own]))
                    for cost, metric in COSTS.items()
                },
                "curves": [curve(workdir, run, dict.fromkeys((*CURVES, *scored))) for run in own],
            }
            for name, own in runs.items()
        },
        "paired": [
            {"from": a, "to": b, "measures": _differences(tested[a], tested[b])} for a, b in pairs
        ],
        "turnover": {
            arm: {
                start: _turnover(workdir, runs[start], runs[arm])
                for start in study.starts
                if start in runs and samples[start] == samples[arm] and "pass_at/1" in tested[arm]
            }
            for arm in study.arms
        },
        "at_equal": {
            cost: _at_equal(workdir, arms, cost, study) for cost in ("samples", "seconds")
        },
    }


def _tested(
    workdir: Folder, runs: Sequence[str], sets: Sequence[str]
) -> dict[str, list[np.ndarray]]:
    """Values [seed][question] of what the test measured, of further sets, each NAME=SOURCE, as
    `NAME/MEASURE`; of what it has once, one a seed."""
    lines = [test_line(workdir, run) for run in runs]
    ks = [int(name.rpartition("/")[2]) for name in lines[0] if name.startswith("pass_at/")]
    measures = ["greedy/accuracy", *(f"pass_at/{k}" for k in sorted(ks))]
    measures += ["questions/distinct_correct"] if ks else []
    values = {name: [per_question(workdir, run, name) for run in runs] for name in measures}
    entropies = [np.array([line["policy/entropy"]], float) for line in lines]
    further = {
        f"{part}/{name}": [per_question(workdir, run, name, f"test-{part}.jsonl") for run in runs]
        for part in (value.partition("=")[0] for value in sets)
        for name in measures[:2]
    }
    return {**values, "policy/entropy": entropies, **further}


def _estimate(values: Sequence[Any]) -> dict[str, Any] | None:
    interval = crossed_interval(values, seed=BOOTSTRAP_SEED)
    return interval and interval._asdict()


def _differences(
    a: Mapping[str, Sequence[np.ndarray]], b: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, Any]:
    """b - a, seed by seed and question by question, of what both have."""
    return {
        name: _estimate([y - x for x, y in zip(a[name], b[name], strict=True)])
        for name in a
        if name in b
    }


def _turnover(workdir: Folder, starts: Sequence[str], runs: Sequence[str]) -> dict[str, Any]:
    """Of all questions of the test: those that the start solves in none of its outputs, those of
    them that the arm solves in any, and those that the start solves and the arm does not."""
    files = [(run, workdir / run / "evaluation/test.jsonl") for run in (*starts, *runs)]
    rows = {run: read_jsonl(file, {"question_id": int}) for run, file in files}
    found: dict[str, list[np.ndarray]] = {"unsolved": [], "gained": [], "lost": []}
    for start, run in zip(starts, runs, strict=True):
        before, after = (
            np.array([
                row["num_correct"] > 0 if row["num_samples"] else np.nan
                for row in sorted(rows[name], key=lambda row: row["question_id"])
            ], float)
            for name in (start, run)
        )  # fmt: skip
        found["unsolved"].append(1 - before)
        found["gained"].append((1 - before) * after)
        found["lost"].append(before * (1 - after))
    samples = max(row["num_samples"] for row in rows[runs[0]])
    return {"samples": samples} | {name: _estimate(values) for name, values in found.items()}


def _at_equal(
    workdir: Folder, arms: Mapping[str, Sequence[str]], cost: str, study: Study
) -> dict[str, Any]:
    """The score of each arm on validation questions, at its last evaluation before it had taken
    more than the arm of the seed that takes least in all; empty where none is evaluated."""
    ends = {arm: [lines_of(workdir, run)[-1][COSTS[cost]] for run in arms[arm]] for arm in arms}
    ends = {arm: own for arm, own in ends.items() if all(own)}
    limits = np.min(list(ends.values()), axis=0) if ends else ()
    values: dict[str, list[np.ndarray]] = {}
    for arm, runs in arms.items():
        for run, limit in zip(runs, limits, strict=False):
            evaluated = curve(workdir, run, (COSTS[cost],))
            within = [s for s, c in zip(*evaluated.values(), strict=True) if c <= limit]
            # Before its first update it is still the start, whose evaluation is that of step 0.
            for step in (within or evaluated["step"][:1])[-1:]:
                file = f"validation-{step:06d}.jsonl"
                values.setdefault(arm, []).append(per_question(workdir, run, study.score, file))
    if not values:
        return {}
    base = {study.score: values[study.base]}
    return {
        "limit": float(np.mean(limits)),
        "arms": {arm: _estimate(own) for arm, own in values.items()},
        "differences": {
            arm: _differences(base, {study.score: own})[study.score]
            for arm, own in values.items()
            if arm != study.base
        },
    }


# Shown


def tables(results: Results) -> str:
    """The results as Markdown: what was measured, differences, equal samples and seconds."""
    arms, costs = results["arms"], list(COSTS)
    measures = _shown(results)
    rows = [
        [
            name,
            _settings(arm["settings"]),
            *(_cell(measure, arm["test"].get(measure)) for measure in measures),
            _cell("accepted", arm["accepted"]),
            *(compact(arm["costs"].get(cost)) for cost in costs),
        ]
        for name, arm in arms.items()
    ]
    titles = [_title(measure) for measure in measures]
    parts = [markdown(["test questions", "settings", *titles, "accepted %", *costs], rows)]
    rows = [
        [f"{pair['to']} - {pair['from']}"]
        + [_cell(measure, pair["measures"].get(measure), sign="+") for measure in measures]
        for pair in results["paired"]
    ]
    if rows:
        parts.append(markdown(["paired difference", *titles], rows))
    rows = [
        [arm, start, *(_cell("pass_at", found[name]) for name in ("unsolved", "gained", "lost"))]
        for arm, starts in results.get("turnover", {}).items()
        for start, found in starts.items()
    ]
    if rows:
        samples = next(iter(next(iter(results["turnover"].values())).values()))["samples"]
        head = [
            f"unsolved by the start in {samples} %",
            "solved now %",
            "solved by the start only %",
        ]
        parts.append(markdown(["arm", "start", *head], rows))
    if rows := _prices(results):
        head = [f"{measure} for a point of pass@1" for measure in ("tokens", "seconds", "FLOPs")]
        parts.append(markdown(["arm", "start", "points of pass@1", *head], rows))
    rows = [
        [f"{cost}: {compact(found['limit'])}", arm, _cell(results["score"], estimate),
         _cell(results["score"], found["differences"].get(arm), sign="+")]
        for cost, found in results["at_equal"].items() if found
        for arm, estimate in found["arms"].items()
    ]  # fmt: skip
    if rows:
        head = [f"{_title(results['score'])}, validation", f"minus {results['baseline']}"]
        parts.append(markdown(["at equal", "arm", *head], rows))
    return "\n\n".join([*parts, "\n".join(_notes(results))])


def _prices(results: Results) -> list[list[str]]:
    """What an arm took for each point of pass@1 that it is above its start on the test; the ends of
    the interval are those of the points."""
    rows = []
    for pair in results["paired"]:
        found = pair["measures"].get("pass_at/1")
        if pair["from"] in results["compared"] or found is None:
            continue
        costs = results["arms"][pair["to"]]["costs"]
        points = [100 * found[end] for end in ("mean", "low", "high")]
        cells = []
        for cost in (costs.get(name) for name in ("tokens", "seconds", "flops")):
            each = [compact(cost / p) if cost and p > 0 else NOTHING for p in points]
            cells.append(f"{each[0]} [{each[2]}, {each[1]}]")
        rows.append([pair["to"], pair["from"], _cell("pass_at/1", found, sign="+"), *cells])
    return rows


def _notes(results: Results) -> list[str]:
    """What the numbers cover, what was tried, and which budgets are not the same after all."""
    seeds = ", ".join(str(seed) for seed in results["seeds"])
    notes = [
        f"Means over seeds {seeds} [95 % interval over {results['intervals']}]. Costs are means "
        "over seeds; seconds are without evaluations."
    ]
    for arm, tries in results["tuning"].items():
        tried = "; ".join(f"{_settings(one['settings'])}: {one['score']:.4f}" for one in tries)
        notes.append(f"{arm} tried on validation questions ({results['score']}): {tried}.")
    base = results["arms"][results["baseline"]]["costs"]
    for arm in results["compared"]:
        for cost in results["equal"]:
            took = results["arms"][arm]["costs"][cost]
            if abs(took - base[cost]) > CLOSE * base[cost]:
                notes.append(
                    f"**Budgets differ**: {arm} took {took:,.0f} {cost}, {results['baseline']} "
                    f"{base[cost]:,.0f}."
                )
    return notes


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{field} {value}" for field, value in values.items())


def _title(measure: str) -> str:
    if measure.count("/") > 1:
        part, _, measure = measure.partition("/")
        return f"{part}: {_title(measure)}"
    kind, _, k = measure.partition("/")
    names = {"greedy": "greedy %", "pass_at": f"pass@{k} %", "policy": "entropy"}
    return names.get(kind, "distinct correct")


def _shown(results: Results) -> list[str]:
    """Measures that the tables have: of pass@k the first and the last."""
    every = list(results["arms"][results["baseline"]]["test"])
    passes = [name for name in every if name.startswith("pass_at/")]
    return [name for name in every if name not in passes[1:-1]]


def _cell(measure: str, found: Mapping[str, Any] | None, sign: str = "") -> str:
    """`58.7 [56.1, 60.9]`, in percent where it is a share."""
    if found is None:
        return NOTHING
    share = any(name in measure for name in ("greedy", "pass_at", "accepted"))
    scale, form = (100, f"{sign}.1f") if share else (1, f"{sign}.3f")
    mean, low, high = (
        None if found.get(name) is None else format(scale * found[name], form)
        for name in ("mean", "low", "high")
    )
    return f"{mean} [{low}, {high}]" if low else f"{mean}"


def figure(results: Results) -> bytes:
    """The score over updates, tokens and seconds, entropy, diversity and pass@k, as a PNG: thin a
    seed, thick their mean, bands 95 % intervals."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from rft_jax.report.figures import STYLE

    score, compared = results["score"], results["compared"]
    colours = dict(zip(results["arms"], itertools.cycle(COLOURS), strict=False))
    over = [
        (score, "cost/updates"),
        (score, "cost/sampled_tokens"),
        (score, "seconds"),
        ("policy/entropy", "cost/updates"),
        ("questions/distinct_correct", "cost/updates"),
        *((measure, "cost/updates") for measure in results.get("scored", ())[1:]),
    ]
    firsts = [results["arms"][arm]["curves"][0] for arm in compared]
    over = [
        pair for pair in over if all(any(any(one.get(name, ())) for one in firsts) for name in pair)
    ]
    with rc_context(STYLE):
        columns, rows = 3, len(over) // 3 + 1
        drawn = Figure(figsize=(3.6 * columns, 3.0 * rows), layout="constrained")
        *panels, last = (drawn.add_subplot(rows, columns, n + 1) for n in range(len(over) + 1))
        for axes, (measure, cost) in zip(panels, over, strict=True):
            for arm in compared:
                curves = [[c[cost], c[measure]] for c in results["arms"][arm]["curves"]]
                for each in curves:
                    axes.plot(*each, color=colours[arm], alpha=0.25, linewidth=1)
                axes.plot(*np.array(curves, float).mean(axis=0), color=colours[arm], label=arm)
            axes.set(xlabel=cost.rpartition("/")[2].replace("_", " "))
            axes.set_title(f"{_title(measure).rstrip(' %')} (validation)", fontsize=10)
        for arm, found in results["arms"].items():
            rates = {k: found["test"][k] for k in found["test"] if k.startswith("pass_at/")}
            ks = [int(name.rpartition("/")[2]) for name in rates]
            last.plot(
                ks, [one["mean"] for one in rates.values()], "o-", color=colours[arm], label=arm
            )
            if all("low" in one for one in rates.values()):
                low, high = ([one[end] for one in rates.values()] for end in ("low", "high"))
                last.fill_between(ks, low, high, color=colours[arm], alpha=0.15, linewidth=0)
        if ks:
            last.set_xscale("log", base=2)
        last.set(xlabel="k", xticks=ks, xticklabels=ks)
        last.set_title("pass@k (test)", fontsize=10)
        last.legend(frameon=False)
        png = io.BytesIO()
        drawn.savefig(png, dpi=110)
    return png.getvalue()
