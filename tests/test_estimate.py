"""What a plan costs: counted work against the stages themselves, the queue played through, the probe, the budget."""

from __future__ import annotations

import json
import shlex
import statistics
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from click.testing import CliRunner
from conftest import ROW, make_record, processes, run_cli
from hypothesis import given, settings
from torch.utils.flop_counter import FlopCounterMode

from laurepro import plan, record, spec
from laurepro.cli import main
from laurepro.cost import budget, estimate, estimator, machines, probe, trial, work
from laurepro.cost.estimator import Estimator, Span
from laurepro.cost.machines import GPUS, Machine
from laurepro.cost.probe import Measured, Point, Probe
from laurepro.datasets import num_classes
from laurepro.errors import LaureproError
from laurepro.evaluation import inference
from laurepro.launchers import LaunchContext, local
from laurepro.launchers._schedule import demand
from laurepro.network import costs, model
from laurepro.network.counted import counts
from laurepro.spec import Job
from laurepro.training.schedule import learning_rates

CONTEXT = LaunchContext(Path("results"), Path("runs"), Path("data"))


def planned(*targets: str, scale: str = "paper", seeds: int = 1) -> plan.Plan:
    chosen = spec.scale(scale)
    rows = [plan.row_plan(t, r, chosen, seeds) for t, r in plan.select(targets, chosen, not targets)]
    return plan.build(rows, set(), lambda job: False)


def sheet(name: str = "h100", units: int = 1, **context: int) -> Machine:
    return Machine(GPUS[name].title, GPUS[name], units, CONTEXT._replace(**context))


def on_paper(machine: Machine, runs: Path = Path("none")) -> Estimator:
    return Estimator(machine, {}, None, runs)


def job_of(address: str, stage: str, scale: str = "paper", seed: int = 0) -> Job:
    jobs = planned(address, scale=scale, seeds=seed + 1).jobs
    return next(j for j in jobs if j.stage == stage and j.seed == seed)


# ----------------------------------------------------------------------------------------------------- counted work


def test_steps_are_those_of_the_trainer() -> None:
    for job in planned().jobs:
        if job.stage == "train":
            e = job.experiment
            count = work.image_count(e.data, e.data.train_split)
            assert count is not None
            assert work.train_steps(e) == len(learning_rates(e.train, count)), job.name


def test_images_are_those_of_the_edition() -> None:
    data = job_of("table3a/encnet-os8-bilinear", "train").experiment.data
    assert work.image_count(data, "train") == 4998
    other = data.model_copy(update={"options": {"edition": "detail"}})
    assert (work.image_count(other, "train"), work.image_count(other, "nowhere")) == (4996, None)
    assert work.image_count(data.model_copy(update={"name": "shapes"}), "train") is None


@settings(max_examples=40)
@given(
    st.integers(40, 400),
    st.integers(40, 400),
    st.integers(40, 300),
    st.integers(30, 200),
    st.booleans(),
    st.sampled_from(["slide", "whole"]),
)
def test_pixels_are_those_that_the_network_is_given(
    height: int, width: int, base: int, crop: int, multi: bool, mode: Any
) -> None:
    evaluation = spec.Eval(mode=mode, base_size=base, crop_size=crop, multi_scale=multi, factors=(0.5, 1.0, 1.25))
    seen = 0

    class Network:
        def predict(self, image: torch.Tensor, *, align_corners: bool = True) -> torch.Tensor:
            nonlocal seen
            seen += image.shape[0] * image.shape[2] * image.shape[3]
            return image[:, :1]

    list(inference.predict(Network(), [torch.zeros(3, height, width)], 1, evaluation))
    assert work.network_pixels(height, width, evaluation) == seen


@pytest.mark.parametrize("address", ["table3a/encnet-os8-bilinear", "table3a/aspp-os8-lau4x-off"])
def test_a_training_image_takes_three_forwards(address: str) -> None:
    """Against torch's own count of a forward and a backward pass; it has the auxiliary head too, some percent."""
    e = job_of(address, "train").experiment
    name = costs.network_name(e)
    one = e.train.model_copy(update={"epochs": None, "iterations": 1, "batch_size": 1})
    job = Job(stage="train", scale="paper", seed=0, experiment=e.model_copy(update={"train": one}))
    counted = work.work(job, costs.read()[name])
    assert counted is not None
    with torch.device("meta"):
        network = model.build(e.model, e.op, num_classes(e.data))
        image = torch.empty(2, 3, e.data.crop_size, e.data.crop_size)
    with FlopCounterMode(display=False) as counter:
        output = network(image)
        logits = output.logits if output.sampling is None else output.sampling.materialize()
        (logits.sum() + output.aux_logits.sum()).backward()
    assert 0.9 < counted / (counter.get_total_flops() / 2) < 1.02


