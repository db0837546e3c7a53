"""Validation during training: it changes no weights, survives stops, and `train.keep: best` keeps what scored best."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import ROW, SHORT, Finished, make_record, run_cli
from test_launch import assert_same_bits, records, train_folder
from test_stages import STEPS, after, make_context, make_job

from laurepro import figures, plan, record, report, spec, verify, worker
from laurepro.cli import main
from laurepro.commands import status
from laurepro.cost import work
from laurepro.errors import LaureproError
from laurepro.figures import recorded
from laurepro.network import checkpoint
from laurepro.spec.metrics import Cost
from laurepro.stages import Stopped, _validation, evaluate, train
from laurepro.trackers import Trackers

pytestmark = pytest.mark.usefixtures("torch_settings")

VAL = {"train": {"validate_every": 3}}
BEST = {"train": {"validate_every": 3, "keep": "best"}, "eval": {"split": "test"}}
BESTS = ("train.validate_every=10", "train.keep=best")


def test_the_training_stays_the_same_and_the_last_score_is_the_evaluation(tmp_path: Path) -> None:
    alone = train.run(make_job(), make_context(tmp_path / "alone"))
    told: list[tuple[int, Any]] = []
    context = make_context(tmp_path / "watched")._replace(validated=lambda step, scores: told.append((step, scores)))
    job = make_job(**VAL)
    assert job.key == make_job().key and "validate_every" not in str(job.meaning)
    watched = train.run(job, context)
    assert watched._replace(validation={}) == alone and alone.validation == {}
    steps = [3, 6, STEPS]
    assert {m: [s for s, _ in curve] for m, curve in watched.validation.items()} == dict.fromkeys(
        ("miou", "pixacc", "mean_accuracy"), steps
    )
    assert told == [(s, {m: dict(c)[s] for m, c in watched.validation.items()}) for s in steps]
    for_real = evaluate.run(make_job("evaluate"), make_context(tmp_path / "scored", tmp_path / "watched")).metrics
    assert {m: curve[-1][1] for m, curve in watched.validation.items()} == {m: for_real[m] for m in watched.validation}


def test_best_weights_are_kept_through_stops(tmp_path: Path) -> None:
    """stop_requested is asked once a step and once an image of val: stops come in steps, and within validations."""
    job = make_job(seed=2, **BEST)
    whole = train.run(job, make_context(tmp_path / "whole"))
    curve = whole.validation["miou"]
    step, score = max(curve, key=lambda point: point[1])
    assert whole.kept_step == step and score > curve[-1][1]  # else the last weights would do
    scored = evaluate.run(make_job("evaluate"), make_context(tmp_path / "scored", tmp_path / "whole"))  # of val
    assert scored.metrics["miou"] == score and scored.weights_sha256 == whole.weights_sha256
    files = []
    for calls in (5, 7, 2, 9):  # in the first validation, in a step after it, in the second and the last validation
        with pytest.raises(Stopped):
            train.run(job, make_context(tmp_path / "parts", stop=after(calls)))
        files.append(max(tmp_path.glob("parts/checkpoint-*.ckpt")).name)
    assert files == [f"checkpoint-{n:08d}.ckpt" for n in (3, 5, 6, STEPS)]
    assert train.run(job, make_context(tmp_path / "parts")) == whole
    assert checkpoint.weights_sha256(checkpoint.load_weights(tmp_path / "parts")) == whole.weights_sha256


def test_the_seconds_of_a_training_are_those_of_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that advances with each step and each image of val. The second leg begins with a validation."""
    clock, told = itertools.count(), list[dict[str, Any]]()
    now = 0

    def tick(stop_at: int) -> Callable[[], bool]:
        def stop_requested() -> bool:
            nonlocal now
            now = next(clock)
            return now == stop_at

        return stop_requested

    for module in (train, _validation):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    job = make_job(**VAL)
    with pytest.raises(Stopped):
        train.run(job, make_context(tmp_path, stop=tick(4))._replace(progress=told.append))
    train.run(job, make_context(tmp_path, stop=tick(-1))._replace(progress=told.append))
    assert now > 20 and [values["seconds"] for values in told] == list(range(STEPS))


def test_what_a_validation_changes_it_puts_back() -> None:
    network, protocol = torch.nn.Linear(1, 1), spec.Eval(tf32=True, precision="bfloat16")
    network.autocast = None  # type: ignore[assignment]
    before = torch.get_rng_state(), torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with _validation._watching(network, protocol, torch.device("cpu")):  # type: ignore[arg-type]
        assert not network.training and network.autocast == torch.bfloat16 and torch.backends.cuda.matmul.allow_tf32
        torch.rand(3)
    assert network.training and network.autocast is None
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before[1:]


def key(*pairs: str) -> str:
    """Of the row's training at scale camvid."""
    ((table, row),) = plan.select([ROW], spec.scale("camvid"))
    planned = plan.row_plan(table, row, spec.scale("camvid"), 1, spec.parse_overrides(pairs))
    return planned.jobs[0].model_copy(update={"stage": "train"}).key


