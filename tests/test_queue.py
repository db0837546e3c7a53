"""The local launcher's queue, with stub processes on a machine of pretended GPUs."""

from __future__ import annotations

import random
import subprocess
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from laurepro import failures, spec
from laurepro.errors import LaureproError
from laurepro.launchers import LaunchContext, TimeIsUp, local
from laurepro.launchers._schedule import Demand, Seats, starts
from laurepro.plan import Plan
from laurepro.spec import Job


def make_job(stage: str, number: int, threads: int | None = None) -> Job:
    """Jobs of the same number belong together: the evaluation needs the training."""
    parts = {"data": {"name": "shapes"}, "train": {"iterations": 1, "lr": 0.001 * (number + 1), "threads": threads}}
    return Job(stage=stage, scale="tiny", seed=0, experiment=spec.canonical(spec.Experiment.model_validate(parts)))


def make_plan(*jobs: Job) -> Plan:
    return Plan((), jobs, (), {})


class Span(NamedTuple):
    """When a stub ran, and where."""

    job: Job
    devices: tuple[str, ...]
    started: float
    ended: float


class Stub(subprocess.Popen[bytes]):
    """A process that knows when it was first seen to have ended: from then on its place is free."""

    ended: float | None = None

    def poll(self) -> int | None:
        code = super().poll()
        if code is not None and self.ended is None:
            self.ended = time.monotonic()
        return code