# ------------------------------------------------------------------------------------------------------- data sheets


def test_every_job_of_the_paper_is_estimated_from_a_data_sheet() -> None:
    found = estimate.estimate(planned(), on_paper(sheet(units=8)))
    assert found.missing == {} and len(found.jobs) == len(planned().jobs)
    for name, cost in found.jobs.items():
        assert cost.seconds is not None and 0 < cost.seconds.low < cost.seconds.middle < cost.seconds.high, name
    assert found.device_hours.low < found.device_hours.middle < found.device_hours.high
    assert found.finish_hours.middle >= found.device_hours.middle / 8
    assert any("assumed" in note and "15-45 %" in note for note in found.notes)
    # 38 trainings of 40 to 60 million parameters: weights, and twice weights and momentum
    assert found.disk is not None and 38 * 20 * 39e6 < found.disk < 38 * 20 * 62e6


def test_seconds_follow_the_arithmetic() -> None:
    job = job_of("table3a/encnet-os8-lau4x-off", "train")
    operations = on_paper(sheet()).about(job)[2]
    assert operations is not None
    start = estimator.START_SECONDS

    def middle(machine: Machine) -> float:
        seconds = on_paper(machine).cost(job).seconds
        assert seconds is not None
        return seconds.middle - start.middle

    once = operations / (0.3 * GPUS["h100"].flops)
    assert middle(sheet()) == pytest.approx(once)
    assert middle(sheet("v100")) == pytest.approx(operations / (0.45 * GPUS["v100"].flops))
    assert middle(sheet(units=4, nproc_per_node=4)) == pytest.approx(once / 4)
    assert middle(sheet(jobs_per_gpu=2)) == pytest.approx(2 * once)
    hours = [estimate.estimate(planned(ROW), on_paper(m)).device_hours.middle for m in (sheet(), sheet(jobs_per_gpu=2))]
    assert hours[0] == pytest.approx(hours[1], rel=0.01)  # sharing makes no GPU faster


def test_what_does_not_fit_into_memory_is_said() -> None:
    rows = planned("table7/deeplabv3plus-r101-bilinear")
    one = estimate.estimate(rows, on_paper(sheet("rtx3090")))
    assert one.memory is not None and one.memory[1].middle > GPUS["rtx3090"].memory
    assert any("more than the 24 GB" in line and "--nproc-per-node" in line for line in estimate.lines(one))
    eight = estimate.estimate(rows, on_paper(sheet("rtx3090", units=8, nproc_per_node=8)))
    assert eight.memory is not None and eight.memory[1].middle < one.memory[1].middle / 4
    assert not any("more than" in line for line in estimate.lines(eight))


def test_a_network_that_does_not_fill_a_gpu_is_not_guessed() -> None:
    """Its weights and memory are known all the same, from shapes."""
    found = estimate.estimate(planned("table3a", scale="smoke"), on_paper(sheet()))
    assert len(found.jobs) == 25 and all(cost.seconds is None for cost in found.jobs.values())
    assert [(reason[:23], len(names)) for reason, names in found.missing.items()] == [("its network is so small", 25)]
    document = estimate.as_json(found)
    assert (document["device_hours"], document["finish_hours"]) == (None, None)
    assert document["disk_bytes"] > 0 and document["memory_bytes"]["middle"] > 0
    assert not any(line.startswith("cost on") for line in estimate.lines(found))


def test_the_papers_own_speeds_lie_in_the_band() -> None:
    """Table 8, on the GPU that the paper names: frames a second, each a forward pass of 512x512."""
    table, gpu = spec.tables()["table8"], GPUS["gtx1080ti"]
    counted, shares = costs.read(), []
    for row in table.rows:
        e = plan.row_plan(table, row, spec.scale("paper"), 1).experiment
        published = row.published["fps"].value
        assert e is not None and published is not None
        shares.append(published * 2 * counted[costs.network_name(e)].macs / gpu.flops)
    band = estimator.UTILISATION[gpu.arithmetic]
    assert len(shares) == 12 and band.low < min(shares) and max(shares) < band.high
    assert statistics.median(shares) == pytest.approx(band.middle, abs=0.02)
    assert (round(min(shares), 2), round(max(shares), 2)) == (0.38, 0.48)  # as the notes and docs/cost.md state
    notes = estimate.estimate(planned(ROW), on_paper(sheet("gtx1080ti"))).notes
    assert any("30-60 % are assumed" in note and "38-48 % of a GTX 1080 Ti" in note for note in notes)


