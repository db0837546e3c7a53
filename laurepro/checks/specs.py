"""The tables as specs: they load, resolve at every scale, build, and plan to the known number of jobs."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from laurepro import plan, spec
from laurepro.checks import Finding, Item, counts, finding
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
TRAININGS, EVALUATIONS, TESTS = 38, 40, 2
CLASSES = {"pascal_context": 59, "voc2012_aug": 21, "ade20k": 150}
SOURCE = "tables 1 to 8 of the paper"


def _rows(table: str) -> Finding:
    return finding(ROWS[table], len(_shipped(table)))


def _shipped(table: str) -> list[spec.Row]:
    """The rows of the table's own file: what was added below `$LAUREPRO_PLUGINS` is not ours to check."""
    return [row for row in spec.tables()[table].rows if row.file is None]


def _experiments(table: str, scales: Iterable[str] = ()) -> list[spec.Experiment]:
    """Of every row that has something to run, at every scale unless some are named."""
    found = spec.tables()[table]
    chosen = [spec.scale(name) for name in scales or spec.scale_names()]
    return [spec.resolve(found, row, scale) for scale in chosen for row in _shipped(table) if row.set is not None]


def _resolves(table: str) -> Finding:
    runnable = sum(row.set is not None for row in _shipped(table))
    expected = runnable * len(spec.scale_names())
    return finding(f"{expected} experiments", f"{len(_experiments(table))} experiments")


def _builds(table: str) -> Finding:
    """Build each distinct network without memory for its weights."""
    distinct: dict[str, tuple[spec.Model, int]] = {}
    for experiment in _experiments(table):
        classes = num_classes(experiment.data)
        distinct[f"{experiment.model.model_dump_json()} {classes}"] = (experiment.model, classes)
    for model, classes in distinct.values():
        counts.network(model, classes)
    return finding("every network builds", "every network builds")


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


def _classes(dataset: str) -> Finding:
    return finding(CLASSES[dataset], num_classes(spec.Data(name=dataset)))


def _jobs() -> list[spec.Job]:
    """One seed of tables 1 to 7 at scale paper, each job once, trainings included."""
    scale = spec.scale("paper")
    rows = [plan.row_plan(t, r, scale, 1) for t, r in plan.select([n for n in ROWS if n != "table8"], scale)]
    return list(plan.build(rows, set(), lambda job: False).jobs)


def _planned(what: str) -> Finding:
    jobs = _jobs()
    evaluations = [j for j in jobs if j.stage == "evaluate"]
    found = {
        "trainings": sum(j.stage == "train" for j in jobs),
        "evaluations": len(evaluations),
        "tests": sum(j.experiment.eval.split == "test" for j in evaluations),
    }
    return finding({"trainings": TRAININGS, "evaluations": EVALUATIONS, "tests": TESTS}[what], found[what])


def _plugins() -> Finding:
    kinds = [("heads", e.model.head.kind) for t in spec.tables() for e in _experiments(t)]
    kinds += [("upsamplers", e.model.upsampler.kind) for t in spec.tables() for e in _experiments(t)]
    missing = sorted({f"{folder}/{kind}" for folder, kind in kinds if parts.path(folder, kind) is None})
    return finding("none missing", ", ".join(missing) or "none missing")


def items() -> list[Item]:
    """Items of the paper's tables, and of any table that was added beside them."""
    others = [name for name in spec.table_ids() if name not in ROWS]
    found = [Item(f"specs.{t}.rows", f"{t} has its rows", SOURCE, partial(_rows, t)) for t in ROWS]
    for table in [*ROWS, *others]:
        where = "its file in experiments/"
        found.append(
            Item(
                f"specs.{table}.resolves",
                f"every row of {table} resolves at every scale",
                where,
                partial(_resolves, table),
            )
        )
        found.append(
            Item(f"specs.{table}.builds", f"the networks of {table} can be built", where, partial(_builds, table))
        )
    for table in ROWS:
        found.append(
            Item(
                f"specs.{table}.costs",
                f"the networks of {table} cost what costs.yaml says",
                "counted anew: python -m laurepro.network.costs",
                partial(_costs, table),
            )
        )
    for dataset in CLASSES:
        found.append(
            Item(
                f"specs.classes.{dataset}",
                f"classes that {dataset} is scored over",
                "section 4.1",
                partial(_classes, dataset),
            )
        )
    once = "each distinct experiment once; quoted rows where marked rerun"
    for what in ("trainings", "evaluations"):
        found.append(
            Item(
                f"specs.plan.{what}", f"tables 1 to 7 need so many {what} at scale paper", once, partial(_planned, what)
            )
        )
    found.append(
        Item("specs.plan.tests", "of these evaluations are on a test split", "Table 6", partial(_planned, "tests"))
    )
    found.append(Item("specs.plugins", "every head and upsampler named has its file", "experiments/", _plugins))
    return found
