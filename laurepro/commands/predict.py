"""`laurepro predict`: the classes of your own images, by a trained job."""

from __future__ import annotations

from pathlib import Path

import click

from laurepro.commands.options import paths
from laurepro.errors import LaureproError, unknown


@click.command("predict")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option("--job", "key", metavar="KEY", help="A training or evaluation: its name or key.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Instead of a job: a .pth.tar of the released code; needs --row.",
)
@click.option("--row", metavar="TABLE/ROW", help="The row whose network the checkpoint holds.")
@click.option("--scale", default="paper", show_default=True, metavar="NAME", help="The scale of --row.")
@click.option("--protocol", metavar="NAME", help="Evaluation protocol: encnet-ss, encnet-ms, … (default: the job's).")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default="predictions",
    show_default=True,
    metavar="DIR",
    help="Folder to write to.",
)
@paths
def command(
    images: tuple[Path, ...],
    key: str | None,
    checkpoint: Path | None,
    row: str | None,
    scale: str,
    protocol: str | None,
    output: Path,
    results: Path,
    runs: Path,
) -> None:
    """Predict the classes of your own images with the network of a trained job, or of a released checkpoint.

    For each IMAGE: NAME.png, a label map whose values are class indices; NAME-overlay.png, the image with the classes'
    colours laid over it. Once: legend.png. The shares of the classes go to stdout.
    """
    from laurepro import record, spec
    from laurepro.evaluation import prediction
    from laurepro.spec.protocols import PROTOCOLS, expanded

    if (key is None) == (checkpoint is None) or (checkpoint is None) != (row is None):
        raise click.UsageError("give --job KEY, or --checkpoint FILE with --row TABLE/ROW")
    record.writable(output, "--output")
    if protocol is not None and protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS, "--protocol")
    absent = [str(file) for file in images if not file.is_file()]
    if absent:
        raise LaureproError(f"no such image: {', '.join(absent)}")
    _check_outputs(images, output, checkpoint)
    prediction.check(images)

    if checkpoint is not None and row is not None:
        trained = prediction.load_checkpoint(checkpoint, row, spec.scale(scale))
    else:
        stored = record.find(results, key or "")
        prediction.check(images, len(stored.class_names))
        trained = prediction.load(stored, runs)
    prediction.check(images, len(trained.classes))
    if protocol is not None:
        fields = expanded({"eval": {"protocol": protocol}}, "--protocol")["eval"]
        trained = trained._replace(evaluation=trained.evaluation.model_copy(update=fields))
    output.mkdir(parents=True, exist_ok=True)
    colours, seen = prediction.palette(len(trained.classes), trained.colours), set[str]()
    for file in images:
        image = prediction.read(file)
        predicted = prediction.predict(trained, image)
        prediction.mask(predicted, colours).save(output / f"{file.stem}.png")
        prediction.overlay(image, predicted, colours).save(output / f"{file.stem}-overlay.png")
        shares = prediction.shares(predicted, trained.classes)
        seen |= {name for name, _ in shares}
        click.echo(f"{file}: " + ", ".join(f"{name} {100 * share:.1f}%" for name, share in shares))
    rows = [i for i, name in enumerate(trained.classes) if name in seen]
    prediction.legend([trained.classes[i] for i in rows], colours[rows]).save(output / "legend.png")
    click.echo(f"wrote {len(images)} label maps and overlays, and legend.png, to {output}", err=True)


def _check_outputs(images: tuple[Path, ...], output: Path, checkpoint: Path | None) -> None:
    """Raise LaureproError where a file that is to be written is an input, or would be written twice."""
    written: dict[str, str] = {"legend.png": "the legend"}
    for file in images:
        for name in (f"{file.stem}.png", f"{file.stem}-overlay.png"):
            if name in written:
                raise LaureproError(
                    f"{name} would be written for {written[name]} and for {file}", "give them in several runs"
                )
            written[name] = str(file)
    for name in written:
        target = output / name
        for source in (*images, *([checkpoint] if checkpoint else [])):
            if target.exists() and target.samefile(source):
                raise LaureproError(f"{target} would replace the input {source}", "use another --output")
