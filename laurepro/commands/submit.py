"""`laurepro submit`: the zip for a test server, checked before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from laurepro.commands.options import data_folder, paths, progress
from laurepro.errors import LaureproError, unknown

DATASETS = ("ade20k", "shapes")  # ADE20K has a server; at scale smoke the generated scenes stand in for it


@click.command("submit")
@click.argument("dataset")
@click.option("--job", "key", required=True, metavar="KEY", help="A training or evaluation: its name or key.")
@click.option("--split", metavar="NAME", help="Split to predict (default: the evaluation's; test for a training).")
@click.option("--score", is_flag=True, help="Score the zip too, if the split has labels (val).")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The zip (default: submissions/JOB.zip).",
)
@data_folder()
@paths
def command(
    dataset: str, key: str, split: str | None, score: bool, output: Path | None, data: Path, results: Path, runs: Path
) -> None:
    """Write the zip that DATASET's test server takes, and check it: ade20k, or shapes as a stand-in at scale smoke.

    A zip of label maps, one per image: a PNG of one channel with the image's name and size, values 1 to the number of
    classes. Predictions that an evaluation of a test split has kept are used; otherwise they are made now.
    """
    from laurepro import datasets, record
    from laurepro.datasets import open_split
    from laurepro.evaluation import prediction, submission
    from laurepro.spec.metrics import METRICS

    if dataset not in DATASETS:
        raise unknown("data set with a test server", dataset, DATASETS)
    stored = record.find(results, key)
    if stored.dataset != dataset:
        raise LaureproError(f"{stored.job} is of data set {stored.dataset}, expected {dataset}")
    job = _job(stored, split)
    evaluation = job.experiment.eval
    if faults := datasets.problems(job.experiment.data, data, (evaluation.split,)):
        raise LaureproError("\n".join(f"data set {dataset}: {f}" for f in faults), "give its folder with --data")
    info, images = open_split(job.experiment.data, data, evaluation.split)
    names = submission.names(images, evaluation.split)
    file = output or Path("submissions") / f"{job.name}.zip"
    if file.suffix != ".zip":  # weights or an image would be replaced
        raise LaureproError(f"--output {file}: expected a name that ends in .zip")
    record.writable(file.parent, "--output")

    folder = record.run_folder(runs, job) / "predictions"
    kept = evaluation.split == "test" and job.name in record.read_all(results)[0]  # by the evaluation
    if kept and submission.complete(folder, names):
        click.echo(f"using the {len(names)} predictions in {folder}", err=True)
    else:
        _predict(prediction.load(stored, runs)._replace(evaluation=evaluation), images, names, folder)
    with progress("read") as report:
        sizes = {}
        for index, name in enumerate(names):
            sizes[name] = images[index][0].shape[:2]
            report(index + 1, len(names))
    submission.write(file, folder, submission.Submission(len(info.classes), sizes))
    click.echo(f"{file}: {len(names)} label maps, values 1 to {len(info.classes)}, checked")
    if score:
        index_of = {name: i for i, name in enumerate(names)}
        scores = submission.score(file, lambda name: images[index_of[name]][1], len(info.classes), dataset)
        if scores["pixacc"] is None:
            raise LaureproError(f"{dataset} has no labels for {evaluation.split}", "score val: --split val --score")
        for metric, value in scores.items():
            unit = METRICS[metric].unit
            click.echo(f"{evaluation.split} {metric}: {value:.{METRICS[metric].digits}f}{unit and ' ' + unit}")


def _job(stored: Any, split: str | None) -> Any:
    """The evaluation that a record belongs to, or that its training would have on the split."""
    from laurepro.evaluation import prediction

    job = prediction.job_of(stored, "evaluate")
    wanted = split or (job.experiment.eval.split if stored.stage == "evaluate" else "test")
    evaluation = job.experiment.eval.model_copy(update={"split": wanted})
    return job.model_copy(update={"experiment": job.experiment.model_copy(update={"eval": evaluation})})


def _predict(trained: Any, images: Any, names: list[str], folder: Path) -> None:
    """Write the label map of each image. Existing label maps are from another run and are removed."""
    import torch

    from laurepro.evaluation import submission
    from laurepro.evaluation.inference import predictions
    from laurepro.stages.evaluate import predictions_folder

    predictions_folder(folder.parent)
    indices = list(range(len(names)))
    with torch.inference_mode(), progress("predict") as report:
        stream = predictions(trained.network, images, indices, len(trained.classes), trained.evaluation, trained.device)
        for done, (index, _, predicted) in enumerate(stream, 1):
            submission.write_label_map(folder / f"{names[index]}.png", predicted.cpu().numpy())
            report(done, len(names))