class Stubs:
    """`start` of the queue: `sleep` in place of a worker, with an exit code for each attempt."""

    def __init__(self, seconds: float = 0.05, codes: dict[str, list[int]] | None = None) -> None:
        self.seconds, self.codes = seconds, codes or {}
        self.started: list[tuple[Job, tuple[str, ...], LaunchContext]] = []
        self._stubs: list[tuple[Stub, float]] = []

    def __call__(self, job: Job, context: LaunchContext, devices: tuple[str, ...]) -> subprocess.Popen[bytes]:
        (context.runs / job.name).mkdir(parents=True, exist_ok=True)
        script = (
            f"echo working >> '{context.runs / job.name}/log.txt'; trap 'exit 143' TERM; sleep {self.seconds} & wait"
        )
        left = self.codes.get(job.name, [])
        if left:
            script += f"; exit {left.pop(0)}"
        began = time.monotonic()
        stub = Stub(["sh", "-c", script], start_new_session=True)
        self.started.append((job, devices, context))
        self._stubs.append((stub, began))
        return stub

    @property
    def spans(self) -> list[Span]:
        """When each ran; the queue has ended."""
        for stub, _ in self._stubs:
            assert stub.poll() is not None
        return [
            Span(job, devices, began, stub.ended or began)
            for (job, devices, _), (stub, began) in zip(self.started, self._stubs, strict=True)
        ]

    def names(self) -> list[str]:
        return [job.name for job, _, _ in self.started]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with eight GPUs, which is asked quickly."""
    monkeypatch.setattr(local, "torch_gpus", lambda: 8)
    monkeypatch.setattr(local, "gpus", lambda: [f"g{i}" for i in range(8)])
    monkeypatch.setattr(local, "POLL_SECONDS", 0.01)
    return monkeypatch


def context(tmp_path: Path, **options: object) -> LaunchContext:
    return LaunchContext(tmp_path / "results", tmp_path / "runs", tmp_path / "data")._replace(**options)  # type: ignore[arg-type]


def overlap(spans: list[Span]) -> dict[str, int]:
    """The most jobs that a device had at one time."""
    most: dict[str, int] = defaultdict(int)
    for span in spans:
        for device in span.devices:
            beside = [s for s in spans if device in s.devices and s.started <= span.started < s.ended]
            most[device] = max(most[device], len(beside))
    return most


def test_every_gpu_is_used_and_none_twice(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start = Stubs(0.3)
    jobs = [make_job("train", n) for n in range(16)]
    assert local.launch(make_plan(*jobs), context(tmp_path), start) == []
    assert start.names() == [job.name for job in jobs]
    assert {d for _, d, _ in start.started[:8]} == {(f"g{i}",) for i in range(8)}
    assert set(overlap(start.spans).values()) == {1}


def test_jobs_per_gpu_fills_the_emptiest_first(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setattr(local, "gpus", lambda: ["0", "1"])
    start = Stubs(0.3)
    local.launch(make_plan(*(make_job("train", n) for n in range(7))), context(tmp_path, jobs_per_gpu=3), start)
    assert [d for _, d, _ in start.started[:6]] == [("0",), ("1",)] * 3
    assert overlap(start.spans) == {"0": 3, "1": 3}


def test_the_processes_of_a_job_have_a_gpu_each(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start = Stubs(0.1)
    jobs = [make_job("train", n) for n in range(6)]
    local.launch(make_plan(*jobs), context(tmp_path, nproc_per_node=3, jobs_per_gpu=2), start)
    assert all(len(set(devices)) == 3 for _, devices, _ in start.started)
    assert max(overlap(start.spans).values()) <= 2


def test_more_processes_than_gpus_is_said_before_anything_starts(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start = Stubs()
    with pytest.raises(LaureproError, match="--nproc-per-node 9: this machine has 8"):
        local.launch(make_plan(make_job("train", 0)), context(tmp_path, nproc_per_node=9), start)
    assert start.started == []


@pytest.mark.parametrize(("threads", "at_once"), [(1, 4), (2, 2), (None, 1)])
def test_cores_are_shared_by_the_threads_of_the_jobs(
    machine: pytest.MonkeyPatch, tmp_path: Path, threads: int | None, at_once: int
) -> None:
    machine.setattr(local, "gpus", list)
    machine.setattr(local, "cores", lambda: 4)
    start = Stubs(0.2)
    local.launch(make_plan(*(make_job("train", n, threads) for n in range(8))), context(tmp_path), start)
    assert {d for _, d, _ in start.started} == {()}
    beside = [sum(s.started <= span.started < s.ended for s in start.spans) for span in start.spans]
    assert max(beside) == at_once


def test_a_job_with_more_threads_takes_as_many_seats(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Scale smoke: a pretraining with two threads beside, or before, trainings with one."""
    machine.setattr(local, "gpus", list)
    machine.setattr(local, "cores", lambda: 2)
    start = Stubs(0.2)
    wide = make_job("train", 0, 2)
    local.launch(make_plan(wide, *(make_job("train", n, 1) for n in range(1, 5))), context(tmp_path), start)
    for span in start.spans:
        beside = {s.job.name for s in start.spans if s.started < span.ended and span.started < s.ended} - {
            span.job.name
        }
        assert span.job.name != wide.name or not beside
    assert max(sum(s.started <= span.started < s.ended for s in start.spans) for span in start.spans) == 2
    machine.setattr(local, "cores", lambda: 1)  # as many as there are
    local.launch(make_plan(wide), context(tmp_path), start)
    assert len(start.spans) == 6


