"""`laurepro show`: the published rows."""

from __future__ import annotations

import click


@click.command("show")
@click.argument("target", metavar="TABLE")
def command(target: str) -> None:
    """The published rows of TABLE: value, origin, data set, split, protocol."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from laurepro import plan, report, spec
    from laurepro.errors import printable
    from laurepro.spec.metrics import METRICS

    rows = plan.select([target], spec.scale("paper").model_copy(update={"controls": True}))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    for table in dict.fromkeys(t.id for t, _ in rows):
        chosen = [r for t, r in rows if t.id == table]
        spec_table = spec.tables()[table]
        title = Text(printable(f"{spec_table.title}\n{spec_table.source.paper}, {spec_table.source.where}"))
        view = RichTable(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold")
        heads = [f"{METRICS[m].title} {METRICS[m].unit}".strip() for m in spec_table.metrics]
        for name in ("row", "label", *heads, "origin", "data set", "split", "MS", "note"):
            view.add_column(Text(name), overflow="fold")
        for row in chosen:
            cells = []
            for metric in spec_table.metrics:
                cell = row.published.get(metric)
                mark = "" if cell is None or cell.origin == row.origin else f" ({cell.origin})"
                cells.append(report.show_value(cell.value if cell else None, metric) + mark)
            protocol = spec_table.protocol.model_copy(update=row.protocol.model_dump(exclude_unset=True))
            origin = row.origin + (", rerun" if row.rerun else "")
            scale = {True: "yes", False: "no", None: report.MISSING}[protocol.multi_scale]
            where = [protocol.dataset or report.MISSING, protocol.split or report.MISSING, scale]
            view.add_row(*(Text(printable(c)) for c in [row.id, row.label, *cells, origin, *where, row.note or ""]))
        console.print(view)
        for metric in spec_table.metrics:
            click.echo(f"  {METRICS[metric].title}: {METRICS[metric].what}")
