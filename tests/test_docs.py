"""The pages: links, commands and targets that exist; and the rules of this repository."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from conftest import NEEDS, ROOT, environment

from laurepro import claims, cli, plan, record, spec
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
    blocks = re.findall(r"^```(?!text)[^\n]*\n(.*?)^```", text, re.M | re.S)  # ```text is a command's syntax
    return [line for block in blocks for line in block.splitlines()]


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


@pytest.mark.parametrize("page", NAMES)
def test_every_command_of_a_page_exists(page: str) -> None:
    """In code blocks: command, options, and the tables and rows they name."""
    known = set(cli.main.commands) | set(spec.tables()) | {"table3"}
    for line in blocks(page):
        typed = re.match(r"\s*(?:\$ )?(?:\.venv/bin/)?laurepro( [^#]*)?$", line.split("   ")[0])
        if not typed:
            continue
        words = shlex.split(typed.group(1) or "")
        if not words or words[0].startswith("-"):
            continue
        assert words[0] in known, f"{page}: {line}"
        command = cli.main.commands["run" if words[0].startswith("table") else words[0]]
        if isinstance(command, click.Group) and not (command.invoke_without_command and words[1:2] != ["plugin"]):
            assert words[1] in command.commands, f"{page}: {line}"
            command = command.commands[words[1]]
        options = {o for p in command.get_params(click.Context(command)) for o in p.opts} | {"--help", "-h"}
        assert [w for w in words if w.startswith("--") and w.split("=")[0] not in options] == [], f"{page}: {line}"
        for word in words[1:]:
            if re.match(r"table\d", word) and "/encnet-my-" not in word:  # which the page writes
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


SCALES = ("camvid-imagenet", "camvid-imagenet-tuned")  # those of the plan
BASES = [ROOT, ROOT / "laurepro", ROOT / "experiments"]
FILE = re.compile(r"`((?:[\w.<>\-]+/)*[\w.<>\-]+(?:\.(?:py|yaml|md|cu|json)|/))`")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_file_that_a_page_names_exists(page: str) -> None:
    """In the text, and in the README's layout: from the root, or below laurepro/ or experiments/."""
    text = (ROOT / page).read_text()
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    named = [n for n in FILE.findall(prose) if "<" not in n and n.split("/")[0] not in ("plugins", "runs")]
    tree = re.search(r"^```\n(experiments/ .*?)^```", text, re.M | re.S)
    named += re.findall(r"(?<![\w/.])[\w./]+(?:\.py|/)(?=[ :)\n])", tree.group(1).replace("runs/", "")) if tree else []
    assert [n for n in named if not any((base / n).exists() for base in BASES)] == []
    assert page != "README.md" or {"spec/job.py", "laurepro/record.py", "worker.py", "evaluation/"} <= set(named)


def test_the_readme_names_scales_and_an_example_row() -> None:
    text = (ROOT / "README.md").read_text()
    assert [s for s in re.findall(r"^\| `([a-z\-]+)` \|", text, re.M) if s not in spec.scale_names()] == []
    for address in re.findall(r"`(table\w+/[\w.\-]+)`", text):
        plan.select([address], spec.scale("smoke"))