# --------------------------------------------------------------------------------------------------------- the queue


def timed(jobs: list[Job], seconds: list[float]) -> list[tuple[Job, Span]]:
    return [(j, Span(s, s, s)) for j, s in zip(jobs, seconds, strict=True)]


def stub(stage: str, number: int) -> Job:
    parts = {"data": {"name": "shapes"}, "train": {"iterations": 1, "lr": 0.001 * (number + 1)}}
    return Job(stage=stage, scale="tiny", seed=0, experiment=spec.canonical(spec.Experiment.model_validate(parts)))


def test_the_queue_is_played_by_its_rules() -> None:
    pairs = [stub(stage, n) for n in range(2) for stage in ("train", "evaluate")]
    profile = stub("profile", 9)

    def end(jobs: list[Job], seconds: list[float], units: int, **context: int) -> float:
        return estimate.finish_seconds(timed(jobs, seconds), sheet(units=units, **context)).middle

    assert end(pairs, [10, 1, 4, 2], 1) == 17
    assert end(pairs, [10, 1, 4, 2], 2) == 11  # the second pair beside the first training
    assert end(pairs, [10, 1, 4, 2], 8) == 11
    assert end(pairs, [10, 1, 4, 2], 1, jobs_per_gpu=2) == 11
    assert end(pairs, [10, 1, 4, 2], 2, nproc_per_node=2) == 17
    assert end([*pairs, profile], [10, 1, 4, 2, 5], 8) == 16  # with nothing beside it
    assert end([pairs[1]], [3], 1) == 3  # its training is reused
    assert end([], [], 1) == 0


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(1, 100), st.floats(1, 100)), min_size=1, max_size=8), st.integers(1, 4))
def test_the_end_lies_between_its_bounds(lengths: list[tuple[float, float]], units: int) -> None:
    jobs = [stub(stage, n) for n in range(len(lengths)) for stage in ("train", "evaluate")]
    seconds = [s for pair in lengths for s in pair]
    end = estimate.finish_seconds(timed(jobs, seconds), sheet(units=units)).middle
    assert max(sum(seconds) / units, max(map(sum, lengths))) <= end + 1e-6
    assert end <= sum(seconds) + 1e-6
    assert end <= sum(seconds) / units + max(map(sum, lengths)) + 1e-6  # Graham's bound for list scheduling


# ------------------------------------------------------------------------------------------------ what was measured


def recorded(job: Job, seconds: float, device: str = "H", **changes: Any) -> dict[str, record.Record]:
    return {job.name: make_record(job, {}, device=device, seconds=seconds, **changes)}


def measured(records: dict[str, record.Record], runs: Path, found: Probe | None = None, **context: int) -> Estimator:
    launch = CONTEXT._replace(runs=runs, **context)
    machine = machines.machine("measured", None, launch, planned(ROW), records.values(), found)
    return Estimator(machine, records, found, runs)


def test_records_of_another_seed_tell(tmp_path: Path) -> None:
    records = recorded(job_of(ROW, "train"), 1000) | recorded(job_of(ROW, "train", seed=1), 1200)
    records |= recorded(job_of(ROW, "train", seed=2), 50, world_size=4)  # another number of processes
    cost = measured(records, tmp_path).cost(job_of(ROW, "train", seed=3))
    assert cost.basis == estimator.RECORDS and cost.seconds is not None
    assert cost.seconds.middle == 1100 + estimator.START_SECONDS.middle
    assert cost.seconds.low < 1000 and cost.seconds.high > 1200


def test_a_validated_training_is_no_record_of_a_plain_one(tmp_path: Path) -> None:
    """They have one key. What was measured of one still gives the speed of the other."""
    plain = job_of(ROW, "train")
    train = plain.experiment.train.model_copy(update={"validate_every": 100})
    watched = plain.model_copy(update={"experiment": plain.experiment.model_copy(update={"train": train})})
    assert watched.key == plain.key
    found = measured(recorded(watched, 10_000), tmp_path)
    assert found.cost(watched.model_copy(update={"seed": 1})).basis == estimator.RECORDS
    cost = found.cost(job_of(ROW, "train", seed=1))
    works = [found.about(job)[2] for job in (plain, watched)]
    assert cost.basis == estimator.SPEED and cost.seconds is not None and works[0] is not None and works[1] is not None
    assert cost.seconds.middle == pytest.approx((10_000 + estimator.START_SECONDS.middle) * works[0] / works[1])
    assert works[0] < works[1]


