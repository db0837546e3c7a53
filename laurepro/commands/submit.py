"""`laurepro submit`: the archive for a test server, checked before it is put in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from laurepro.commands.options import data_folder, paths, progress
from laurepro.errors import LaureproError, unknown


@click.command("submit")
@click.argument("dataset")
@click.option("--job", "key", required=True, metavar="KEY", help="A training or evaluation: its name or key.")
@click.option("--split", metavar="NAME", help="Split to predict (default: the evaluation's; test for a training).")
@click.option("--score", is_flag=True, help="Score the archive too, if the split has labels (val).")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The archive (default: submissions/JOB.zip, of VOC 2012 JOB.tgz).",
)
@data_folder()
@paths
def command(
    dataset: str, key: str, split: str | None, score: bool, output: Path | None, data: Path, results: Path, runs: Path
) -> None:
    """Write the archive that DATASET's test server takes, and check it: ade20k, voc2012_aug, or shapes as a stand-in.

    It holds a label map for each image, a PNG with the image's name and size. ade20k: a zip, values 1 to the number of
    classes. voc2012_aug: a gzipped tar of results/VOC2012/Segmentation/comp6_test_cls/, values 0 (background) to 20,
    with VOC's palette. Predictions that an evaluation of a test split has kept are used; otherwise they are made now.
    """
    from laurepro import datasets, record
    from laurepro.datasets import open_split
    from laurepro.evaluation import prediction, submission
    from laurepro.spec.metrics import METRICS

    if dataset not in submission.FORMS:
        raise unknown("data set with a test server", dataset, submission.FORMS)
    form = submission.FORMS[dataset]
    stored = record.find(results, key)
    if stored.dataset != dataset:
        raise LaureproError(f"{stored.job} is of data set {stored.dataset}, expected {dataset}")
    job = _job(stored, split)
    evaluation = job.experiment.eval
    if faults := datasets.problems(job.experiment.data, data, (evaluation.split,)):
        raise LaureproError("\n".join(f"data set {dataset}: {f}" for f in faults), "give its folder with --data")
    info, images = open_split(job.experiment.data, data, evaluation.split)
    names = submission.names(images, evaluation.split)
    file = output or Path("submissions") / f"{job.name}{form.suffix}"
    if file.suffix != form.suffix:  # weights or an image would be replaced
        raise LaureproError(f"--output {file}: expected a name that ends in {form.suffix}")
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
    expected = submission.Submission(len(info.classes), sizes, form)
    submission.write(file, folder, expected)
    click.echo(f"{file}: {len(names)} label maps, values {expected.values[0]} to {expected.values[1]}, checked")
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
