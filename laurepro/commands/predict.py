"""`laurepro predict`: the classes of your own images, by a trained job."""

from __future__ import annotations

from pathlib import Path

import click

from laurepro.commands.options import data_folder, of_row, output_folder, paths
from laurepro.errors import unknown


@click.command("predict")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@click.option("--job", "key", metavar="KEY|TABLE/ROW", help="A training or evaluation: name, key, or row.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Instead of a job: a .pth.tar of the released code; needs --row.",
)
@click.option("--row", metavar="TABLE/ROW", help="The row whose network the checkpoint holds.")
@of_row
@click.option("--protocol", metavar="NAME", help="Evaluation protocol: encnet-ss, encnet-ms, … (default: the job's).")
@output_folder("predictions", "Replace files that exist; images that are read never are.")
@data_folder()
@paths
def command(
    images: tuple[Path, ...],
    key: str | None,
    checkpoint: Path | None,
    row: str | None,
    scale: str,
    seed: int,
    pairs: tuple[str, ...],
    protocol: str | None,
    output: Path,
    overwrite: bool,
    data: Path,
    results: Path,
    runs: Path,
) -> None:
    """Predict the classes of your own images with the network of a trained job, or of a released checkpoint.

    IMAGE is a file, a folder (searched with its subfolders) or a quoted pattern such as 'photos/**/*.jpg'. For each
    image: NAME.png, a label map whose values are class indices; NAME-overlay.png, the image with the classes' colours
    laid over it. Images of a folder or a pattern keep their paths below it. Once: legend.png. The shares of the classes
    go to stdout.
    """
    from laurepro import record, spec
    from laurepro.evaluation import inputs, prediction
    from laurepro.spec.protocols import PROTOCOLS, expanded

    if (key is None) == (checkpoint is None) or (checkpoint is None) != (row is None):
        raise click.UsageError("give --job KEY, or --checkpoint FILE with --row TABLE/ROW")
    record.writable(output, "--output")
    if protocol is not None and protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS, "--protocol")
    given = inputs.gather(images, output)
    inputs.check_outputs(given, output, [checkpoint] if checkpoint else [], overwrite)
    files = [item.file for item in given]
    prediction.check(files)

    overrides = spec.parse_overrides(pairs)
    if checkpoint is not None and row is not None:
        trained = prediction.load_checkpoint(checkpoint, row, spec.scale(scale), overrides)
    else:
        stored = prediction.find(results, key or "", scale, seed, overrides)
        prediction.check(files, len(stored.class_names))
        trained = prediction.load(stored, runs)
    prediction.check(files, len(trained.classes))
    if protocol is not None:
        fields = expanded({"eval": {"protocol": protocol}}, "--protocol")["eval"]
        trained = trained._replace(evaluation=trained.evaluation.model_copy(update=fields))
    output.mkdir(parents=True, exist_ok=True)
    colours, seen = prediction.palette(len(trained.classes), trained.colours), set[str]()
    for item in given:
        image = prediction.read(item.file)
        predicted = prediction.predict(trained, image)
        label_map, overlay = (output / name for name in item.outputs)
        label_map.parent.mkdir(parents=True, exist_ok=True)
        prediction.save(prediction.mask(predicted, colours), label_map)
        prediction.save(prediction.overlay(image, predicted, colours), overlay)
        shares = prediction.shares(predicted, trained.classes)
        seen |= {name for name, _ in shares}
        click.echo(f"{item.file}: " + ", ".join(f"{name} {100 * share:.1f}%" for name, share in shares))
    rows = [i for i, name in enumerate(trained.classes) if name in seen]
    prediction.save(prediction.legend([trained.classes[i] for i in rows], colours[rows]), output / inputs.LEGEND)
    click.echo(f"wrote {len(given)} label maps and overlays, and {inputs.LEGEND}, to {output}", err=True)
