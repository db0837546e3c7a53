"""The scheduling rule, and that the local launcher, the simulated clock and the estimates follow the same one."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from laurepro import plan, spec
from laurepro.cost import estimate
from laurepro.cost.estimator import Span
from laurepro.cost.machines import GPUS, Machine
from laurepro.cost.work import longest_first
from laurepro.launchers import LaunchContext, local
from laurepro.launchers._schedule import Demand, Seats, demand, ends, starts
from laurepro.plan import Plan
from laurepro.spec import Job

CONTEXT = LaunchContext(Path("nowhere"), Path("nowhere"), Path("nowhere"))


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[tuple[Demand, float]], int, int]:
    """Jobs in an order that respects their needs, their seconds, and a machine that can run each of them."""
    units, capacity = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    jobs: list[tuple[Demand, float]] = []
    for index in range(draw(st.integers(1, 12))):
        need = draw(st.none() | st.sampled_from([d.name for d, _ in jobs])) if jobs else None
        asked = Demand(f"j{index}", draw(st.integers(1, units)), draw(st.sampled_from([False, False, True])), need)
        jobs.append((asked, float(draw(st.integers(1, 9)))))
    return jobs, units, capacity


class Run:
    """Play jobs through `starts`, one event at a time, and keep everything that happened."""

    def __init__(self, jobs: list[tuple[Demand, float]], units: int, capacity: int) -> None:
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.seats: dict[str, Seats] = {}
        waiting, seconds = [d for d, _ in jobs], {d.name: s for d, s in jobs}
        running: dict[str, Seats] = {}
        now = 0.0
        while waiting or running:
            for name, seats in starts(waiting, running, units, capacity).items():
                running[name] = self.seats[name] = seats
                self.began[name], self.ended[name] = now, now + seconds[name]
            waiting = [d for d in waiting if d.name not in self.began]
            now = min(self.ended[name] for name in running)
            running = {name: seats for name, seats in running.items() if self.ended[name] > now}


@settings(max_examples=60, deadline=None)
@given(problems())
def test_never_more_seats_than_there_are_and_needs_before_users(
    problem: tuple[list[tuple[Demand, float]], int, int],
) -> None:
    jobs, units, capacity = problem
    run = Run(*problem)
    assert run.ended == ends(*problem)
    for d, _ in jobs:
        beside = [o for o, _ in jobs if run.began[o.name] <= run.began[d.name] < run.ended[o.name]]
        taken = Counter(unit for o in beside for unit in run.seats[o.name])
        assert set(taken) <= set(range(units)) and max(taken.values()) <= capacity
        if d.alone:
            assert beside == [d]
        else:
            assert len(set(run.seats[d.name])) == len(run.seats[d.name]) == d.seats  # each in another unit
        if d.need is not None:
            assert run.ended[d.need] <= run.began[d.name]


@settings(max_examples=60, deadline=None)
@given(problems())
def test_order_is_kept_and_nothing_idles(problem: tuple[list[tuple[Demand, float]], int, int]) -> None:
    """Of two jobs that ask for the same the first starts first; whatever waits with its need ended does not fit."""
    jobs, units, capacity = problem
    run = Run(*problem)
    needless = [d for d, _ in jobs if d.need is None]
    for i, first in enumerate(needless):
        for second in needless[i + 1 :]:
            if (first.seats, first.alone) == (second.seats, second.alone):
                assert run.began[first.name] <= run.began[second.name]
    for now in sorted({0.0, *run.ended.values()}):
        running = {n: s for n, s in run.seats.items() if run.began[n] <= now < run.ended[n]}
        room = sum(n < capacity for n in (Counter(u for s in running.values() for u in s)[u] for u in range(units)))
        for d, _ in jobs:
            waits = run.began[d.name] > now and (d.need is None or run.ended[d.need] <= now)
            assert not waits or (bool(running) if d.alone else room < d.seats)


def test_what_is_held_waits_and_what_needs_it_too() -> None:
    a, b, c = Demand("a", 1), Demand("b", 1, need="a"), Demand("c", 1)
    assert starts([a, b, c], {}, 2, 1, held={"a"}) == {"c": (0,)}
    assert starts([b, c], {}, 2, 1) == {"b": (0,), "c": (1,)}  # a is not among the jobs: it was reused
    assert starts([c], {"x": (0,), "y": (0, 1)}, 2, 2) == {"c": (1,)}  # the unit with the fewest jobs


def test_a_job_that_can_never_start_is_an_error() -> None:
    for impossible in (Demand("wide", 3), Demand("a", 1, need="a")):
        try:
            ends([(impossible, 1.0)], 2, 1)
        except ValueError as error:
            assert "can never start on 2 units" in str(error)
        else:
            raise AssertionError(impossible)


# -------------------------------------------------------------------------------------------------- the real queue


@cache
def make_job(stage: str, number: int, threads: int | None) -> Job:
    parts = {
        "data": {"name": "shapes"},
        "profile": {"height": 64 + number},
        "train": {"iterations": 1, "lr": 0.001 * (number + 1), "threads": threads},
    }
    return Job(stage=stage, scale="tiny", seed=0, experiment=spec.canonical(spec.Experiment.model_validate(parts)))


class Clock:
    """A clock that stands still until nothing changes any more, and processes that end by it."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.now, self.seconds = 0.0, seconds
        self.ended: dict[str, float] = {}
        self.seen: set[str] = set()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, _: float) -> None:
        """To the next end, unless one was seen since the last sleep: then others may start first."""
        if not self.seen:
            self.now = min((at for at in self.ended.values() if at > self.now), default=self.now)
        self.seen.clear()

    def start(self, job: Job, context: LaunchContext, devices: tuple[str, ...]) -> local.Process:
        self.ended[job.name] = self.now + self.seconds[job.name]

        def poll() -> int | None:
            if self.ended[job.name] > self.now:
                return None
            self.seen.add(job.name)
            return 0

        return cast(local.Process, SimpleNamespace(poll=poll))


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.tuples(st.sampled_from([1, 1, 2]), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
    profiles=st.lists(st.integers(1, 9), max_size=2),
    gpus=st.integers(0, 4),
    processes=st.integers(1, 2),
    capacity=st.integers(1, 2),
)
def test_the_simulated_finish_is_that_of_the_local_launcher(
    parts: list[tuple[int, int, int]], profiles: list[int], gpus: int, processes: int, capacity: int
) -> None:
    """The launcher's own queue, on pretended GPUs or four pretended cores, with processes that take stated seconds."""
    processes = min(processes, gpus or 2)
    jobs: list[Job] = []
    seconds: dict[str, float] = {}
    for index, (threads, train, evaluate) in enumerate(parts):
        jobs += [make_job("train", index, threads), make_job("evaluate", index, threads)]
        seconds |= {jobs[-2].name: train, jobs[-1].name: evaluate}
    for index, value in enumerate(profiles):
        jobs.append(make_job("profile", index, 1))
        seconds[jobs[-1].name] = value
    context = CONTEXT._replace(nproc_per_node=processes, jobs_per_gpu=capacity)
    clock = Clock(seconds)
    quiet: Any = SimpleNamespace(line=lambda text: None, done=lambda job, s: None, update=lambda running: None)
    with (
        mock.patch.object(local, "gpus", lambda: [str(i) for i in range(gpus)]),
        mock.patch.object(local, "torch_gpus", lambda: gpus),
        mock.patch.object(local, "cores", lambda: 4),
        mock.patch.object(local, "time", clock),
    ):
        plan = Plan((), tuple(jobs), (), {})
        queue = local.Queue(plan, context, clock.start, quiet, local.this_machine(plan, context, quiet))
        queue.run()
    assert queue.failures == {} and queue.finished == {job.name for job in jobs}
    cores = None if gpus else 4
    demands = [(demand(job, context, queue.units, cores), seconds[job.name]) for job in jobs]
    assert clock.ended == ends(demands, queue.units, queue.capacity)
    if gpus:
        machine = Machine("H100", GPUS["h100"], gpus, context)
        spans = [(job, Span(1, 1, 2).times(seconds[job.name])) for job in jobs]
        finish = estimate.finish_seconds(spans, machine)
        assert math.isclose(finish.low, clock.now) and math.isclose(finish.high, 2 * clock.now)


