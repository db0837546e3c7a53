"""`laurepro figure`: the paper's qualitative figures, and further ones."""

from __future__ import annotations

from pathlib import Path

import click

from laurepro.commands.options import check_results, data_folder, paths


@click.command("figure")
@click.argument("name", metavar="[NAME]", required=False)
@click.option("--scale", envvar="LAUREPRO_SCALE", metavar="NAME", help="Scale of the trained jobs (default: paper).")
@click.option("--row", "rows", metavar="TABLE/ROW", multiple=True, help="Instead of the figure's default rows.")
@click.option("--table", metavar="TABLE", help="cost, lambda: another table; differences: only this one.")
@click.option("--image", "images", type=int, multiple=True, help="Index of an image (default: evenly spaced ones).")
@click.option("--count", type=click.IntRange(1, 24), default=4, show_default=True, help="How many images.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--set", "pairs", metavar="KEY=VALUE", multiple=True, help="The --set of the runs.")
@data_folder()
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A .png, .svg or .pdf (default: figures/NAME-SCALE.png in --results, with each --set in its "
    "name; the report finds it there).",
)
@paths
def command(
    name: str | None,
    scale: str | None,
    rows: tuple[str, ...],
    table: str | None,
    images: tuple[int, ...],
    count: int,
    seed: int,
    pairs: tuple[str, ...],
    data: Path,
    output: Path | None,
    results: Path,
    runs: Path,
) -> None:
    """Draw figure NAME from trained jobs and records; without a NAME, list the figures."""
    from laurepro import figures, record, spec
    from laurepro.errors import unknown

    if name is None:
        for known, kind in figures.FIGURES.items():
            click.echo(f"{known:11} {kind.title}")
        return
    if name not in figures.FIGURES:
        raise unknown("figure", name, figures.FIGURES)
    if table is not None and (rows or not figures.FIGURES[name].of_table):
        raise click.UsageError(f"--table is for figures of a table; {name} takes --row TABLE/ROW")
    if rows and figures.FIGURES[name].of_table:
        raise click.UsageError(f"{name} shows a table: give --table TABLE")
    check_results(results, runs)
    chosen = spec.scale(scale or "paper")
    request = figures.Request(
        scale=chosen,
        results=results,
        runs=runs,
        data=data,
        rows=(table,) if table else rows,
        images=images,
        n_images=count,
        seed=seed,
        pairs=pairs,
        overrides=spec.parse_overrides(pairs),
    )
    file = output or results / "figures" / f"{name}-{chosen.name}{request.suffix}.png"
    record.writable(file.parent, "--output" if output else "--results")
    drawing = figures.draw(name, request)
    figures.save(drawing, file)
    click.echo(file)