def test_a_restarted_training_took_what_its_own_clock_says(tmp_path: Path) -> None:
    job = job_of(ROW, "train")
    folder = record.run_folder(tmp_path, job)
    folder.mkdir()
    (folder / "progress.json").write_text(json.dumps({"step": 9, "steps": 9, "seconds": 4000.0}))
    cost = measured(recorded(job, 30), tmp_path).cost(job_of(ROW, "train", seed=1))
    assert cost.seconds is not None and cost.seconds.middle > 4000


def test_a_job_of_several_legs_took_all_of_them_where_they_are_alike(tmp_path: Path) -> None:
    """Interrupted and resumed; a leg on another device, or by more processes, makes it no measure of this one."""
    job = job_of(ROW, "train")
    (base,) = recorded(job, 4000).values()
    first = record.Leg(environment=base.environment, world_size=1, seconds=3990, started=base.started, step=9)
    other = first.environment.model_copy(update={"device": "X"})
    asked = job_of(ROW, "train", seed=1)
    for leg, basis in (
        (first, estimator.RECORDS),
        (first.model_copy(update={"environment": other}), None),
        (first.model_copy(update={"world_size": 2}), None),
    ):
        last = first.model_copy(update={"seconds": 10.0})
        found = recorded(job, 4000, legs=(leg, last)) | recorded(job_of(ROW, "evaluate"), 1)
        cost = measured(found, tmp_path).cost(asked)
        assert (cost.basis == basis) if basis else cost.seconds is None
        if basis:
            assert cost.seconds is not None and cost.seconds.middle == 4000 + estimator.START_SECONDS.middle


def test_the_speed_of_other_experiments_tells(tmp_path: Path) -> None:
    trained = job_of("table3a/encnet-os8-bilinear", "train")
    asked = job_of("table3a/encnet-os32-bilinear", "train")
    found = measured(recorded(trained, 10_000), tmp_path)
    works = [found.about(job)[2] for job in (trained, asked)]
    assert works[0] is not None and works[1] is not None and works[1] < works[0]
    cost = found.cost(asked)
    assert cost.basis == estimator.SPEED and cost.seconds is not None
    whole = (10_000 + estimator.START_SECONDS.middle) * works[1] / works[0]
    assert cost.seconds.middle == pytest.approx(whole)
    assert cost.seconds.high / cost.seconds.middle == pytest.approx(estimator.FEW)
    evaluate = found.cost(job_of("table3a/encnet-os32-bilinear", "evaluate"))
    assert evaluate.seconds is None and evaluate.basis == "no evaluation like it was measured on H"


def test_a_training_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    job = job_of(ROW, "train")
    folder = record.run_folder(tmp_path, job)
    folder.mkdir()
    whole = on_paper(sheet(), tmp_path).cost(job).seconds
    (folder / "progress.json").write_text(json.dumps({"step": 80, "steps": 100}))
    (folder / "checkpoint-00000050.ckpt").touch()
    (folder / "checkpoint-00000075.ckpt").touch()
    rest = on_paper(sheet(), tmp_path).cost(job).seconds
    assert whole is not None and rest is not None and rest.middle == pytest.approx(whole.middle / 4)


def a_probe(job: Job, **changes: Any) -> Probe:
    entry = Measured(job=job.name, stage=job.stage, seconds=(90, 100, 120), steps=10, measured_steps=5, disk_bytes=7)
    fields: dict[str, Any] = {
        "device": "H", "units": 1, "jobs_per_gpu": 1, "nproc_per_node": 1, "commit": "abc", "dirty": False,
        "time": "now", "jobs": {probe.kind(job): entry},
    }  # fmt: skip
    return Probe(**{**fields, **changes})


def test_the_probe_tells_of_every_seed_under_its_conditions(tmp_path: Path) -> None:
    found = a_probe(job_of(ROW, "train"))
    cost = measured({}, tmp_path, found).cost(job_of(ROW, "train", seed=4))
    assert (cost.basis, cost.seconds, cost.disk) == (estimator.PROBE, Span(90, 100, 120), 7)
    other = measured({}, tmp_path, found, jobs_per_gpu=2)
    assert other.unused is not None and "--jobs-per-gpu 1, not 2" in other.unused
    assert other.cost(job_of(ROW, "train")).seconds is None
    # a data sheet does not listen to it
    named = machines.machine("t4", 1, CONTEXT, planned(ROW), [], found)
    assert Estimator(named, {}, found, tmp_path).cost(job_of(ROW, "train")).basis == estimator.SHEET


