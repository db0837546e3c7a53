"""`laurepro export`: a trained network as files that other programs run, each checked against eager code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from laurepro.commands.options import data_folder, of_row, output_folder, paths
from laurepro.errors import LaureproError

FORMATS = ("state_dict", "pt2", "onnx")
PHOTOGRAPHS = 5  # of the evaluated split, where no --check is given


def _size(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text)
    if match is None or not (int(match[1]) and int(match[2])):
        raise click.BadParameter(f"{text!r}: expected height x width, as in 480x640")
    return int(match[1]), int(match[2])


@click.command("export")
@click.argument("job", metavar="KEY|TABLE/ROW")
@of_row
@click.option(
    "--format",
    "formats",
    type=click.Choice(FORMATS),
    multiple=True,
    help="Which files to write; may be given several times (default: all).",
)
@click.option(
    "--size", callback=_size, metavar="HxW", help="Programs for one image of this size (default: any number and size)."
)
@click.option(
    "--check",
    "photographs",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="IMAGE",
    help="Images to compare on: files, folders, patterns (default: of the evaluated split).",
)
@output_folder("exports", "Replace files that exist; files that are read never are.")
@data_folder()
@paths
def command(
    job: str,
    scale: str,
    seed: int,
    pairs: tuple[str, ...],
    formats: tuple[str, ...],
    size: tuple[int, int] | None,
    photographs: tuple[Path, ...],
    output: Path,
    overwrite: bool,
    data: Path,
    results: Path,
    runs: Path,
) -> None:
    """Write the network of a trained job as a state dict, a torch.export program and ONNX.

    JOB.pt is the plain state dict, beside JOB.json, from which the printed line rebuilds the network. JOB.pt2 and
    JOB.onnx take a normalised image and give the scores of the classes at its size; class names, normalisation, data
    set, key and commit are in their metadata. Each file is loaded, compared with eager code on photographs at five
    sizes (with --size at that one), and only written if no class differs beyond rounding ties.
    """
    from laurepro import record, spec
    from laurepro.evaluation import export, inputs, prediction

    chosen = tuple(dict.fromkeys(formats or FORMATS))
    export.check_libraries(chosen)
    record.writable(output, "--output")
    stored = prediction.find(results, job, scale, seed, spec.parse_overrides(pairs))
    files = {name: output / f"{stored.job}{export.SUFFIXES[name]}" for name in chosen}
    description = output / f"{stored.job}.json"
    targets = [*files.values(), *([description] if "state_dict" in files else [])]
    given = [item.file for item in inputs.gather(photographs, output)]
    inputs.check_replaced(targets, [record.records_dir(results) / f"{stored.job}.json", *given], overwrite)
    images = _images(stored, given, data)
    program = export.program_of(prediction.load(stored, runs))
    about = export.metadata(stored, program, size)
    cases = export.cases(images, size, stored.experiment)
    output.mkdir(parents=True, exist_ok=True)
    refused = []
    for name, content in export.artefacts(program, chosen, size, about):
        artefact = export.loaded(name, content, about, program.align_corners)
        click.echo(str(files[name]))
        wrong = 0
        for label, image, at in cases:
            try:
                agreement = export.compared(artefact, program, image, at)
            except LaureproError as error:
                raise LaureproError(f"{files[name]}: not written: {error}") from None
            wrong += agreement.wrong
            click.echo(f"  {label} at {at[0]}x{at[1]}: {agreement}")
        if wrong:
            refused.append(files[name])
            continue
        record.write_atomic(files[name], content)
        if name == "state_dict":
            record.write_atomic(description, export.as_json(about))
            click.echo(f"  the network from it, in Python: {export.rebuild_line(stored.job)}")
    if refused:
        click.echo(f"not written, classes differ from eager code: {', '.join(map(str, refused))}", err=True)
        raise click.exceptions.Exit(1)


def _images(stored: Any, photographs: list[Path], data: Path) -> list[tuple[str, Any]]:
    """Name and pixels uint8 [H, W, 3] of the images that artefacts are compared on."""
    from laurepro import datasets
    from laurepro.evaluation import prediction, submission

    if photographs:
        prediction.check(photographs, len(stored.class_names))
        prediction.check(photographs)
        return [(str(file), prediction.read(file)) for file in photographs]
    experiment, split = stored.experiment, stored.experiment.eval.split
    if faults := datasets.problems(experiment.data, data, (split,)):
        lines = [f"data set {experiment.data.name}: {fault}" for fault in faults]
        raise LaureproError("\n".join(lines), "give its folder with --data, or images with --check IMAGE")
    _, images = datasets.open_split(experiment.data, data, split)
    names, count = submission.names(images, split), min(PHOTOGRAPHS, len(images))
    indices = [(2 * i + 1) * len(images) // (2 * count) for i in range(count)]  # evenly over the split
    return [(names[index], images[index][0]) for index in indices]
