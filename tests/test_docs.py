"""The pages: links, commands and targets that exist; and the rules of this repository."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from conftest import NEEDS, ROOT, environment

from laurepro import cli, plan, spec
from laurepro.errors import LaureproError

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [p.relative_to(ROOT).as_posix() for p in PAGES]
LINK = re.compile(r"\]\(([^()\s]+)\)")


def tracked() -> list[Path]:
    """Files that git knows; where there is no git, what a checkout would have is not known."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def blocks(page: str) -> list[str]:
    """Lines of the page's code blocks."""
    text = (ROOT / page).read_text()
    return [line for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_pages_are_there() -> None:
    assert {"README.md", "CONTRIBUTING.md"} <= set(NAMES)


@pytest.mark.parametrize("page", NAMES)
def test_relative_links_exist(page: str) -> None:
    here = (ROOT / page).parent
    for link in LINK.findall((ROOT / page).read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = here / target if target else ROOT / page
        assert file.exists(), f"{page}: {link}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page}: {link}"


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    assert [c for c in cli.main.commands if not re.search(rf"\blaurepro {c}\b", text)] == []


@pytest.mark.parametrize("page", NAMES)
def test_every_command_of_a_page_exists(page: str) -> None:
    """In code blocks: command, options, and the tables and rows they name."""
    known = set(cli.main.commands) | set(spec.tables()) | {"table3"}
    for line in blocks(page):
        found = re.match(r"\s*(?:\$ )?(?:\.venv/bin/)?laurepro( [^#]*)?$", line.split("   ")[0])
        if not found:
            continue
        words = shlex.split(found.group(1) or "")
        if not words or words[0].startswith("-"):
            continue
        assert words[0] in known, f"{page}: {line}"
        command = cli.main.commands["run" if words[0].startswith("table") else words[0]]
        if isinstance(command, click.Group):
            assert words[1] in command.commands, f"{page}: {line}"
            command = command.commands[words[1]]
        options = {o for p in command.params for o in p.opts} | {"--help", "-h"}
        assert [w for w in words if w.startswith("--") and w.split("=")[0] not in options] == [], f"{page}: {line}"
        for word in words[1:]:
            if re.match(r"table\d", word) and not word.endswith("/encnet-my-upsampler"):  # which the page writes
                try:
                    plan.select([word], spec.scale("smoke"))
                except LaureproError as error:
                    pytest.fail(f"{page}: {line}: {error}")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_of_a_page_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    text = (ROOT / page).read_text()
    named = re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, re.M)
    assert [t for t in named if t not in targets] == []
    assert page != "README.md" or {"demo", "test", "install"} <= set(named)


def test_the_readme_shows_the_files_that_there_are() -> None:
    """The tree of laurepro/ names every module."""
    text = (ROOT / "README.md").read_text()
    modules = {f.name for f in (ROOT / "laurepro").glob("[!_]*.py")}
    folders = {f"{f.name}/" for f in (ROOT / "laurepro").iterdir() if (f / "__init__.py").exists()}
    assert sorted(n for n in modules | folders if n not in text) == []


def test_the_readme_names_scales_and_an_example_row() -> None:
    text = (ROOT / "README.md").read_text()
    assert [s for s in spec.scale_names() if f"`{s}`" not in text] == []
    for address in re.findall(r"`(table\w+/[\w.\-]+)`", text):
        plan.select([address], spec.scale("smoke"))


def test_no_file_is_large() -> None:
    large = {str(f.relative_to(ROOT)): f.stat().st_size for f in tracked() if f.stat().st_size > 2**20}
    assert large == {}


def test_nothing_that_is_made_is_tracked() -> None:
    made = re.compile(r"(^|/)(runs|\.venv|__pycache__|data/(shapes|camvid|ade20k))/|\.(pt|ckpt|npz|pyc)$")
    assert [str(f) for f in tracked() if made.search(str(f.relative_to(ROOT))) and "tests/" not in str(f)] == []


def test_every_marker_has_its_check_and_can_be_required(tmp_path: Path) -> None:
    """A marked test skips with the reason where its tool lacks, and fails where $LAUREPRO_REQUIRE names it."""
    declared = set(re.findall(r'^  "(\w+): needs', (ROOT / "pyproject.toml").read_text(), re.M))
    assert declared == set(NEEDS)
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.browser\ndef test_it(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  browser: needs Chromium\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(tmp_path)]
    for required, code, said in (("", 0, "no Chromium"), ("slurm, browser", 1, "LAUREPRO_REQUIRE names browser")):
        env = environment(PATH="", LAUREPRO_REQUIRE=required)
        ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert ran.returncode == code and said in ran.stdout, ran.stdout + ran.stderr


def test_every_extra_that_is_named_can_be_installed() -> None:
    """The project is on no package index: a hint is for the checkout, and names an extra of pyproject.toml."""
    declared = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    texts = {
        f: f.read_text() for f in tracked() if f.suffix in (".py", ".md", ".toml") or f.name in ("Makefile", "run")
    }
    assert [str(f) for f, text in texts.items() if re.search(r"pip install ['\"]?laurepro", text)] == []
    named = {
        name for text in texts.values() for name in re.findall(r"-e '?\.\[(\w+)\]|install\([\"'](\w+)[\"']\)", text)
    }
    assert {extra for pair in named for extra in pair if extra} - declared == set()
    assert {"cuda13", "tensorboard", "layer"} <= {extra for pair in named for extra in pair}