def test_nothing_starts_before_what_it_needs(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start = Stubs(0.05)
    jobs = [make_job(stage, n) for n in range(10) for stage in ("train", "evaluate")]
    local.launch(make_plan(*jobs), context(tmp_path), start)
    spans = {span.job.name: span for span in start.spans}
    for job in jobs:
        if job.needs:
            assert spans[job.needs.name].ended <= spans[job.name].started


def test_a_profile_runs_with_nothing_beside_it(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    start = Stubs(0.05)
    jobs = [make_job("train", 0), make_job("profile", 1), make_job("train", 2), make_job("profile", 3)]
    local.launch(make_plan(*jobs), context(tmp_path, jobs_per_gpu=2), start)
    spans = start.spans
    assert len(spans) == 4
    for span in spans:
        beside = [s for s in spans if s is not span and s.started < span.ended and span.started < s.ended]
        assert span.job.stage == "train" or not beside


def test_a_failed_job_is_tried_again_as_told_and_no_more(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weak, lost, fine = (make_job("train", n) for n in range(3))
    start = Stubs(codes={weak.name: [1, 0], lost.name: [1, 9, 1, 0]})
    plan = make_plan(weak, lost, fine, make_job("evaluate", 1))
    (failure, skipped) = local.launch(plan, context(tmp_path, retries=2, fresh=frozenset({weak.name})), start)
    assert Counter(start.names()) == {weak.name: 2, lost.name: 3, fine.name: 1}
    assert failure == failures.Failure(lost.name, 1, "ended with exit code 1", None, ("working",))
    assert skipped.job == make_job("evaluate", 1).name and skipped.reason == f"not started: {lost.name} failed"
    fresh = [c.fresh for j, _, c in start.started if j == weak]
    assert fresh == [{weak.name}, set()]  # --force starts over once; what follows resumes
    left = failures.read(tmp_path / "runs" / lost.name / "failure.json")
    assert left is not None and left.reason == failure.reason


@pytest.mark.parametrize(("code", "advice"), [(2, "fix what"), (3, "only --force trains it again")])
def test_bad_input_and_divergence_are_not_tried_again(
    code: int, advice: str, machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = make_job("train", 0)
    start = Stubs(codes={job.name: [code, 0]})
    (failure,) = local.launch(make_plan(job), context(tmp_path, retries=5), start)
    assert failure.code == code and advice in failure.advice and len(start.started) == 1


def test_a_job_that_another_laurepro_runs_is_waited_for(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setattr(local, "BUSY_SECONDS", 0.2)
    job, other = make_job("train", 0), make_job("train", 1)
    start = Stubs(codes={job.name: [failures.BUSY, failures.BUSY, 0]})
    assert local.launch(make_plan(job, other), context(tmp_path, retries=0), start) == []
    assert Counter(start.names()) == {job.name: 3, other.name: 1}


def test_the_time_limit_stops_what_runs_and_says_what_was_done(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine.setattr(local, "gpus", lambda: ["0"])
    quick, slow = make_job("train", 0), make_job("train", 1)

    class OneSlow(Stubs):
        def __call__(self, job: Job, context: LaunchContext, devices: tuple[str, ...]) -> subprocess.Popen[bytes]:
            self.seconds = 30 if job == slow else 0.05
            return super().__call__(job, context, devices)

    start = OneSlow()
    with pytest.raises(TimeIsUp, match="1 of 2 jobs done") as up:
        local.launch(make_plan(quick, slow), context(tmp_path, time_limit=1.0), start)
    assert (up.value.done, up.value.total, up.value.failures) == (1, 2, [])
    (span,) = (s for s in start.spans if s.job == slow)
    assert span.ended - span.started < 20 and not (tmp_path / "runs" / slow.name / "failure.json").exists()


def busy_share(jobs: int, seconds: float, tmp_path: Path) -> float:
    """The longest time that a GPU was idle while a job that could run waited."""
    rng = random.Random(0)
    plan = make_plan(*(make_job(stage, n) for n in range(jobs // 2) for stage in ("train", "evaluate")))

    class Uneven(Stubs):
        def __call__(self, job: Job, context: LaunchContext, devices: tuple[str, ...]) -> subprocess.Popen[bytes]:
            self.seconds = rng.uniform(0.2, 1.8) * seconds
            return super().__call__(job, context, devices)

    start = Uneven()
    assert local.launch(plan, context(tmp_path), start) == []
    assert Counter(start.names()) == {job.name: 1 for job in plan.jobs}
    ends = {span.job.name: span.ended for span in start.spans}
    waits = []
    for span in start.spans:
        could = max([ends[span.job.needs.name]] if span.job.needs else [min(s.started for s in start.spans)])
        for device in {f"g{i}" for i in range(8)}:
            before = [s.ended for s in start.spans if s.devices == (device,) and s.started < span.started]
            now = [s for s in start.spans if s.devices == (device,) and s.started < span.started <= s.ended]
            if not now:
                waits.append(span.started - max([could, *before]))
    return max(waits, default=0.0)


def test_no_gpu_idles_while_something_could_run(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert busy_share(60, 0.3, tmp_path) < 2.0


@pytest.mark.acceptance
def test_two_hundred_jobs_on_eight_gpus(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert busy_share(200, 2.0, tmp_path) < 2.0


# ------------------------------------------------------------------------------------------------ diagnosis

SUMMARY = """\
Failures:
[1]:
  time      : 2026-01-01_00:00:00
  host      : here
  rank      : {0} (local_rank: {0})
  exitcode  : {1} (pid: 10){2}
  error_file: <N/A>
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : here
  rank      : {3} (local_rank: {3})
  exitcode  : {4} (pid: 11){5}
  error_file: <N/A>
"""


@pytest.mark.parametrize(
    ("ranks", "said", "expected"),
    [
        ((1, -9, "  (SIGKILL)", 0, 1, " "), {0: "Connection closed by peer"}, (-9, "killed by signal 9", 1)),
        ((0, 1, " ", 1, -9, "  (SIGKILL)"), {0: "Connection closed by peer"}, (-9, "killed by signal 9", 1)),
        ((0, -15, "  (SIGTERM)", 1, 1, " "), {1: "ValueError: x"}, (1, "ValueError: x", 1)),
        ((0, 1, " ", 1, 1, " "), {0: "later", 1: "first"}, (1, "first", 1)),
        ((0, 75, " ", 1, 75, " "), {}, (75, "ended with exit code 75", 0)),
    ],
)
def test_the_rank_that_failed_first_is_the_reason(
    tmp_path: Path, ranks: tuple[object, ...], said: dict[int, str], expected: tuple[int, str, int]
) -> None:
    for rank, reason in said.items():
        left = failures.FailureNote(reason=reason, rank=rank, last_lines=("a", "b"), time=100.0 - rank)
        failures.write(tmp_path, left, "failure.json" if rank == 0 else f"failure-rank{rank}.json")
    log = SUMMARY.format(*ranks)
    found = failures.diagnose("job", tmp_path, 1, log)
    assert (found.code, found.reason, found.rank) == expected
    assert failures.first_code(1, log) == expected[0]
    left_now = failures.read(tmp_path / "failure.json")
    assert left_now is not None and left_now.reason == expected[1]


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path) -> None:
    """A gigabyte of it, sparse: the summary is at its end, and what is older than the attempt is not read."""
    log = tmp_path / "log.txt"
    with open(log, "wb") as stream:
        stream.truncate(2**30)
        stream.seek(0, 2)
        stream.write(SUMMARY.format(1, -9, " ", 0, 1, " ").encode())
    text = failures.text_from(log, 5)
    assert len(text) <= failures.LOG_BYTES and failures.first_code(1, text) == -9
    assert failures.text_from(log, log.stat().st_size - 3) == text[-3:] and failures.text_from(tmp_path / "none") == ""
    assert failures.text_from(log, log.stat().st_size + 9) == ""


def test_nothing_is_chosen_while_nothing_changes(tmp_path: Path, machine: pytest.MonkeyPatch) -> None:
    """Choosing among hundreds of waiting jobs at each look would keep a core busy."""
    chosen: list[int] = []

    def counted(waiting: list[Demand], *rest: Any) -> dict[str, Seats]:
        chosen.append(len(waiting))
        return starts(waiting, *rest)

    machine.setattr(local, "starts", counted)
    machine.setattr(local, "gpus", lambda: ["g0"])
    stubs = Stubs(seconds=0.3)
    jobs = [make_job("profile", number) for number in range(2)]
    assert local.launch(make_plan(*jobs), context(tmp_path), stubs) == [] and len(stubs.started) == 2
    assert chosen == [2, 1]