def test_what_is_in_the_key() -> None:
    best = ("train.keep=best", "train.validate_every=10")
    assert key() == key("train.validate_every=10") == key("train.validate_every=0", "train.keep=last")
    variants = [best, (best[0], "train.validate_every=20"), (*best, "eval.base_size=500"), ("train.validate_every=10",)]
    assert len({key(*pairs) for pairs in variants}) == len(variants)
    assert key(*best) == key(*best, "eval.multi_scale=true")  # a validation has one scale


@pytest.mark.parametrize(
    ("scale", "pairs", "words"),
    [
        ("smoke", ("train.keep=best", "train.validate_every=5"), ("train.keep", "eval.split", "--set eval.split=test")),
        ("camvid", (*BESTS, "data.train_split=val"), ("train.keep", "data.train_split 'val'", "train_split=train")),
        ("camvid", (*BESTS, "data.train_split=trainval"), ("train.keep", "data.train_split 'trainval'")),
        ("camvid", ("train.keep=best",), ("train", "validate_every")),
        ("camvid", ("train.validate_every=-1",), ("train.validate_every", "-1")),
        ("camvid", ("train.keep=first",), ("train.keep", "'last' or 'best'", "first")),
    ],
)
def test_what_cannot_be_chosen_by_is_refused_by_plan(
    scale: str, pairs: tuple[str, ...], words: tuple[str, ...]
) -> None:
    ran = CliRunner().invoke(main, ["plan", ROW, "--scale", scale, *(w for pair in pairs for w in ("--set", pair))])
    assert ran.exit_code == 2 and all(word in ran.output for word in words), ran.output


def test_the_last_score_is_shown_while_it_runs(tmp_path: Path) -> None:
    job = make_job(**VAL)
    (tmp_path / job.name).mkdir()
    progress = worker.Progress(tmp_path / job.name / "progress.json", Trackers((), job, tmp_path, False))
    progress({"step": 3, "steps": STEPS, "loss": 1.0, "epoch": 0, "seconds": 3.0})
    progress.validated(3, {"miou": 41.5, "pixacc": 60.0})
    assert status._cells(record.progress(tmp_path, job.name)) == ("1", f"3/{STEPS}", "1.000  val 41.50", "0:00:05")
    progress({"step": STEPS, "steps": STEPS, "loss": 0.5})
    assert record.progress(tmp_path, job.name)[3:] == (0.5, None, 41.5)


def test_validations_are_part_of_a_jobs_cost() -> None:
    def operations(stage: str, *pairs: str) -> float:
        ((table, row),) = plan.select([ROW], spec.scale("camvid"))
        given = spec.parse_overrides(("train.iterations=100", "train.epochs=null", *pairs))
        job = plan.row_plan(table, row, spec.scale("camvid"), 1, given).jobs[0].model_copy(update={"stage": stage})
        return work.work(job, Cost(params=1, macs=480 * 480, activation_bytes=1)) or 0.0

    once = operations("evaluate", "eval.split=val")
    assert once > 0
    for every, times in ((0, 0), (100, 1), (40, 3), (1, 100)):
        added = operations("train", f"train.validate_every={every}") - operations("train")
        assert added == pytest.approx(times * once)


# --------------------------------------------------------------------------------------------- what records show

