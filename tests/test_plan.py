"""From rows to jobs: counts, sharing, order, reuse."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import planned, run_cli

from laurepro import plan, spec
from laurepro.cli import main
from laurepro.errors import LaureproError
from laurepro.plan import Plan
from laurepro.spec import Job

TRAINED = [f"table{n}" for n in range(1, 8)]  # table8 measures speeds
TRAIN_STAGES = {"train", "evaluate"}

ROWS = {
    "table1": "encnet-os8-bilinear encnet-os8-lau2x-off encnet-os8-lau3x-off encnet-os8-lau4x-off encnet-os8-lau5x-off",
    "table2": "encnet-os8-lau4x-off0.0 encnet-os8-lau4x-off0.1 encnet-os8-lau4x-off0.2 encnet-os8-lau4x-off0.3 "
    "encnet-os8-lau4x-off0.4",
    "table3a": "encnet-os8-pixelshuffle2x encnet-os8-pixelshuffle3x encnet-os8-pixelshuffle2x2x encnet-os8-bilinear "
    "encnet-os8-lau4x-off encnet-os32-pixelshuffle2x encnet-os32-bilinear encnet-os32-lau4x-off "
    "aspp-os8-pixelshuffle2x aspp-os8-bilinear aspp-os8-lau4x-off encnet-os8-grid4x",
    "table3b": "ccl-r101 dupsampling-x65 dupsampling-x71 danet-r101 hrnet-w48 jpu-r101 bfp-r101 "
    "encnet-r101-bilinear-ms encnet-r101-lau4x-off-ms encnet-r101-lau4x-reg-ms "
    "encnet-r101-lau4x-off-ss encnet-r101-lau4x-reg-ss",
    "table4": "encnet-os32-deformable encnet-os32-lau4x encnet-os32-lau4x-off encnet-os8-deformable encnet-os8-lau4x "
    "encnet-os8-lau4x-off aspp-os8-deformable aspp-os8-lau4x aspp-os8-lau4x-off",
    "table5": "encnet-r50-bilinear encnet-r50-lau4x-off encnet-r50-lau4x-reg encnet-r101-bilinear "
    "encnet-r101-lau4x-off encnet-r101-lau4x-reg hrnet-w48 pspnet-r152 pspnet-r269",
    "table6": "pspnet-r269 winteriscoming casia-iva-jd encnet-r101 jpu-r101 "
    "encnet-r101-lau4x-off encnet-r101-lau4x-reg",
    "table7": "deeplabv3plus-r50-bilinear deeplabv3plus-r50-lau4x deeplabv3plus-r101-bilinear deeplabv3plus-r101-lau4x",
    "table8": "encnet-os8-r50-bilinear encnet-os8-r50-lau4x encnet-os8-r101-bilinear encnet-os8-r101-lau4x "
    "encnet-os32-r50-bilinear encnet-os32-r50-lau4x encnet-os32-r101-bilinear encnet-os32-r101-lau4x "
    "aspp-os8-r50-bilinear aspp-os8-r50-lau4x aspp-os8-r101-bilinear aspp-os8-r101-lau4x",
}


def make(
    *targets: str,
    scale: str = "paper",
    seeds: int = 1,
    done: Collection[str] = (),
    weights: Collection[str] | None = None,
    force: bool = False,
    diverged: Collection[str] = (),
) -> Plan:
    """The plan of the targets; `weights`: whose weights are at hand (default: of all that are done)."""
    chosen = spec.scale(scale)
    rows = [plan.row_plan(t, r, chosen, seeds) for t, r in plan.select(targets, chosen)]
    at_hand = set(done if weights is None else weights)
    return plan.build(rows, set(done), lambda job: job.name in at_hand, force, diverged)


def names(jobs: Collection[Job], stage: str | None = None) -> list[str]:
    return [j.name for j in jobs if stage in (None, j.stage)]


def job(address: str, stage: str = "train", scale: str = "paper") -> Job:
    """A row's job of a stage."""
    found = make(address, scale=scale)
    evaluate = next(j for j in found.rows[0].jobs if j.stage == "evaluate")
    need = evaluate.needs
    assert need is not None
    return evaluate if stage == "evaluate" else need


# ------------------------------------------------------------------------------------------------- counts


