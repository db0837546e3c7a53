"""The tables as specs: they load, resolve at every scale, build, and plan to the known number of jobs."""

from __future__ import annotations

from collections.abc import Iterable

from laurepro import plan, spec
from laurepro.checks import Finding, counts, finding, item
from laurepro.datasets import num_classes
from laurepro.network import costs
from laurepro.spec import parts
from laurepro.spec.metrics import Cost

# Rows of the paper's tables; 3a with our control.
ROWS = {
    "table1": 5,
    "table2": 5,
    "table3a": 12,
    "table3b": 12,
    "table4": 9,
    "table5": 9,
    "table6": 7,
    "table7": 4,
    "table8": 12,
}
CLASSES = {"pascal_context": 59, "voc2012_aug": 21, "ade20k": 150}
FILE = "its file in experiments/"


def _tables() -> list[str]:
    """The paper's tables, then any table that was added beside them."""
    return [*ROWS, *(name for name in spec.table_ids() if name not in ROWS)]


def _shipped(table: str) -> list[spec.Row]:
    """The rows of the table's own file: rows added below `$LAUREPRO_PLUGINS` are not ours to check."""
    return [row for row in spec.tables()[table].rows if row.file is None]


def _experiments(table: str, scales: Iterable[str] = ()) -> list[spec.Experiment]:
    """Of every row that has something to run, at every scale unless some are named."""
    chosen = [spec.scale(name) for name in scales or spec.scale_names()]
    runnable = [row for row in _shipped(table) if row.set is not None]
    return [spec.resolve(spec.tables()[table], row, scale) for scale in chosen for row in runnable]


@item("specs.{table}.rows", "{table} has its rows", "tables 1 to 8 of the paper", ROWS.items)
def _rows(table: str, expected: int) -> Finding:
    return finding(expected, len(_shipped(table)))


@item("specs.{table}.resolves", "every row of {table} resolves at every scale", FILE, _tables)
def _resolves(table: str) -> Finding:
    runnable = sum(row.set is not None for row in _shipped(table))
    expected = runnable * len(spec.scale_names())
    return finding(f"{expected} experiments", f"{len(_experiments(table))} experiments")


@item("specs.{table}.builds", "the networks of {table} can be built", FILE, _tables)
def _builds(table: str) -> Finding:
    """Build each distinct network without memory for its weights."""
    distinct: dict[str, tuple[spec.Model, int]] = {}
    for experiment in _experiments(table):
        classes = num_classes(experiment.data)
        distinct[f"{experiment.model.model_dump_json()} {classes}"] = (experiment.model, classes)
    for model, classes in distinct.values():
        counts.network(model, classes)
    return finding("every network builds", "every network builds")


@item(
    "specs.{table}.costs",
    "the networks of {table} cost what costs.yaml states",
    "counted anew: python -m laurepro.network.costs",
    ROWS,
)
def _costs(table: str) -> Finding:
    """The networks of the table at scale paper, as costs.yaml has them and counted anew."""
    written = costs.read()
    counted: dict[str, Cost] = {}
    for experiment in _experiments(table, ("paper",)):
        size = (experiment.profile.height, experiment.profile.width)
        classes = num_classes(experiment.data)
        counted[costs.network_name(experiment)] = counts.cost(experiment.model, classes, *size)
    wrong = [
        f"{name}: {tuple(c)}, written {tuple(written.get(name, ()))}"
        for name, c in counted.items()
        if written.get(name) != c
    ]
    return finding(f"{len(counted)} networks as written", "; ".join(wrong) or f"{len(counted)} networks as written")


@item("specs.classes.{dataset}", "classes that {dataset} is scored over", "section 4.1", CLASSES.items)
def _classes(dataset: str, expected: int) -> Finding:
    return finding(expected, num_classes(spec.Data(name=dataset)))


@item(
    "specs.plan.{what}",
    "number of {what} that tables 1 to 7 need at scale paper",
    "each distinct experiment once; quoted rows where marked rerun",
    (("trainings", 38), ("evaluations", 40)),
)
@item("specs.plan.tests", "how many of these evaluations are on a test split", "Table 6", (("tests", 2),))
def _planned(what: str, expected: int) -> Finding:
    """One seed of tables 1 to 7 at scale paper, each job once, trainings included."""
    scale = spec.scale("paper")
    rows = [plan.row_plan(t, r, scale, 1) for t, r in plan.select([n for n in ROWS if n != "table8"], scale)]
    jobs = plan.build(rows, set(), lambda job: False).jobs
    evaluations = [j for j in jobs if j.stage == "evaluate"]
    counted = {
        "trainings": sum(j.stage == "train" for j in jobs),
        "evaluations": len(evaluations),
        "tests": sum(j.experiment.eval.split == "test" for j in evaluations),
    }
    return finding(expected, counted[what])


@item("specs.plugins", "every head and upsampler named has its file", "experiments/")
def _plugins() -> Finding:
    kinds = [("heads", e.model.head.kind) for t in spec.tables() for e in _experiments(t)]
    kinds += [("upsamplers", e.model.upsampler.kind) for t in spec.tables() for e in _experiments(t)]
    missing = sorted({f"{folder}/{kind}" for folder, kind in kinds if parts.path(folder, kind) is None})
    return finding("none missing", ", ".join(missing) or "none missing")