def test_a_probe_of_other_or_changed_code_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dirty tree can have changed since, under the same commit."""

    def notes(probed: tuple[str, bool], now: tuple[str, bool]) -> list[str]:
        monkeypatch.setattr(record, "provenance", lambda: now)
        found = a_probe(job_of(ROW, "train"), commit=probed[0], dirty=probed[1])
        cost = estimate.estimate(planned(ROW), measured({}, tmp_path, found), found)
        return [note for note in cost.notes if "other code" in note]

    assert notes(("abc", False), ("abc", False)) == []
    assert "commit abc" in notes(("abc", False), ("def", False))[0]
    assert "commit abc, with changes" in notes(("abc", True), ("abc", True))[0]
    assert "commit abc" in notes(("abc", False), ("abc", True))[0]


def test_probes_of_the_same_code_complete_each_other(tmp_path: Path) -> None:
    first, second = a_probe(job_of(ROW, "train")), a_probe(job_of(ROW, "evaluate"))
    probe.write(tmp_path, first)
    assert set(probe.write(tmp_path, second).jobs) == {*first.jobs, *second.jobs}
    assert set(probe.write(tmp_path, second.model_copy(update={"commit": "def"})).jobs) == set(second.jobs)
    (tmp_path / probe.FILE).write_text('{"device": 1}')
    with pytest.raises(LaureproError, match=r"probe\.json: device"):
        probe.read(tmp_path)
    assert probe.write(tmp_path, first) == first == probe.read(tmp_path)


@given(
    rate=st.floats(0.01, 10), start=st.floats(0, 100), steps=st.integers(10, 10_000), seen=st.integers(7, 9),
    warm=st.floats(1, 1.3),
)  # fmt: skip
def test_a_steady_speed_is_extrapolated_exactly(rate: float, start: float, steps: int, seen: int, warm: float) -> None:
    """The first step is slow; what it takes longer is in the start."""
    slow = start + warm * rate
    points = [Point(n, 1e6 + slow + (n - 1) * rate) for n in range(1, seen + 1)]
    elapsed = points[-1].time - 1e6
    low, middle, high = probe.extrapolate(points, seen, elapsed, steps)
    assert middle == pytest.approx(slow + (steps - 1) * rate, rel=1e-6, abs=1e-6)
    assert elapsed <= low <= middle <= high
    assert high == pytest.approx(middle * (1 + probe.MARGIN), rel=1e-3)


def test_an_unsteady_speed_widens_the_band() -> None:
    times = [0, 1, 2, 5, 6, 11, 12, 13]
    steady = probe.extrapolate([Point(n, n) for n in range(8)], 7, 7, 1000)
    unsteady = probe.extrapolate([Point(n, t) for n, t in enumerate(times)], 7, 13, 1000)
    assert unsteady[2] / unsteady[1] > 1.2 * steady[2] / steady[1]


def test_what_nothing_else_tells_of_is_measured_first() -> None:
    jobs = planned("table3a").jobs
    counted = {j.name: None if "deformable" in j.name or "encnet" in j.name else 1.0 for j in jobs}
    trials = trial.varied(trial.Trial(j, counted[j.name]) for j in jobs)
    order = [t.job.name for t in trials]
    flags = [t.counted for t in trials]
    assert flags == sorted(flags) and True in flags and False in flags
    for one in trials:
        assert one.job.needs is None or order.index(one.job.needs.name) < order.index(one.job.name)
    alike = trial.varied(trial.Trial(j, 1.0) for j in jobs)
    first = {(t.job.experiment.model.head.kind, t.job.experiment.model.output_stride) for t in alike[:6]}
    assert first == {("encnet", 8), ("encnet", 32), ("aspp", 8)}


SHORT = ("--scale", "tiny", "--probe", "--probe-seconds", "4", "--format", "json")


@pytest.mark.acceptance
def test_the_probe_runs_and_stops_real_jobs(tiny: Path, tmp_path: Path) -> None:
    """A training that would take hours and its evaluation, by the worker; nothing of them is left."""
    long = ("--set", "train.iterations=200000")
    ran = run_cli("plan", ROW, *SHORT, *long, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0, ran.err
    assert [f.name for f in (tmp_path / "runs").iterdir()] == ["probe.json"]
    assert not (tmp_path / "results").exists() and processes("laurepro.worker", str(tmp_path)) == []
    found = probe.read(tmp_path / "runs")
    assert found is not None and found.device == "cpu" and found.missing == {}
    train, evaluate = sorted(found.jobs.values(), key=lambda m: m.stage != "train")
    assert train.steps == 200_000 and 2 <= train.measured_steps < 20_000
    assert train.seconds[0] < train.seconds[1] < train.seconds[2]
    assert train.seconds[1] > 20 * evaluate.seconds[1] and (evaluate.steps, evaluate.measured_steps) == (8, 8)
    assert train.disk_bytes is not None and train.disk_bytes > 10_000
    document = json.loads(ran.out)["estimate"]
    assert document["device"] == "cpu" and document["not_estimated"] == {}
    assert {j["basis"] for j in document["jobs"].values()} == {"probe"}
    # another seed, later, without measuring again
    again = run_cli("plan", ROW, "--scale", "tiny", "--seeds", 2, *long, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert "core-hours" in again.out and "probe (4 jobs)" in again.out
    other = run_cli("plan", ROW, "--scale", "tiny", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert "not estimated" in other.out and "cost on" not in other.out


def test_a_probe_that_cannot_run_says_why(tiny: Path, tmp_path: Path) -> None:
    few = ("--set", "data.options.train_images=2")
    ran = run_cli("plan", ROW, *SHORT, *few, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 2 and "2 training images" in ran.err and "Traceback" not in ran.err
    assert list((tmp_path / "runs").iterdir()) == []


FAKE_SMI = """\
#!/bin/sh
case "$*" in
  -L) echo 'GPU 0: Fast'; echo 'GPU 1: Fast';;
  *name*) echo Fast; echo Fast;;
  *memory*) echo 1234;;