def test_rows_are_those_of_the_contract() -> None:
    contract = {f"{table}/{row}" for table, rows in ROWS.items() for row in rows.split()}
    assert len(contract) == 75
    ours = [t for t in spec.tables().values() if not t.source.paper.startswith("arXiv:")]
    assert {f"{t.id}/{r.id}" for t in spec.tables().values() if t not in ours for r in t.rows} == contract
    assert {r.origin for t in ours for r in t.rows} <= {"control", "extension"}, "a table of our own has no other rows"
    assert not any(r.published for t in ours for r in t.rows)


def test_the_paper_takes_38_trainings_and_40_evaluations() -> None:
    jobs = make(*TRAINED).jobs
    assert len({j.name for j in jobs}) == len(jobs)
    stages = Counter(j.stage for j in jobs)
    assert (stages["train"], stages["evaluate"]) == (38, 40)
    assert sum(j.experiment.eval.split == "test" for j in jobs if j.stage == "evaluate") == 2
    trained = Counter(
        (j.experiment.data.name, j.experiment.model.backbone.kind, j.experiment.init_from is not None)
        for j in jobs
        if j.stage == "train"
    )
    assert trained[("pascal_context", "resnet50", False)] == 23
    assert trained[("pascal_context", "resnet101", False)] == 3
    assert trained[("ade20k", "resnet50", False)] + trained[("ade20k", "resnet101", False)] == 6
    assert trained[("ade20k", "resnet101", True)] == 2
    assert trained[("voc2012_aug", "resnet50", False)] + trained[("voc2012_aug", "resnet101", False)] == 4


def test_an_extension_is_no_part_of_the_papers_tables_but_runs_when_it_is_named() -> None:
    paper = spec.scale("paper")
    assert "table9" not in {t.id for t, _ in plan.select((), paper, everything=True)}
    rows = plan.select(["table9"], paper)
    assert len(rows) == len(spec.tables()["table9"].rows) > 30
    shared = {"encnet-bilinear": "table3a/encnet-os8-bilinear", "encnet-lau4x": "table4/encnet-os8-lau4x"}
    shared |= {"encnet-lau4x-off": "table3a/encnet-os8-lau4x-off"}
    shared |= {f"deeplabv3plus-{up}": f"table7/deeplabv3plus-r50-{up}" for up in ("bilinear", "lau4x")}
    for scale in spec.scale_names():
        for own, other in shared.items():
            assert job(f"table9/{own}", "evaluate", scale).name == job(other, "evaluate", scale).name


def test_quoted_rows_are_run_only_where_they_are_marked() -> None:
    for row in make(*TRAINED).rows:
        if row.row.origin == "quoted":
            assert bool(row.jobs) is row.row.rerun, row.address
        else:
            assert row.jobs, row.address


def test_table8_trains_nothing() -> None:
    assert {j.stage for j in make("table8").jobs} == {"profile"}


# ------------------------------------------------------------------------------------------------- sharing


