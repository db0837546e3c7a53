"""Seeds are numbers like any other: no command has a largest one, and a pretraining's seed is no row's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import make_record, run_cli
from hypothesis import given
from hypothesis import strategies as st

from laurepro import plan, record, spec
from laurepro.errors import LaureproError
from laurepro.spec import Job

LAU, BILINEAR = "table3a/encnet-os8-lau4x-off", "table3a/encnet-os8-bilinear"
SEEDS = (0, 100, 101)


def jobs(address: str, *seeds: int) -> tuple[Job, ...]:
    table, _, row = address.partition("/")
    found = spec.tables()[table]
    return plan.row_plan(found, found.row(row), spec.scale("smoke"), seeds).jobs


@pytest.fixture
def high(tmp_path: Path, experiments: Path) -> Path:
    """Both rows at smoke with seeds 0, 100 and 101, and the pretraining that their scale shares, whose seed is 7."""
    file = experiments / "scales" / "smoke.yaml"
    text = file.read_text()
    assert "seed: 999" in text
    file.write_text(text.replace("seed: 999", "seed: 7"))
    for address, value in ((LAU, 51.0), (BILINEAR, 50.0)):
        for number, job in enumerate(jobs(address, *SEEDS)):
            spread = (-0.1, 0.0, 0.1)[number] * (1 if address == LAU else 2)
            record.write(tmp_path / "results", make_record(job, {"miou": value + spread}))
            assert job.needs is not None and job.needs.needs is not None and job.needs.needs.seed == 7
            record.write(tmp_path / "results", make_record(job.needs, {}))
    record.write(tmp_path / "results", make_record(job.needs.needs, {}))
    return tmp_path


def test_every_command_counts_seeds_of_100_and_more(high: Path, experiments: Path) -> None:
    options: dict[str, Path] = {"cwd": high, "LAUREPRO_EXPERIMENTS": experiments}
    ran = run_cli("report", "table3a", "--scale", "smoke", "--format", "json", **options)
    assert ran.code == 0, ran.err
    rows = {r["row"]: r for r in json.loads(ran.out)["tables"][0]["rows"]}
    assert rows[LAU]["n_seeds"] == 3 and rows[LAU]["status"] == "done"
    ran = run_cli("claims", "--scale", "smoke", "--only", "C8.enc8", "--format", "json", **options)
    (item,) = json.loads(ran.out)["items"]
    assert (item["n"], item["verdict"]) == (3, "undecided") and item["estimate"] == pytest.approx(1.0)
    ran = run_cli("explain", LAU, "--scale", "smoke", "--format", "json", **options)
    assert json.loads(ran.out)["ours"]["miou60"]["n"] == 3


def test_status_asks_for_no_seed_of_a_pretraining(high: Path, experiments: Path) -> None:
    options: dict[str, Path] = {"cwd": high, "LAUREPRO_EXPERIMENTS": experiments}
    ran = run_cli("status", LAU, BILINEAR, "--scale", "smoke", **options)
    assert "scale smoke: 12 done" in ran.out and " 0 missing" in ran.out, ran.out
    begun = jobs(LAU, 7)[0].needs  # and if a row is begun with that seed, it counts
    assert begun is not None
    folder = record.run_folder(high / "runs", begun)
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"scale": "smoke", "seed": 7}))
    ran = run_cli("status", LAU, "--scale", "smoke", **options)
    assert "6 done" in ran.out and " 3 missing" in ran.out, ran.out  # with the pretraining, whose weights are gone


# ------------------------------------------------------------------------------------------------------ --seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("1", (0,)),
        ("3", (0, 1, 2)),
        ("5-9", (5, 6, 7, 8, 9)),
        ("7-7", (7,)),
        ("0-2,100-101", (0, 1, 2, 100, 101)),
        ("4-5,4-4", (4, 5)),
        ("5,6", (5, 6)),
        ("17,2,9-11", (2, 9, 10, 11, 17)),
        ("3,3", (3,)),
    ],
)
def test_the_option_takes_a_number_or_seeds(text: str, seeds: tuple[int, ...]) -> None:
    parsed = plan.parse_seeds(text)
    table = spec.tables()["table3a"]
    row = plan.row_plan(table, table.row("encnet-os8-bilinear"), spec.scale("smoke"), parsed)
    assert tuple(job.seed for job in row.jobs) == seeds
    assert plan.parse_seeds(plan.seeds_text(seeds)) in (parsed, seeds, len(seeds))


@given(st.sets(st.integers(0, 300), min_size=1))
def test_what_a_command_prints_of_seeds_gives_the_same_seeds(seeds: set[int]) -> None:
    parsed = plan.parse_seeds(plan.seeds_text(seeds))
    assert set(range(parsed) if isinstance(parsed, int) else parsed) == seeds


@pytest.mark.parametrize(
    ("seeds", "text"),
    [({0, 1}, "2"), ({2}, "2-2"), ({0, 2}, "0,2"), ({2, 9, 10, 11, 17}, "2,9-11,17"), ({5, 6}, "5-6")],
)
def test_seeds_as_the_option_takes_them(seeds: set[int], text: str) -> None:
    assert plan.seeds_text(seeds) == text


@pytest.mark.parametrize(
    ("seeds", "text"), [({2}, "seed 2"), ({0, 1}, "seeds 0 to 1"), ({17, 2, 9, 10, 11}, "seeds 2, 9 to 11, 17")]
)
def test_seeds_in_a_sentence(seeds: set[int], text: str) -> None:
    assert plan.seeds_named(seeds) == text


@pytest.mark.parametrize(
    "text", ["0", "-1", "5-", "9-5", ",5", "5,", "5,-6", "5, 6", "1-2,", "1e3", "", "x", "１", "0-99999999", "1" * 40]
)
def test_other_values_are_refused(text: str) -> None:
    with pytest.raises(LaureproError, match="expected a number of seeds, as 3, or the seeds") as error:
        plan.parse_seeds(text)
    assert repr(text) in str(error.value)


def test_commands_take_ranges(tmp_path: Path) -> None:
    ran = run_cli("plan", BILINEAR, "--scale", "smoke", "--seeds", "5-6", "--format", "json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert {j["seed"] for j in json.loads(ran.out)["jobs"] if j["stage"] == "evaluate"} == {5, 6}
    for wrong in (("--seeds", "6-5"), ("--seeds", "5-6", "--budget", "1", "--gpu", "h100")):
        ran = run_cli("plan", BILINEAR, "--scale", "smoke", *wrong, cwd=tmp_path)
        assert ran.code == 2 and "--seeds" in ran.err and "Traceback" not in ran.err, ran.err