esac
"""


def test_this_machines_gpus_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machines.local_device() == "cpu" if not local.gpus() else True
    smi = tmp_path / "nvidia-smi"
    smi.write_text(FAKE_SMI)
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machines.local_device() == "Fast"
    records = recorded(job_of(ROW, "train"), 1) | recorded(job_of(ROW, "train", seed=1), 1)
    records |= recorded(job_of(ROW, "evaluate"), 1, device="Fast")
    here = machines.machine(None, None, CONTEXT, planned(ROW), records.values(), None)
    assert (here.device, here.units) == ("Fast", 2)  # this machine's own, although another has more records
    queue = trial.Queue([], CONTEXT, tmp_path, 4)
    task = trial.Trial(job_of(ROW, "train"), None, seats=(1,))
    task.process = local.Process(["true"])
    assert queue.units == 2 and queue._memory(task) == 1234 * 2**20
    task.process.wait()


def test_a_job_with_more_threads_takes_more_seats_and_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pretraining of scale smoke: two threads, where the others have one."""
    monkeypatch.setattr(local, "gpus", list)
    monkeypatch.setattr(machines, "cores", lambda: 2)
    queue = trial.Queue([], CONTEXT, tmp_path, 2)
    job = job_of(ROW, "train", scale="smoke")
    assert job.starts_from is not None
    assert [demand(j, CONTEXT, 2, 2).seats for j in (job, job.starts_from)] == [1, 2]
    machine = Machine("cpu", None, 2, CONTEXT)
    assert [estimator._together(j, machine) for j in (job, job.starts_from)] == [2, 1]
    task = trial.Trial(job.starts_from, None, seats=(0, 1))
    task.process = local.Process(["sleep", "5"])
    assert (queue._memory(task) or 0) > 0
    task.process.kill()
    task.process.wait()


# --------------------------------------------------------------------------------------------- plug-in networks

PLAIN = "table3a/encnet-os8-bilinear"
PLUGIN = """\
from torch import Tensor, nn
import torch.nn.functional as F


class Upsampler(nn.Module):
    def __init__(self, channels: int, feature_channels: int, *, width: int = 64, broken: bool = False) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(feature_channels, width, 3, padding=1), nn.Conv2d(width, channels, 3, padding=1)
        )
        self.broken = broken

    def forward(self, input: Tensor, feature: Tensor) -> Tensor:
        out = input + self.convolutions(feature)
        if self.broken and out.sum().item() > 0:  # not possible on shapes alone
            return out
        return F.interpolate(out, scale_factor=2)
"""


