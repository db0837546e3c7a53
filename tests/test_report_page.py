"""The whole report: the expected page of planted records, the same facts in every format, nothing that is not escaped."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import pytest
from click.testing import CliRunner
from conftest import ROOT, make_record, run_cli
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image, PngImagePlugin
from planted import FOLDER, VALUES, plant
from scipy import stats

from laurepro import plan, record, report, spec
from laurepro.cli import main
from laurepro.report import Sources, blocks, classes, html, latex, markdown, svg
from laurepro.report.blocks import Bullets, Charts, Code, Figure, Fold, Heading, Page, Table, Text
from laurepro.report.comparison import interval
from laurepro.report.finding import Finding

NASTY = r"a|b_c % & $x$ # \ <i>{y}</i> ~ ^ *z* `q` [l](u) <script>alert(1)</script> é 漢 &amp;"


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    """What tests/data/planted makes."""
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(FOLDER / "experiments"))
    plant(tmp_path / "results", tmp_path / "runs")
    return report.gather(results=tmp_path / "results", runs=tmp_path / "runs")


@pytest.fixture
def nasty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    """The same, with everything that means something in some format in labels, claims, a device, an error, a file."""
    folder = tmp_path / "experiments"
    shutil.copytree(FOLDER / "experiments", folder)
    for name, plain in (("table9", "Higher than bilinear"), ("table9", "from somewhere else")):
        file = folder / f"{name}.yaml"
        file.write_text(file.read_text().replace(plain, json.dumps(NASTY)[1:-1].replace("'", "''")))
    text = (folder / "table9.yaml").read_text()
    text = text.replace(f"label: {json.dumps(NASTY)[1:-1]}", f"label: {json.dumps(NASTY)}")
    (folder / "table9.yaml").write_text(text)
    claims = folder / "claims" / "paper.yaml"
    claims.write_text(claims.read_text().replace("The row gains 1 mIoU", json.dumps(NASTY)))
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(folder))
    results, runs = tmp_path / "results", tmp_path / "runs"
    plant(results, runs)
    table = spec.tables()["table9"]
    (job,) = plan.row_plan(table, table.row("changed"), spec.scale("toy"), 1).jobs
    names = (NASTY, "other")
    record.write(
        results,
        make_record(job, {"miou": 1.0}, device=NASTY, confusion=((1, 0), (1, 1)), class_names=names, commit=None),
    )
    (broken,) = plan.row_plan(table, table.row("absent"), spec.scale("field"), 1).jobs
    folder = record.run_folder(runs, broken)
    folder.mkdir(parents=True)
    (folder / "failure.json").write_text(json.dumps({"reason": NASTY, "last_lines": [NASTY, "```", "# x"]}))
    (results / "records" / "broken & <b> %.json").write_text("{")
    return report.gather(results=results, runs=runs)


def strings(found: Any) -> Iterator[str]:
    """Every text of a page's blocks that a reader is to see, but for anchors and marks."""
    match found:
        case Heading() | Text():
            yield found.text
        case Bullets():
            yield from found.items
        case Code():
            yield from found.text.split("\n")
        case Finding():
            yield from (sentence.partition(": ")[2] for sentence in found.sentences)
        case Table():
            yield from (c.title for c in found.grid.columns)
            yield from (text for line in found.grid.lines for c in line for text in (c.text, c.detail) if text)
        case Charts():
            yield found.title
            yield from (text for c in found.charts for text in (c.title, c.x))
        case Figure():
            yield from (found.title, found.description)
        case Fold():
            yield found.title
            for inner in found.blocks:
                yield from strings(inner)


def texts(page: Page) -> list[str]:
    return [page.title, *(s for b in page.blocks for s in strings(b))]