# ------------------------------------------------------------------------------------------------- what starts first


def smoke_plan(*targets: str, scale: str = "smoke") -> Plan:
    chosen = spec.scale(scale)
    rows = [plan.row_plan(t, r, chosen, 2) for t, r in plan.select(targets, chosen) if r.set is not None]
    return plan.build(rows, set(), lambda job: False)


def test_the_longest_trainings_start_first_and_their_evaluations_follow() -> None:
    jobs = longest_first(smoke_plan("table3a").jobs)
    trained = [j for j in jobs if j.stage == "train"]
    assert jobs[0].seed == 999 and [j.seed for j in trained[1:]] == [0] * 12 + [1] * 12  # what all start from is first
    kinds = [f"{j.experiment.model.head.kind} {j.experiment.model.output_stride}" for j in trained[1:]]
    assert kinds == [*["aspp 8"] * 3, *["encnet 8"] * 6, *["encnet 32"] * 3] * 2
    for before, after in itertools.pairwise(jobs):
        assert after.stage == "train" or (after.needs is not None and after.needs.name == before.name)
    table = [j for j in smoke_plan("table3a").jobs if j.stage == "train" and j.experiment.model.head.kind == "aspp"]
    assert trained[1:4] == table[:3]  # what takes as long keeps the table's order


def test_a_queue_ends_sooner_by_that() -> None:
    """With the seconds of `bench table`, one thread a training."""
    bench = json.loads((Path(__file__).parents[1] / "results" / "bench" / "table-cpu.json").read_text())
    seconds = bench["rows"][0]["details"]["seconds_of_jobs"]
    jobs = tuple(job for job in smoke_plan("table3a").jobs if job.name in seconds)
    assert len(jobs) == 25

    def end(order: tuple[Job, ...]) -> float:
        return max(ends([(demand(j, CONTEXT, 2, 2), seconds[j.name]) for j in order], 2, 1).values())

    least = sum(seconds.values()) / 2
    assert end(longest_first(jobs)) < 0.96 * end(jobs) and end(longest_first(jobs)) >= least


@pytest.mark.parametrize("scale", ["smoke", "paper", "camvid-cpu", "camvid-imagenet"])
def test_what_a_job_needs_still_stands_before_it(scale: str) -> None:
    jobs = smoke_plan("table3a", "table1", "table8", scale=scale).jobs
    ordered = longest_first(jobs)
    assert sorted(j.name for j in ordered) == sorted(j.name for j in jobs)
    seen: set[str] = set()
    for job in ordered:
        assert job.needs is None or job.needs.name in seen
        seen.add(job.name)


def test_without_the_cost_of_one_network_the_order_stays() -> None:
    own = smoke_plan("table3a").jobs[3]
    model = own.experiment.model.model_copy(update={"head": spec.Part(kind="encnet", channels=48, codewords=7)})
    experiment = own.experiment.model_copy(update={"model": model})
    jobs = (*smoke_plan("table3a").jobs, own.model_copy(update={"experiment": experiment, "seed": 5}))
    assert longest_first(jobs) == jobs