def test_the_status_in_the_readme_is_that_of_the_records() -> None:
    """A record from a GPU, or of another scale or verdict, makes it false: then rewrite it."""
    (status,) = re.findall(r"^> \*\*Status\.\*\*.*?\n\n", (ROOT / "README.md").read_text(), re.M | re.S)
    status = " ".join(status.replace("\n> ", " ").split())
    records, problems = record.read_all(ROOT / "results")
    assert not problems
    tested = [r for r in records.values() if r.stage == "evaluate" and r.split == "test"]
    assert {r.scale for r in tested} == {"camvid-cpu", *SCALES}
    assert {r.environment.device.split(" ")[0] for r in records.values()} == {"cpu"}
    verdicts = claims.judge(spec.scale(SCALES[0]), records)
    paper = [v for v in verdicts if v.claim.family == "paper"]
    words = Counter(v.verdict for v in paper)
    equivalent = words["equivalent"] + words["equivalent at this scale"]
    decided = words["supported"] + words["supported at this scale"] + equivalent
    assert f"Of the paper's {len(paper)} claims {decided} are decided at `camvid-imagenet`" in status
    names = {
        word: [v.claim.id for v in paper if v.verdict == word] for word in ("supported", "supported at this scale")
    }
    assert names["supported"] == ["C2.4x-over-bilinear", "C8.enc8"] and equivalent == 8
    assert {n.removesuffix("-off").removesuffix("-lau") for n in names["supported at this scale"]} == {
        *("C9.enc8", "C10.enc32", "C23.enc8")  # rows that diverge at most seeds, or predict one class
    }
    assert len(names["supported at this scale"]) == 6
    how = 'two by what LaU gains over bilinear upsampling, eight as "equivalent", and six over rows'
    assert f"{how} that train badly there or not at all." in status
    assert f"{words['undecided']} are undecided; the others" in status
    others = {"undecided", "not run", "not judged"}
    assert set(words) == {"supported", "supported at this scale", "equivalent", "equivalent at this scale", *others}
    one, own = ({v.claim.id: v for v in claims.judge(spec.scale(name), records)} for name in SCALES)
    gain, own_gain, grid = (v.estimate for v in (one["C8.enc8"], own["C8.enc8"], one["K2.grid"]))
    assert one["C8.enc8"].verdict == "supported"
    assert (
        f"LaU with its loss scores {gain:.2f} points of mIoU above bilinear upsampling, and {own_gain:.2f} with"
        in status
    )
    narrow = one["K2.grid"].interval
    assert one["K2.grid"].verdict == "supported at this scale" and narrow is not None and 0 < narrow[0] < 0.05
    assert f"LaU's grid without any offset is {grid:.2f} above it, a narrow verdict" in status
    assert (
        one["C7.enc8"].verdict == "equivalent at this scale" and "the loss adds less than the margin of 0.5" in status
    )
    assert {own[n].verdict for n in ("K2.grid", "C7.enc8")} == {"undecided"}
    assert {of[n].verdict for n in ("K1.off", "K1.no-loss") for of in (one, own)} == {"undecided"}
    assert "What the offsets add is undecided at both." in status


# ---------------------------------------------------------------------------------------------- the commands


def test_the_page_of_all_commands_is_up_to_date() -> None:
    """docs/_commands.py writes it."""
    made = runpy.run_path(str(ROOT / "docs" / "_commands.py"))["page"]()
    assert (ROOT / "docs" / "commands.md").read_text() == made, "run: python docs/_commands.py"


@pytest.mark.parametrize("group", ["", *(name for name, command in cli.walk() if isinstance(command, click.Group))])
def test_the_help_of_every_command_fits_80_columns(group: str) -> None:
    ran = CliRunner().invoke(cli.main, [*group.split(), "--help"], terminal_width=80)
    lines = ran.output.splitlines()
    listed = lines[lines.index("Commands:") + 1 :]
    assert ran.exit_code == 0 and len(listed) > 0
    assert [line for line in listed if len(line) > 80 or line.rstrip().endswith(("...", "…"))] == []


def test_every_command_has_its_line() -> None:
    assert [name for name, _ in cli.walk()] and set(cli.SHORT) == {name for name, _ in cli.walk()}


def test_the_demo_ends_with_commands_that_work(tmp_path: Path) -> None:
    """With a `laurepro` that does nothing: what make prints after it names its records, and commands that exist."""
    if shutil.which("make") is None:
        pytest.skip("no make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    stub = tmp_path / ".venv" / "bin" / "laurepro"
    stub.parent.mkdir(parents=True)
    for file in (stub, stub.with_name("python"), tmp_path / ".venv" / ".run"):
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    ran = subprocess.run(["make", "--silent", "demo"], cwd=tmp_path, capture_output=True, text=True, check=True)
    said, _, following = ran.stdout.partition("Next:\n")
    assert "Records: runs/demo/results" in said and "nothing about the paper" in said
    activate, *commands = following.splitlines()
    assert activate == "  source .venv/bin/activate" and len(commands) == 3
    for line in commands:
        name, *words = shlex.split(line)[1:]
        command = cli.main.commands[name]
        assert isinstance(command, click.Group) or command.make_context(name, words)


def test_no_file_is_large() -> None:
    large = {str(f.relative_to(ROOT)): f.stat().st_size for f in tracked() if f.stat().st_size > 2**20}
    assert large == {}


def test_nothing_that_is_made_is_tracked() -> None:
    """The counts of images beside the records are measured, and kept."""
    made = re.compile(r"(^|/)(runs|\.venv|__pycache__|data/(shapes|camvid|ade20k))/|\.(pt|ckpt|npz|pyc)$")
    names = {f.relative_to(ROOT).as_posix() for f in tracked()}
    kept = ("tests/", "results/records/")
    assert [name for name in sorted(names) if made.search(name) and not name.startswith(kept)] == []


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