@pytest.mark.parametrize(
    "same",
    [
        ["table1/encnet-os8-lau4x-off", "table2/encnet-os8-lau4x-off0.3", "table3a/encnet-os8-lau4x-off",
         "table4/encnet-os8-lau4x-off"],
        ["table2/encnet-os8-lau4x-off0.0", "table4/encnet-os8-lau4x"],
        ["table1/encnet-os8-bilinear", "table3a/encnet-os8-bilinear"],
        ["table3a/encnet-os32-lau4x-off", "table4/encnet-os32-lau4x-off"],
        ["table3a/aspp-os8-lau4x-off", "table4/aspp-os8-lau4x-off"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("scale", spec.scale_names())
def test_one_experiment_in_several_tables_is_one_job(same: list[str], scale: str) -> None:
    assert len({job(a, "evaluate", scale).name for a in same}) == 1
    planned = make(*same, scale=scale)
    evaluate = names(planned.jobs, "evaluate")
    assert len(evaluate) == 1
    assert sorted(planned.wanted_by[evaluate[0]]) == sorted(same)


def test_two_ways_of_testing_share_a_training() -> None:
    for loss in ("off", "reg"):
        ms, ss = (f"table3b/encnet-r101-lau4x-{loss}-{how}" for how in ("ms", "ss"))
        assert job(ms) == job(ss) or job(ms).name == job(ss).name
        assert job(ms, "evaluate").name != job(ss, "evaluate").name
        assert Counter(j.stage for j in make(ms, ss).jobs) == {"train": 1, "evaluate": 2}


def test_different_experiments_are_different_jobs() -> None:
    rows = [r for r in make(*ROWS, scale="smoke").rows if r.jobs]
    by_name: dict[str, set[str]] = {}
    for row in rows:
        for one in row.jobs:
            meaning = one.meaning
            by_name.setdefault(one.name, set()).add(repr(meaning))
    assert all(len(meanings) == 1 for meanings in by_name.values())
    grid, lau = (job(f"table3a/encnet-os8-{up}", scale="smoke") for up in ("grid4x", "lau4x-off"))
    assert grid.key != lau.key


def test_no_job_of_one_scale_is_one_of_another() -> None:
    seen: set[str] = set()
    total = 0
    for scale in spec.scale_names():
        keys = {j.key for j in make(*ROWS, scale=scale).jobs}
        seen |= keys
        total += len(keys)
    assert len(seen) == total


# ---------------------------------------------------------------------------------------------- selection


def test_a_control_row_is_left_out_at_paper_unless_it_is_named() -> None:
    control = "table3a/encnet-os8-grid4x"
    assert control not in {r.address for r in make("table3a").rows}
    assert control in {r.address for r in make(control).rows}
    assert control in {r.address for r in make("table3a", scale="smoke").rows}


def test_table3_means_both_and_nothing_is_taken_twice() -> None:
    both = [r.address for r in make("table3", "table3a", "table3b/ccl-r101").rows]
    assert both == [r.address for r in make("table3a", "table3b").rows]
    assert make("table3/ccl-r101").rows[0].address == "table3b/ccl-r101"


@pytest.mark.parametrize(
    ("target", "said"),
    [("tabel3a", "nearest: table3a"), ("table3a/encnet-bilinear", "unknown row"), ("table", "table1"), ("", "table1")],
)
def test_unknown_target(target: str, said: str) -> None:
    with pytest.raises(LaureproError) as error:
        make(target)
    assert said in str(error.value) and repr(target.rpartition("/")[2]) in str(error.value)


# --------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("scale", spec.scale_names())
@pytest.mark.parametrize("targets", [list(ROWS), ["table6", "table5"], ["table7", "table3a"]])
def test_what_a_job_needs_comes_before_it(scale: str, targets: list[str]) -> None:
    found = make(*targets, scale=scale, seeds=2)
    position = {j.name: i for i, j in enumerate(found.jobs)}
    assert len(position) == len(found.jobs)
    for one in found.jobs:
        if one.needs is not None:
            assert position[one.needs.name] < position[one.name]


def test_table6_starts_from_table5() -> None:
    for loss in ("off", "reg"):
        fine, first = job(f"table6/encnet-r101-lau4x-{loss}"), job(f"table5/encnet-r101-lau4x-{loss}")
        assert fine.needs is not None and fine.needs.name == first.name
        assert fine.experiment.init_from is not None and fine.experiment.init_from.part == "model"
        found = make(f"table6/encnet-r101-lau4x-{loss}")
        assert names(found.jobs, "train") == [first.name, fine.name]
        assert found.wanted_by[first.name] == (f"table6/encnet-r101-lau4x-{loss}",)
    seeds = make("table6", seeds=2)
    fine_tunes = [j for j in seeds.jobs if j.stage == "train" and j.experiment.init_from]
    assert sorted(j.needs.seed for j in fine_tunes if j.needs) == [0, 0, 1, 1]  # each its own seed's


def test_every_row_at_smoke_starts_from_the_backbone_of_its_depth() -> None:
    found = make(*TRAINED, scale="smoke", seeds=2)
    roots = {j.name: j for j in found.jobs if j.stage == "train" and j.needs is None}
    assert sorted(j.experiment.model.backbone.kind for j in roots.values()) == ["resnet101", "resnet50"]
    assert {j.seed for j in roots.values()} == {999}  # one for all seeds
    rows = [row for row in found.rows if row.jobs]
    assert len(rows) > 40
    for row in rows:
        for final in row.jobs:
            root = final
            while root.needs is not None:
                root = root.needs
            assert final.stage == "profile" or root.name in roots, row.address
            assert root.experiment.model.backbone == final.experiment.model.backbone


def test_seeds() -> None:
    found = make("table3a/encnet-os8-bilinear", scale="smoke", seeds=3)
    assert sorted(j.seed for j in found.jobs if j.stage == "evaluate") == [0, 1, 2]
    assert sorted(j.seed for j in found.jobs if j.stage == "train") == [0, 1, 2, 999]
    assert len({j.name for j in found.jobs}) == 7
    assert len([j for j in make("table8/encnet-os8-r50-bilinear", seeds=3).jobs if j.stage == "profile"]) == 1


# --------------------------------------------------------------------------------------------------- reuse

LAU = "table3a/encnet-os8-lau4x-off"


def trio() -> tuple[str, str, str]:
    """The three jobs of one row at smoke: shared backbone, training, evaluation."""
    backbone, train, evaluate = names(make(LAU, scale="smoke").jobs)
    return backbone, train, evaluate


@pytest.mark.parametrize(
    ("done", "weights", "todo"),
    [
        ("", "", "bte"),
        ("b", "b", "te"),
        ("b", "", "bte"),  # a shipped record alone is nothing to start from
        ("bt", "bt", "e"),
        ("bt", "b", "te"),
        ("bt", "t", "e"),  # the backbone is not needed again
        ("bt", "", "bte"),
        ("bte", "bte", ""),
        ("bte", "", ""),  # shipped records: nothing to do
        ("e", "", ""),
        ("te", "", ""),
        ("t", "t", "e"),
    ],
)
def test_what_is_done_is_not_done_again(done: str, weights: str, todo: str) -> None:
    by_letter = dict(zip("bte", trio(), strict=True))
    found = make(LAU, scale="smoke", done=[by_letter[d] for d in done], weights=[by_letter[w] for w in weights])
    assert names(found.jobs) == [by_letter[t] for t in todo]
    assert not {j.name for j in found.jobs} & {j.name for j in found.reused}
    if not todo:
        assert by_letter["e"] in names(found.reused)


def test_a_new_seed_reuses_the_old_ones() -> None:
    first = make(LAU, scale="smoke", seeds=1)
    more = make(LAU, scale="smoke", seeds=2, done=names(first.jobs))
    assert [(j.stage, j.seed) for j in more.jobs] == [("train", 1), ("evaluate", 1)]
    assert {j.name for j in more.reused} >= {n for n in names(first.jobs) if "-s0-" in n}


def test_a_record_of_another_table_counts() -> None:
    first = make("table1/encnet-os8-lau4x-off", scale="smoke")
    assert make("table2/encnet-os8-lau4x-off0.3", scale="smoke", done=names(first.jobs)).jobs == ()


def test_force_runs_the_rows_own_jobs_and_not_what_others_share() -> None:
    backbone, train, evaluate = trio()
    found = make(LAU, scale="smoke", done=trio(), force=True)
    assert names(found.jobs) == [train, evaluate]
    assert names(found.reused) == [backbone]
    assert names(make(LAU, scale="smoke", done=trio(), weights=[], force=True).jobs) == [backbone, train, evaluate]


def test_what_diverged_is_not_run_again_nor_what_needs_it() -> None:
    backbone, train, evaluate = trio()
    found = make(LAU, scale="smoke", done=[backbone], diverged=[train])
    assert (found.jobs, names(found.diverged)) == ((), [train]) and found.wanted_by[train] == (LAU,)
    found = make(LAU, scale="smoke", diverged=[backbone])
    assert (found.jobs, names(found.diverged)) == ((), [backbone])
    more = make(LAU, scale="smoke", seeds=2, done=[backbone], diverged=[train])
    assert [(j.stage, j.seed) for j in more.jobs] == [("train", 1), ("evaluate", 1)]
    assert names(make(LAU, scale="smoke", done=[backbone], diverged=[train], force=True).jobs) == [train, evaluate]
    later = make(LAU, scale="smoke", done=[backbone, train], diverged=[train])  # --force had it trained after all
    assert names(later.jobs) == [evaluate] and later.diverged == ()


def test_a_row_with_nothing_to_run_asks_for_nothing() -> None:
    found = make("table3b/ccl-r101", "table5/hrnet-w48")
    assert found.jobs == () and found.reused == () and [r.experiment for r in found.rows] == [None, None]


# ------------------------------------------------------------------------------ --set, of several rows


def test_a_field_that_a_row_lacks_is_left_out_for_that_row(tmp_path: Path) -> None:
    """As the edition of PASCAL Context, which ADE20K has not, in one command for both."""
    rows = ["table3a/encnet-os8-lau4x-off", "table5/encnet-r50-bilinear"]
    words = ["--set", "data.options.edition=detail", "--set", "model.upsampler.bottleneck_channels=96"]
    ran = run_cli("plan", *rows, *words, "--set", "train.lr=0.5", "--format", "json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "--set data.options.edition: left out for table5/encnet-r50-bilinear, which" in ran.err
    assert "--set model.upsampler.bottleneck_channels: left out for table5/encnet-r50-bilinear, which" in ran.err
    alone = [
        *planned(rows[0], *words, "--set", "train.lr=0.5", cwd=tmp_path),
        *planned(rows[1], "--set", "train.lr=0.5", cwd=tmp_path),
    ]
    assert {job["key"] for job in json.loads(ran.out)["jobs"]} == {job["key"] for job in alone}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (("train.lrr=1",), "unknown key 'lrr'"),
        (("data.options.editoin=detail",), "'editoin'"),
        (("data.options.edition=detail", "train.lrr=1"), "unknown key 'lrr'"),
        (("model.head.kind=asp",), "unknown head 'asp'"),
        (("train.lr=fast",), "train.lr"),
    ],
)
def test_a_field_that_no_row_has_stays_an_error(pairs: tuple[str, ...], message: str) -> None:
    from laurepro.commands.options import choose

    rows = ("table3a/encnet-os8-lau4x-off", "table5/encnet-r50-bilinear")
    with pytest.raises(LaureproError, match=message):
        choose(rows, False, "paper", 1, pairs)


def test_a_field_of_one_row_that_it_lacks_stays_an_error(tmp_path: Path) -> None:
    ran = run_cli("plan", "table5/encnet-r50-bilinear", "--set", "data.options.edition=detail", cwd=tmp_path)
    assert ran.code == 2 and "'edition'" in ran.err


def test_two_parts_with_one_option_of_a_name() -> None:
    """`channels` of head and upsampler: the one that the row lacks is left out, and no other."""
    scale = spec.scale("paper")
    table = spec.tables()["table3a"]
    overrides = {"model": {"head": {"channels": 64}, "upsampler": {"channels": 3}}, "train": {"lr": 0.5}}
    row = plan.row_plan(table, table.row("aspp-os8-bilinear"), scale, 1, overrides, partial=True)
    assert row.left_out == ("model.upsampler.channels",) and row.experiment is not None
    assert row.experiment.model.head.options["channels"] == 64 and row.experiment.train.lr == 0.5


def test_report_and_claims_take_the_set_of_such_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["report", "table3a", "table5", "--format", "csv"], ["claims"]):
        ran = CliRunner().invoke(main, [*words, "--scale", "paper", "--set", "data.options.edition=detail"])
        assert ran.exit_code == 0, ran.output
        ran = CliRunner().invoke(main, [*words, "--scale", "paper", "--set", "train.lrr=1"])
        assert ran.exit_code == 2 and "unknown key 'lrr'" in ran.output, ran.output


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("model.upsampler={kind: lau, scale_factor: 0}", "option scale_factor: Input should be greater than or equal"),
        ("model.upsampler={kind: pixelshuffle, factors: [2, -1]}", "option factors.1: Input should be greater than or"),
        ("model.head={kind: aspp, rates: [0]}", "option rates.0: Input should be greater than or equal to 1, got 0"),
        ("data.options={train_images: -1}", "option train_images: Input should be greater than or equal to 1, got -1"),
        ("eval.factors=[]", "eval.factors: Tuple should have at least 1 item"),
        ("train.threads=5000", "train.threads: Input should be less than or equal to 1024, got 5000"),
        ("model.upsampler={kind: carafe, kernel_size: 4}", "upsampler carafe make no network for images of 96 pixels"),
        ("model.backbone={kind: resnet50, blocks: [0, 0, 0, 0]}", "make no network for images of 96 pixels"),
    ],
)
def test_values_that_no_network_can_have_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: str, message: str
) -> None:
    """By the bounds of an option, or by its part's own code on shapes alone."""
    monkeypatch.chdir(tmp_path)
    command = "plan" if "blocks" in pair else "run"
    ran = CliRunner().invoke(main, [command, "table3a/encnet-os8-bilinear", "--scale", "smoke", "--set", pair])
    assert ran.exit_code == 2 and message in ran.output and not (tmp_path / "runs").exists(), ran.output
