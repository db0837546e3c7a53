"""`laurepro show`: the published rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from laurepro.spec import Protocol, Row, Table


@click.command("show")
@click.argument("target", metavar="TABLE")
@click.option("--format", "form", type=click.Choice(["terminal", "json"]), default="terminal", show_default=True)
def command(target: str, form: str) -> None:
    """The published rows of TABLE: value, origin, data set, split, protocol."""
    import json

    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from laurepro import plan, report, spec
    from laurepro.errors import printable
    from laurepro.spec.metrics import METRICS

    rows = plan.select([target], spec.scale("paper").model_copy(update={"controls": True}))
    if form == "json":
        click.echo(json.dumps({"schema": 1, "rows": list(_document(rows))}, indent=1, ensure_ascii=False))
        return
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
            protocol = _protocol(spec_table, row)
            origin = row.origin + (", rerun" if row.rerun else "")
            scale = {True: "yes", False: "no", None: report.MISSING}[protocol.multi_scale]
            where = [protocol.dataset or report.MISSING, protocol.split or report.MISSING, scale]
            view.add_row(*(Text(printable(c)) for c in [row.id, row.label, *cells, origin, *where, row.note or ""]))
        console.print(view)
        for metric in spec_table.metrics:
            click.echo(f"  {METRICS[metric].title}: {METRICS[metric].what}")


def _protocol(table: Table, row: Row) -> Protocol:
    """What was evaluated and how: the table's, but for what the row states itself."""
    return table.protocol.model_copy(update=row.protocol.model_dump(exclude_unset=True))


def _document(rows: Iterable[tuple[Table, Row]]) -> Iterable[dict[str, Any]]:
    """Each row for JSON."""
    for table, row in rows:
        yield {
            "row": f"{table.id}/{row.id}",
            "label": row.label,
            "origin": row.origin,
            "rerun": row.rerun,
            "published": {metric: cell.model_dump(mode="json") for metric, cell in row.published.items()},
            "protocol": _protocol(table, row).model_dump(mode="json"),
            "note": row.note,
        }