def with_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Records of PLAIN at scale tiny, and an upsampler `wide` in a plug-in folder."""
    folder = tmp_path / "plugins" / "upsamplers"
    folder.mkdir(parents=True)
    (folder / "wide.py").write_text(PLUGIN)
    monkeypatch.setenv("LAUREPRO_PLUGINS", str(tmp_path / "plugins"))
    for stage, seconds in (("train", 100.0), ("evaluate", 10.0)):
        job = job_of(PLAIN, stage, "tiny")
        record.write(tmp_path / "results", make_record(job, {}, seconds=seconds))
    return {"cwd": tmp_path, "LAUREPRO_PLUGINS": tmp_path / "plugins"}


def test_a_plugin_is_estimated_from_shapes_where_like_jobs_were_measured(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(tiny))
    where = with_plugin(tmp_path, monkeypatch)
    command = ("plan", PLAIN, "--scale", "tiny", "--format", "json", "--set", "model.upsampler.kind=wide")
    ran = run_cli(*command, **where, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)["estimate"]
    assert found["not_estimated"] == {} and found["disk_bytes"] > 0 and found["memory_bytes"] is not None
    seconds = {name.split("-")[0]: job["seconds"]["middle"] for name, job in found["jobs"].items()}
    assert {job["basis"] for job in found["jobs"].values()} == {"measured speed"} and set(seconds) == {
        "train",
        "evaluate",
    }
    # As much longer than the measured ones as the network has more arithmetic.
    e = job_of(PLAIN, "train", "tiny").experiment
    wide = e.model.model_copy(update={"upsampler": spec.Part(kind="wide")})
    macs = [counts(m, e.op, 8, e.profile.height, e.profile.width).macs for m in (e.model, wide)]
    assert macs[1] > 1.05 * macs[0]
    for stage, measured in (("train", 100.0), ("evaluate", 10.0)):
        expected = (measured + estimator.START_SECONDS.middle) * macs[1] / macs[0]
        assert seconds[stage] == pytest.approx(expected, rel=1e-6)


def test_what_is_not_estimated_makes_the_headline_a_lower_bound(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plug-in that cannot be counted, beside its speed measurement, which has a time budget."""
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(tiny))
    with_plugin(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    known = CliRunner().invoke(main, ["plan", PLAIN, "--scale", "tiny", "--seeds", "2"]).output
    assert "core-hours, done after" in known and "at least" not in known
    broken = ["--set", "model.upsampler.kind=wide", "--set", "model.upsampler.broken=true"]
    ran = CliRunner().invoke(main, ["plan", "table1/encnet-os8-bilinear", "--scale", "tiny", *broken])
    assert ran.exit_code == 0, ran.output
    assert "not estimated: train-" in ran.output and "its network cannot be counted from shapes: " in ran.output
    (headline,) = (line for line in ran.output.splitlines() if line.startswith("cost on"))
    assert ": at least " in headline and "done after at least " in headline


def test_nothing_is_counted_where_nothing_like_it_was_measured(tmp_path: Path) -> None:
    """The everyday plan imports no torch."""
    for scale in ("smoke", "paper"):
        ran = run_cli("plan", "table3a", "--scale", scale, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
        assert ran.code == 0 and "not estimated" in ran.out and " torch\n" not in ran.err


# -------------------------------------------------------------------------------------------------------- the budget


def chosen(hours: float, scale: str = "paper", records: Any = None, **options: Any) -> budget.Choice:
    return budget.choose(spec.scale(scale), records or {}, lambda job: False, on_paper(sheet()), hours, **options)


def test_a_budget_is_kept_and_what_it_names_is_what_runs() -> None:
    on_h100 = on_paper(sheet())
    counts = []
    for hours in (0.01, 3.0, 30.0, 1e6):
        choice = chosen(hours)
        assert choice.hours <= hours
        counts.append(len(choice.claims))
        jobs: dict[str, Job] = {}
        for line in choice.commands(spec.scale("paper"), ()):
            words = shlex.split(line)
            assert words[:2] == ["laurepro", "run"] and words[-4:-1] == ["--scale", "paper", "--seeds"]
            jobs |= {j.name: j for j in planned(*words[2:-4], seeds=int(words[-1])).jobs}
        assert set(choice.jobs) == set(jobs)
        total = 0.0
        for job in jobs.values():
            seconds = on_h100.cost(job).seconds
            assert seconds is not None
            total += estimate.device_hours(job, seconds, on_h100.machine).middle
        assert total == pytest.approx(choice.hours)
        if hours < 1e6:
            assert choice.cheapest is not None
    assert counts == sorted(counts) and counts[0] < counts[1] < counts[-1]
    assert chosen(1e6).cheapest is None
    assert min(chosen(1e6).seeds.values()) == 1 and max(chosen(1e6).seeds.values()) == 3


def test_no_claim_is_paid_for_with_one_seed() -> None:
    choice = chosen(1e6, seeds=1, within=["table1/encnet-os8-bilinear", "table1/encnet-os8-lau4x-off"])
    assert set(choice.claims) >= {"C2.4x-over-bilinear", "C3.gain"}
    assert choice.seeds == {"table1/encnet-os8-bilinear": 2, "table1/encnet-os8-lau4x-off": 2}


def test_a_seed_that_diverged_is_not_paid_for() -> None:
    """`run` leaves it out, and so does the budget."""
    lost = job_of("table1/encnet-os8-lau4x-off", "train", "paper", 1)
    rows = ["table1/encnet-os8-bilinear", "table1/encnet-os8-lau4x-off"]
    before, after = chosen(1e6, within=rows), chosen(1e6, within=rows, diverged={lost.name})
    assert after.claims == before.claims and after.hours < before.hours
    gone = set(before.jobs) - set(after.jobs)
    assert gone == {lost.name, job_of("table1/encnet-os8-lau4x-off", "evaluate", "paper", 1).name}


def test_shared_jobs_are_paid_once() -> None:
    """Where one order is the worse, the other is taken."""

    def of(*claims: tuple[str, dict[str, float]]) -> list[budget.Candidate]:
        return [budget.Candidate(name, (), 2, hours) for name, hours in claims]

    shared = of(*((f"s{n}", {"common": 6.0, f"own{n}": 1.0}) for n in range(4)), ("a", {"x": 5.0}), ("b", {"y": 5.0}))
    by_own, by_share = budget._greedy(shared, 10, False), budget._greedy(shared, 10, True)
    assert (len(by_own[0]), len(by_share[0])) == (2, 4) and by_share[1] == 10.0
    assert budget._greedy(shared, 4.9, True) == ([], 0.0)


def test_an_open_claim_takes_the_seeds_that_its_verdict_asks_for(experiments: Path) -> None:
    """Two seeds are there, with a noisy difference: more of them are planned, and a decided claim is not."""
    scale = spec.scale("camvid")
    rows = ("table1/encnet-os8-bilinear", "table1/encnet-os8-lau4x-off")
    records: dict[str, record.Record] = {}
    for seed, (low, high) in enumerate([(50.0, 50.5), (50.0, 52.5), (50.0, 51.0)]):
        for address, value in zip(rows, (low, high), strict=True):
            job = job_of(address, "evaluate", "camvid", seed)
            records[job.name] = make_record(job, {"miou": value})
            train = job_of(address, "train", "camvid", seed)
            records[train.name] = make_record(train, {})
            profile = next(j for j in planned(address, scale="camvid").jobs if j.stage == "profile")
            records[profile.name] = make_record(profile, {})
    on_cpu = Estimator(Machine("cpu", None, 2, CONTEXT), records, None, Path("none"))
    found, _ = budget.candidates(scale, records, lambda job: True, on_cpu, 3, None, rows)
    claim = next(c for c in found if c.claim == "C2.4x-over-bilinear")
    assert claim.seeds > 3 and all(f"-s{n}-" not in name for name in claim.hours for n in range(3))


# ------------------------------------------------------------------------------------------------------ command line


def test_the_command_line_tells_the_cost(tmp_path: Path) -> None:
    ran = run_cli("plan", "table3a", "--gpu", "h100", "--gpus", 8, "--format", "json", cwd=tmp_path)
    document = json.loads(ran.out)
    cost = document["estimate"]
    assert set(cost["jobs"]) == {j["name"] for j in document["jobs"]}
    assert cost["unit"] == "GPU-hours" and cost["units"] == 8 and "data sheet" in cost["data_sheet"]["source"]
    assert cost["device_hours"]["low"] < cost["device_hours"]["middle"] < cost["device_hours"]["high"]
    lines = run_cli("plan", "table3a", "--gpu", "h100", "--gpus", 8, cwd=tmp_path).out.splitlines()
    assert len(lines) <= len(document["jobs"]) + 7
    assert any(line.startswith("cost on 8 x NVIDIA H100 SXM") and "GPU-hours, done after" in line for line in lines)
    bare = run_cli("plan", "table3a", cwd=tmp_path).out
    assert "cost on" not in bare and "disk" in bare and "--gpu NAME" in bare
    within = run_cli("plan", "--gpu", "h200", "--budget", 40, cwd=tmp_path).out
    assert "of 40 GPU-hours" in within and "laurepro run " in within.splitlines()[-2]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--gpu", "h10"], ["'h10'", "h100"]),
        (["--gpu", "measured"], ["no records", "--probe"]),
        (["--gpu", "h100", "--gpus", "2", "--nproc-per-node", "4"], ["--nproc-per-node 4", "2 GPU"]),
        (["--gpu", "h100", "--probe"], ["data sheet"]),
        (["--budget", "3"], ["--gpu"]),
        (["--probe"], ["data set pascal_context"]),
    ],
)
def test_mistakes_are_said(args: list[str], said: list[str], tmp_path: Path) -> None:
    ran = run_cli("plan", "table3a", *args, cwd=tmp_path)
    assert ran.code == 2 and "Traceback" not in ran.err
    assert [words for words in said if words not in ran.err] == []
    assert list(tmp_path.iterdir()) == []