class Parsed(HTMLParser):
    """What a browser would make of a page: text, elements, their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.parts: list[str] = []
        self._skip = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))
        self._skip = tag if tag in ("style", "script") else self._skip

    def handle_endtag(self, tag: str) -> None:
        self._skip = "" if tag == self._skip else self._skip

    def handle_data(self, data: str) -> None:
        if not self._skip:
            self.parts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())


def shown_by_markdown(text: str) -> str:
    """The text that a CommonMark renderer with pipe tables shows."""
    found = []
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(text):
        if token.type == "inline":
            found.append("".join(_plain(t) for t in token.children or []))
        elif token.type in ("fence", "code_block"):
            found.append(token.content)
        elif token.type == "html_block":
            found.append(Parsed(token.content).text)
    return " ".join(" ".join(found).split())


def _plain(token: Any) -> str:
    if token.type == "image":
        return "".join(_plain(t) for t in token.children)
    return " " if token.type in ("softbreak", "hardbreak") else str(token.content)


def squeezed(text: str) -> str:
    return " ".join(text.split())


# ------------------------------------------------------------------------------------------ the expected page


def test_the_planted_records_give_the_expected_page(sources: Sources) -> None:
    """Should it differ because the report was changed: `python tests/planted.py`, and read the difference."""
    assert report.render_page(sources, "markdown", Path()) + "\n" == (FOLDER / "expected.md").read_text()


def test_the_expected_page_says_what_was_planted() -> None:
    lines = (FOLDER / "expected.md").read_text().splitlines()
    verdict = {w: [line for line in lines if f"| {w} |" in line] for w in ("supported", "contradicted", "undecided")}
    assert {w: [re.search(r"C1\.\w+", line)[0] for line in found] for w, found in verdict.items()} == {  # type: ignore[index]
        "supported": ["C1.higher"],
        "contradicted": ["C1.lower"],
        "undecided": ["C1.unclear"],
    }
    at_field = lines[lines.index("## Table 9, scale field: shapes val") :]
    row = {line.split(" | ")[0]: line for line in reversed(at_field) if line.startswith("| ")}
    assert (
        "| Never run" not in row
        and "- 2 of 8 rows were not run at this scale; laurepro show table9 lists them." in lines
    )
    assert "failed: RuntimeError" in row["| Failed"]
    assert "50.17 ± 0.38†" in row["| From changed code"] and "†" not in row["| Bilinear"]
    at_toy = "\n".join(lines[lines.index("## Table 9, scale toy: shapes val") :])
    assert "| Higher than bilinear | authors | 51.00 | 12.00 |" in at_toy and "51.12" not in at_toy.partition("##")[0]
    assert "12.00" not in row["| Higher than bilinear"]


@pytest.mark.parametrize("form", ["html", "markdown", "latex"])
def test_every_format_has_the_same_content(sources: Sources, form: str) -> None:
    page = report.build(sources)
    text = report.render_page(sources, form, Path())
    if form == "html":
        shown = Parsed(text).text.replace("\N{MINUS SIGN}", "-")
    elif form == "markdown":
        shown = shown_by_markdown(text)
    for expected in texts(page):
        if form == "latex":
            assert latex.escape(expected) in text
        else:
            assert squeezed(expected) in shown, expected


def test_the_scale_is_in_every_part(sources: Sources) -> None:
    for block in report.build(sources).blocks:
        parts = block.blocks if isinstance(block, Fold) else (block,)
        for part in parts:
            if isinstance(part, Table | Charts) and part.title != "Where the records were measured":
                assert "scale field" in part.title or "scale toy" in part.title, part.title


def test_a_record_of_another_scale_never_stands_beside_a_published_number_as_a_difference(sources: Sources) -> None:
    for rows in sources.sections:
        head, _ = report.grid(rows)
        assert not any(h.startswith("difference") for h in head)


def test_every_number_of_ours_leads_to_its_records(sources: Sources) -> None:
    page = Parsed(report.render_page(sources, "html", Path()))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert {f"#from-table9-field-{row}" for row in VALUES} <= set(links)
    for row in VALUES:
        elsewhere = "--results runs/again/results --runs runs/again"
        code = "git checkout 0123456789ab" + (" # also measured at: 0123456789ab†" if row == "changed" else "")
        assert f"{code} laurepro run table9/{row} --scale field --seeds 3 {elsewhere}" in page.text
    names = [r.job for r in sources.records.values()]
    assert all(f"records/{name}.json" in page.text for name in names)


def test_the_page_is_one_file_that_loads_nothing(sources: Sources) -> None:
    text = report.render_page(sources, "html", Path())
    page = Parsed(text)
    assert not [a for tag, a in page.elements if {"src", "srcset", "action"} & set(a) or tag in ("iframe", "object")]
    links = [a["href"] for tag, a in page.elements if tag == "link"]
    assert links == ["data:,"]
    assert not re.search(r"url\(|@import|https?:", text)


def test_what_each_class_is_taken_for(sources: Sources) -> None:
    """Of all seeds together: of 30000 labelled pixels of each class, as planted."""
    rows = next(s for s in sources.sections if s[0].scale.name == "field")
    text, *rest = classes.confusions(rows)
    assert isinstance(text, Text) and "over all seeds together" in text.text
    tables = [b for b in rest if isinstance(b, Table)]
    assert len(tables) == len(VALUES) and all(b.matrix and "scale field" in b.title for b in tables)
    right = sum(round(100 * miou) for miou in VALUES["base"])
    confused = [20000 * 3, 30000 - right], [30000 - right, right]
    shown = [[c.text for c in line] for line in tables[0].grid.lines]
    assert shown == [
        [name, *(f"{100 * n / sum(counts):.1f}" for n in counts)]
        for name, counts in zip(("ground", "thing"), confused, strict=True)
    ]


def test_of_many_classes_the_largest_confusions_are_listed(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classes, "MATRIX", 1)
    rows = next(s for s in sources.sections if s[0].scale.name == "field")
    table = next(b for b in classes.confusions(rows) if isinstance(b, Table))
    first, *_ = table.grid.lines
    wrong = 1 - sum(VALUES["base"]) / 300
    assert [c.text for c in first] == ["thing", "ground", f"{100 * wrong:.1f}"]


def test_claims_that_rest_on_a_measurement_are_folded_into_its_line(sources: Sources) -> None:
    text = report.render_page(sources, "html", Path())
    folded = '<details class="more"><summary>C1.higher</summary><small>C1.higher: The rows are above bilinear. Printed:'
    assert text.count(folded) == 1


def test_what_several_lines_share_stands_once(sources: Sources) -> None:
    """A claim's place in the paper and a scale's description; a table of a scale that may not be compared says so."""
    text = report.render_page(sources, "markdown", Path())
    assert text.count("\n- C1: section 1.\n") == 1
    assert not re.search(r"\(section 1\).*\| (supported|contradicted|undecided) \|", text)
    for scale in ("field", "toy"):
        assert text.count(f"Scale {scale}: {spec.scale(scale).sentence}") == 1
        at_scale = sum(rows[0].scale.name == scale for rows in sources.sections)
        said = f"- Scale {scale} is described above; no number may be compared with a published one."
        assert text.count(said) == at_scale > 0


def test_a_table_that_no_claim_of_the_paper_is_about_describes_its_scale() -> None:
    sources = report.gather(("tablec",), ["camvid-imagenet"], results=ROOT / "results")
    assert {v.claim.family for _, verdicts in sources.judgements for v in verdicts} & {"paper"} == set()
    text = report.render_page(sources, "markdown", Path())
    assert text.count(spec.scale("camvid-imagenet").sentence) == 1 and "is described above" not in text


def test_decided_is_coloured_only_where_a_claim_of_the_paper_is(sources: Sources) -> None:
    text = report.render_page(sources, "html", Path())
    assert text.count('<div class="decided some">') == 1, "at scale field, and not at toy, which is no evidence"
    assert text.count('<div class="decided">') == 1
    for f in sources.findings:
        assert (f.n_decided > 0) == (f.scale == "field")


def test_headings_go_down_one_level_at_a_time(sources: Sources) -> None:
    levels = [
        int(tag[1])
        for tag, _ in Parsed(report.render_page(sources, "html", Path())).elements
        if re.fullmatch(r"h\d", tag)
    ]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in pairwise(levels))


def test_what_is_asked_for_alone_is_shown(sources: Sources, tmp_path: Path) -> None:
    only = report.gather(("table9",), ["toy"], results=tmp_path / "results", runs=tmp_path / "runs")
    assert "scale field" not in report.render_page(only, "markdown", Path())


def test_without_runs_the_page_depends_on_results_alone(sources: Sources, tmp_path: Path) -> None:
    alone = report.gather(results=tmp_path / "results")
    text = report.render_page(alone, "markdown", Path())
    assert "Failures" not in text and "| Failed |" not in text and "3 of 8 rows were not run at this scale" in text


def test_a_changed_training_taints_the_number(sources: Sources, tmp_path: Path) -> None:
    table = spec.tables()["table9"]
    job = plan.row_plan(table, table.row("base"), spec.scale("field"), 1).jobs[0]
    assert job.needs is not None
    record.write(tmp_path / "results", make_record(job.needs, {}, dirty=True))
    rows = report.measure(table, spec.scale("field"), tmp_path / "results", tmp_path / "runs")
    assert [r.row.id for r in rows if r.dirty] == ["base", "changed"]


# ------------------------------------------------------------------------------------------------ escaping


@pytest.mark.parametrize("form", ["html", "markdown"])
def test_nothing_is_markup(nasty: Sources, form: str) -> None:
    page = report.build(nasty)
    assert sum(NASTY in text for text in texts(page)) > 8
    text = report.render_page(nasty, form, Path())
    shown = Parsed(text).text.replace("\N{MINUS SIGN}", "-") if form == "html" else shown_by_markdown(text)
    for expected in texts(page):
        assert squeezed(expected) in shown, expected
    if form == "html":
        elements = Parsed(text).elements
        assert [tag for tag, _ in elements].count("script") == 1 and "i" not in [tag for tag, _ in elements]
        assert not [a for _, a in elements if any(k.startswith("on") for k in a)]


def test_latex_says_the_same(nasty: Sources) -> None:
    text = report.render_page(nasty, "latex", Path())
    for expected in texts(report.build(nasty)):
        assert latex.escape(expected) in text
    for char in "%#":
        assert not re.search(rf"(?<!\\){char}", text.split("\\begin{document}")[1]), char


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1))
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    shown = shown_by_markdown(f"| a | b |\n| :--- | ---: |\n| {markdown.escape(text)} | end |\n")
    assert shown == squeezed(f"a b {text} end")
    assert shown_by_markdown(f"before\n\n{markdown.paragraph(text.strip() or 'x')}\n\nafter") == squeezed(
        f"before {text.strip() or 'x'} after"
    )


@given(st.text())
def test_latex_text_is_balanced_and_in_a_font(text: str) -> None:
    shown = latex.escape(text)
    assert all(ord(c) < 0x180 and (c.isprintable() or c == " ") for c in shown)
    bare = re.sub(r"\\[{}$&%#_]", "", shown)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert not re.search(r"(?<!\\)[%#&_]", re.sub(r"\$[^$]*\$", "", shown))


@pytest.mark.latex
def test_latex_compiles(nasty: Sources, tmp_path: Path) -> None:
    file = tmp_path / "report.tex"
    for name in ("fig_6 %&.png", "fig6-field.png"):
        make_image(nasty, tmp_path / "results" / "figures" / name)
    again = report.gather(results=tmp_path / "results", runs=tmp_path / "runs")
    file.write_text(report.render_page(again, "latex", tmp_path))
    compiler = next(c for c in ("pdflatex", "lualatex", "tectonic") if shutil.which(c))
    halt = [] if compiler == "tectonic" else ["-interaction=nonstopmode", "-halt-on-error"]
    ran = subprocess.run([compiler, *halt, file.name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and file.with_suffix(".pdf").stat().st_size > 10_000, ran.stdout[-2000:]


# ------------------------------------------------------------------------------------------------- numbers


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12))
def test_the_interval_is_students(values: list[float]) -> None:
    found = interval(values)
    std = statistics.stdev(values)
    if std == 0:
        assert found is None
        return
    low, high = stats.t.interval(0.95, len(values) - 1, statistics.fmean(values), std / len(values) ** 0.5)
    assert found == pytest.approx((low, high), rel=1e-9, abs=1e-9)


def test_no_interval_from_one_seed() -> None:
    assert interval([1.0]) is None and interval([]) is None


@given(st.floats(-1e3, 1e3), st.floats(1e-2, 1e6), st.integers(2, 8))
def test_ticks_are_round_few_and_inside(low: float, width: float, count: int) -> None:
    found = svg.ticks(low, low + width, count)
    assert 2 <= len(found) <= 3 * count + 3
    assert all(low - width * 1e-6 <= t <= low + width * (1 + 1e-6) for t in found)
    steps = {round((b - a) / width, 6) for a, b in pairwise(found)}
    assert len(steps) <= 1


def test_a_chart_is_drawn_where_its_numbers_are() -> None:
    c = blocks.Chart("t", "x", "y", (blocks.Series("s", ((0.0, 1.0), (10.0, 3.0))),))
    drawn = svg.chart(c, (0.0, 10.0, 0.0, 4.0))
    points = re.search(r'points="([^"]*)"', drawn)
    assert points
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in points[1].split())
    tall = svg.HEIGHT - svg._TOP - svg._BOTTOM
    assert (x0, x1) == (svg._LEFT, svg.WIDTH - svg._RIGHT)
    assert y0 - y1 == pytest.approx(tall / 2, abs=0.11) and svg.HEIGHT - svg._BOTTOM - y0 == pytest.approx(
        tall / 4, abs=0.11
    )
    assert "s: 1 at 0, 3 at 10" in drawn


@pytest.mark.parametrize(
    ("ends", "drawn"),
    [
        ((1.0, 0.5, 2.0), (56.0, 74.0, 62.0)),  # low, high, mean: right of the line at 50
        ((-1.0, -2.0, -0.5), (26.0, 44.0, 38.0)),
        ((0.0, -4.0, 4.0), (2.0, 98.0, 50.0)),
        ((-12.0, -30.0, 6.0), (2.0, 98.0, 2.0)),
    ],
)
def test_an_interval_is_drawn_on_its_side_of_zero(
    ends: tuple[float, float, float], drawn: tuple[float, float, float]
) -> None:
    bar = svg.interval(ends, 4.0)
    found = re.search(r'd="M([\d.]+) 5H([\d.]+)"/>.*class="mean" cx="([\d.]+)"', bar)
    assert found and tuple(map(float, found.groups())) == drawn
    assert 'class="zero" d="M50 0V10"' in bar
    beyond = [end for end in ends[1:] if abs(end) > 4]
    assert bar.count('class="beyond"') == len(beyond), "an end that is not shown has an arrowhead"


# --------------------------------------------------------------------------------------------------- images


def make_image(sources: Sources, file: Path, size: int = 16) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    words = PngImagePlugin.PngInfo()
    words.add_itxt("Title", NASTY)
    words.add_itxt("Description", f"what is on it: {NASTY}")
    Image.effect_noise((size, size), 100).save(file, pnginfo=words)


def test_figures_of_the_results_folder_are_shown_with_their_words(sources: Sources, tmp_path: Path) -> None:
    make_image(sources, tmp_path / "results" / "figures" / "a b.png")
    good = (tmp_path / "results" / "figures" / "a b.png").read_bytes()
    (tmp_path / "results" / "figures" / "broken.png").write_text("no picture")
    (tmp_path / "results" / "figures" / "cut.png").write_bytes(good[:30])
    found = report.gather(results=tmp_path / "results")
    page = Parsed(report.render_page(found, "html", tmp_path))
    (image,) = [a for tag, a in page.elements if tag == "img"]
    assert image["src"].startswith("data:image/png;base64,") and image["alt"] == f"what is on it: {NASTY}"
    text = report.render_page(found, "markdown", tmp_path)
    assert "](<results/figures/a b.png>)" in text and NASTY in shown_by_markdown(text)


def test_a_file_name_does_not_end_its_link(tmp_path: Path) -> None:
    names = [os.fsdecode(n) for n in ("a>)b.png", "a<b\\\\.png", "50 %3E.png", "ü.png", b"r\xe9.png")]
    page = Page("t", tuple(blocks.Figure(tmp_path / "figures" / n, "t", "d") for n in names))
    text = markdown.render(page, tmp_path)
    tokens = [t for token in MarkdownIt().parse(text) for t in token.children or () if t.type == "image"]
    links = [Path(os.fsdecode(unquote_to_bytes(str(t.attrs["src"])))) for t in tokens]
    assert links == [Path("figures") / n for n in names]


def test_a_figure_whose_name_is_not_text_is_shown(sources: Sources, tmp_path: Path) -> None:
    file = tmp_path / "results" / "figures" / os.fsdecode(b"r\xe9.png")
    file.parent.mkdir()
    Image.new("L", (4, 4)).save(file)
    places = ("--results", tmp_path / "results", "--runs", tmp_path / "runs")
    for form in ("html", "markdown", "latex"):
        ran = CliRunner().invoke(
            main, list(map(str, ("report", "--format", form, *places, "--output", tmp_path / "page")))
        )
        assert ran.exit_code == 0, ran.output
        assert (tmp_path / "page").read_bytes().decode("utf-8")


def test_images_never_make_the_page_too_large(sources: Sources, tmp_path: Path) -> None:
    for i in range(3):
        make_image(sources, tmp_path / "results" / "figures" / f"{i}.png", size=1500)
    text = report.render_page(report.gather(results=tmp_path / "results"), "html", tmp_path)
    page = Parsed(text)
    shown = [a for tag, a in page.elements if tag == "img"]
    assert len(text) < html.IMAGE_BYTES * 1.4 + 1_000_000 and len(shown) < 3
    assert "results/figures/2.png" in page.text or "2.png is left out of this file" in page.text


# ------------------------------------------------------------------------------------------- the two forms


def test_the_checklist_answers_from_the_records(sources: Sources) -> None:
    text = shown_by_markdown(report.render_page(sources, "checklist", Path()))
    assert "Scale field, the paper's claims: 1 supported, 1 contradicted, 1 undecided, 1 not run, 1 not judged." in text
    assert "further questions" not in text and "Decided: 2 of the paper's 5 claims" in text
    assert "28 of 31 records come from an unchanged commit" in text and "Answer: partly." in text
    assert "cpu: 31 jobs, 2.75 device hours" in text
    assert "5 of 6 measured rows" in text or "of 16 rows" in text
    assert text.count("for the authors of the text") >= 4


def test_the_checklist_of_nothing_claims_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(FOLDER / "experiments"))
    nothing = report.gather((), ["toy"], results=tmp_path)
    text = report.render_page(nothing, "checklist", Path())
    assert "Answer: not decided by these records." in text and "Nothing was measured." in text
    assert "Answer: yes" in text  # what is true without records: limits, open code
    artefact = report.render_page(nothing, "artefact", Path())
    assert "Nothing was measured." in artefact and "0.00 device hours for 0 jobs" in artefact


def test_the_artefact_appendix_has_the_commands_and_what_to_expect(sources: Sources) -> None:
    text = report.render_page(sources, "artefact", Path())
    assert "laurepro run table9 --scale field --seeds 3" in text and "laurepro run table9 --scale toy --seeds 1" in text
    assert "51.12 ± 0.28" in text and "| 51.00 |" not in text
    assert "0123456789ab" in text and "Apache-2.0" in text


# ---------------------------------------------------------------------------------- the page that is committed


def committed(folder: Path) -> Path:
    """The results folder as git knows it: what a developer has measured besides does not count."""
    target = folder / "results"
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        shutil.copytree(ROOT / "results", target)
        return target
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--", "results"], capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listing.split("\0")):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, file)
    return target


def test_the_committed_report_is_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(ROOT / "experiments"))
    results = committed(tmp_path)
    sources = report.gather(results=results)
    sections, table = sources.sections, results / "REPORT.csv"
    text, files = report.render_split(sources, results, results / "tables")
    written = {f: f.read_text() for f in (results / "REPORT.md", *(results / "tables").glob("*.md"))}
    fresh = {f: t + "\n" for f, t in ({results / "REPORT.md": text} | files).items()}
    assert written == fresh, "results/REPORT.md or results/tables is stale: make report"

    def rounded(cell: str) -> str:
        """With the digits that two processors agree on."""
        return re.sub(r"-?\d+\.\d+(?:e-?\d+)?", lambda found: f"{float(found[0]):.6g}", cell)

    made, kept = (list(csv.reader(io.StringIO(t))) for t in (report.render(list(sections), "csv"), table.read_text()))
    assert [[*map(rounded, line)] for line in made] == [[*map(rounded, line)] for line in kept], "make report"
    scales = {r.scale for r in record.read_all(results)[0].values()}
    size = (results / "REPORT.md").stat().st_size
    assert size <= 10_000 + 30_000 * len(scales), "what is long belongs into a fold of the page"


def test_a_split_report_is_the_whole_report(sources: Sources, tmp_path: Path) -> None:
    """The page keeps what the whole one shows unfolded, and its links lead to files that have the rest."""
    text, files = report.render_split(sources, tmp_path, tmp_path / "tables")
    together = shown_by_markdown("\n\n".join([text, *files.values()]))
    assert [t for t in texts(report.build(sources)) if squeezed(t) not in together] == []
    tokens = [t for token in MarkdownIt().parse(text) for t in token.children or () if t.type == "link_open"]
    links = {tmp_path / unquote(str(t.attrs["href"])) for t in tokens}
    assert links == set(files) and {f.name for f in files} == {"claims.md", "table9-field.md", "table9-toy.md"}
    assert "records/" not in text and "records/evaluate-" in files[tmp_path / "tables" / "table9-field.md"]


# --------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize("form", ["html", "markdown", "latex", "checklist", "artefact"])
def test_pages_from_the_command_line(sources: Sources, tmp_path: Path, form: str) -> None:
    places = ("--results", tmp_path / "results", "--runs", tmp_path / "runs")
    file = tmp_path / "out" / f"page.{form}"
    experiments = {"LAUREPRO_EXPERIMENTS": FOLDER / "experiments"}
    ran = run_cli("report", "--format", form, "--output", file, *places, cwd=tmp_path, **experiments)
    assert ran.code == 0 and ran.out == "", ran.err
    assert file.read_text() == report.render_page(sources, form, file.parent) + "\n"


def test_a_fragment_is_the_tables_alone(sources: Sources, tmp_path: Path) -> None:
    places = ("--results", tmp_path / "results", "--runs", tmp_path / "runs")
    experiments = {"LAUREPRO_EXPERIMENTS": FOLDER / "experiments"}
    ran = run_cli("report", "--format", "latex", "--fragment", *places, cwd=tmp_path, **experiments)
    assert ran.code == 0 and "documentclass" not in ran.out and ran.out.count("\\begin{table}") == 2
    details = run_cli("report", "--format", "markdown", "--details", "tables", *places, cwd=tmp_path, **experiments)
    assert details.code == 0 and "tables/table9-field.md" in details.out
    assert (tmp_path / "tables" / "table9-field.md").read_text().startswith("# Table 9, scale field")
    refused = run_cli("report", "--format", "html", "--fragment", *places, cwd=tmp_path, **experiments)
    assert refused.code == 2 and "--fragment" in refused.err