CURVES = {0: (40.0, 44.0, 43.0), 1: (42.0, 47.0, 44.0)}  # of val, by seed
COUNTS = {0: ((90, 10, 0), (20, 30, 50), (0, 0, 0)), 1: ((70, 30, 0), (0, 50, 50), (0, 0, 0))}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Two seeds of the row, whose trainings were validated."""
    ((table, row),) = plan.select([ROW], spec.scale("camvid"))
    overrides = spec.parse_overrides(("train.validate_every=10", "train.keep=best"))
    for job in plan.row_plan(table, row, spec.scale("camvid"), 2, overrides).jobs:
        points = tuple(zip((10, 20, 25), CURVES[job.seed], strict=True))
        made = {"validation": {"miou": points}, "kept_step": 20, "curve": ((5, 2.0 + job.seed), (25, 1.0))}
        assert job.needs is not None
        split = {"split": job.experiment.data.train_split}
        record.write(tmp_path / "results", make_record(job.needs, {}, **made, **split))
        scored = {"confusion": COUNTS[job.seed], "class_names": ("road", "car", "$x$")}
        record.write(tmp_path / "results", make_record(job, {"miou": 50.0 + job.seed}, **scored))
    return tmp_path


def drawn(name: str, folder: Path) -> figures.Drawing:
    places = {"results": folder / "results", "runs": folder / "runs", "data": folder / "data"}
    more: dict[str, Any] = {"rows": (ROW,), "pairs": BESTS, "overrides": spec.parse_overrides(BESTS)}
    return figures.draw(name, figures.Request(scale=spec.scale("camvid"), **places, **more))


def test_curves_of_the_loss_and_of_val(planted: Path) -> None:
    drawing = drawn("curves", planted)
    loss, val = drawing.figure.axes
    *seeds, mean = [(list(line.get_xdata()), list(line.get_ydata())) for line in val.lines]
    assert seeds == [([10, 20, 25], list(CURVES[seed])) for seed in (0, 1)]
    assert mean == ([10, 20, 25], [41.0, 45.5, 43.5])
    assert list(loss.lines[-1].get_ydata()) == [2.5, 1.0] and "mIoU" in val.get_title(loc="left")
    assert f"{ROW}, mIoU on val, %: 43.5 at step 25" in drawing.description and len(drawing.jobs) == 2


def test_the_confusion_matrix_of_a_row_is_over_its_seeds(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = drawn("confusion", planted)
    (axes,) = drawing.figure.axes
    shares = np.nan_to_num(np.ma.getdata(axes.images[0].get_array()), nan=-1)
    np.testing.assert_allclose(shares, [[80, 20, 0], [10, 40, 50], [-1, -1, -1]])
    assert [t.get_text() for t in axes.get_yticklabels()] == ["road", "car", "$x$"]
    assert "(n = 2), right in percent: road 80.0, car" in drawing.description
    monkeypatch.setattr(recorded, "NAMED", 2)  # as of many classes, whose names would not fit
    assert [t.get_text() for t in drawn("confusion", planted).figure.axes[0].get_yticklabels()] == ["0"]
    other = "table3a/encnet-os8-bilinear"
    with pytest.raises(LaureproError, match=f"(?s)no records for this figure.*laurepro run {other}"):
        figures.draw("confusion", figures.Request(spec.scale("smoke"), planted, planted, planted, (other,)))


def test_the_page_shows_validations_and_the_step_that_was_kept(planted: Path) -> None:
    sources = report.gather(("table3a",), ["camvid"], results=planted / "results", pairs=BESTS)
    for form in ("html", "markdown"):
        page = report.render_page(sources, form, planted)
        assert "Validation during training" in page and "mIoU on val during training, scale camvid" in page
        assert "weights of step 20, the best on val" in page and "train.keep best evaluates the weights" in page
    assert "seed 1: 42 at 10, 44 at 25" in report.render_page(sources, "html", planted)


def test_the_page_of_a_job_is_made_from_its_record(planted: Path) -> None:
    by_stage = {r.stage: r for r in records(planted).values()}
    training, evaluation = (report.render_job(by_stage[stage]) for stage in ("train", "evaluate"))
    assert by_stage["train"].job in training and training.count("<svg") == 2 and "those of step 20" in training
    assert "mIoU on val: mIoU % over step. " in training and "&#34;validate_every&#34;: 10" in training
    assert "IoU of each class" in evaluation and "$x$" in evaluation and "<svg" not in evaluation
    assert "<script src" not in training and "http" not in training.partition("</head>")[2]


def test_verify_holds_a_kept_step_to_its_validation(planted: Path) -> None:
    file = next((planted / "results" / "records").glob("train-*"))
    stored = record.read(file)
    assert verify.verify(file).problems == ()
    for changes, problem in (
        ({"kept_step": 25}, "kept_step is 25, its validation gives 20"),
        ({"validation": {"miou": ((20, 1.0), (10, 0.5))}}, "the steps of its validation miou do not increase"),
        ({"validation": {"miou": ((20, 101.0),)}}, "a score of its validation is not between 0 and 100"),
    ):
        record.write(planted / "results", stored.model_copy(update=changes))
        assert problem in verify.verify(file).problems


@pytest.mark.acceptance
@pytest.mark.parametrize("processes", [1, 2])
def test_jobs_are_validated_by_any_number_of_processes(
    request: pytest.FixtureRequest, processes: int, tiny: Path, tmp_path: Path
) -> None:
    finished: Finished = request.getfixturevalue("finished" if processes == 1 else "finished_by_two")
    more = () if processes == 1 else ("--nproc-per-node", 2, *SHORT)
    options = (*more, "--set", "train.validate_every=25")
    ran = run_cli("run", ROW, "--scale", "tiny", *options, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0, ran.err
    assert_same_bits(tmp_path, finished)
    by_stage = {r.stage: r for r in records(tmp_path).values()}
    curve, steps = by_stage["train"].validation["miou"], finished.train.curve[-1][0]
    assert [s for s, _ in curve] == [*range(25, steps, 25), steps]
    assert curve[-1][1] == by_stage["evaluate"].metrics["miou"]
    log = (train_folder(tmp_path) / "log.txt").read_text()
    assert log.count("val mIoU ") == len(curve) and f"step {steps}/{steps}  val mIoU {curve[-1][1]:.2f} %" in log
    assert run_cli("verify", "all", cwd=tmp_path).code == 0
