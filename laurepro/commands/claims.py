"""`laurepro claims`: a verdict on each statement of the paper that can be judged from the records."""

from __future__ import annotations

from pathlib import Path

import click

from laurepro.commands.options import check_results, data_folder, paths, plural


@click.command("claims")
@click.option("--only", metavar="GLOB", multiple=True, help="Only claims whose id matches, as in 'C5.*'.")
@click.option("--scale", metavar="NAME", help="Only this scale (default: every scale that has records).")
@click.option(
    "--format",
    "form",
    type=click.Choice(["terminal", "markdown", "json"]),
    default="terminal",
    show_default=True,
)
@click.option("--strict", is_flag=True, help="Exit code 1 if a claim that can be judged at its scale is not supported.")
@click.option(
    "--set",
    "pairs",
    metavar="KEY=VALUE",
    multiple=True,
    help="Judge the runs that had this --set.",
)
@data_folder(passed=False)
@paths
def command(
    only: tuple[str, ...],
    scale: str | None,
    form: str,
    strict: bool,
    pairs: tuple[str, ...],
    results: Path,
    runs: Path,
) -> None:
    """Judge the statements of the paper from the records, with intervals over seeds."""
    from collections import Counter
    from fnmatch import fnmatchcase

    from laurepro import claims, record, spec
    from laurepro.errors import LaureproError
    from laurepro.report import claims as shown

    ids = [c.id for c in claims.load()]
    for pattern in only:
        if not any(fnmatchcase(i, pattern) for i in ids):
            raise LaureproError(f"--only {pattern!r} matches no claim", f"ids look like {ids[0]}")
    check_results(results, runs)
    records, problems = record.read_all(results)
    present = Counter(r.scale for r in records.values())
    for name in sorted(set(present) - set(spec.scale_names())):
        count = plural(present[name], "record")
        click.echo(f"warning: {count} of scale {name!r}, which no folder of experiments or plug-ins has", err=True)
    names = [scale] if scale else [s for s in spec.scale_names() if s in present] or ["paper"]
    overrides = spec.parse_overrides(pairs)
    by_scale = []
    for name in names:
        verdicts = claims.judge(spec.scale(name), records, overrides)  # of all claims: Holm's family is all of them
        chosen = [v for v in verdicts if not only or any(fnmatchcase(v.claim.id, p) for p in only)]
        by_scale.append((spec.scale(name), chosen))
    for problem in problems:
        click.echo(f"warning: {problem}; it counts as missing", err=True)
    if form == "json":
        click.echo(shown.as_json(by_scale))
    else:
        write = shown.markdown if form == "markdown" else shown.terminal
        click.echo("\n\n".join(write(s, verdicts) for s, verdicts in by_scale))
    if strict and any(shown.fell_short(verdicts) for _, verdicts in by_scale):
        raise click.exceptions.Exit(1)
