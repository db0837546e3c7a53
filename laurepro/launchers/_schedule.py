"""The scheduling rule: which jobs start now, and on which seats. It knows no processes and no clock.

The local launcher follows it, the probe follows it, and `ends` follows it with a simulated clock for the estimates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from laurepro.launchers import LaunchContext, job_threads
from laurepro.spec import Job

Seats = tuple[int, ...]  # units by their index; a unit that has room for several jobs can be in it more than once


class Demand(NamedTuple):
    """What a job asks for. Its name is unique among the jobs of a plan."""

    name: str
    seats: int  # units, each once
    alone: bool = False  # starts only when nothing runs, and keeps everything else from starting
    need: str | None = None  # has to have ended before it starts


def demand(job: Job, context: LaunchContext, units: int, cores: int | None) -> Demand:
    """What a job asks for on one machine.

    Args:
        job: What will run.
        context: Processes a job.
        units: The machine's GPUs, or its `core_seats`.
        cores: The machine's CPU cores where its units are shares of them; None: the units are GPUs.

    Returns:
        On GPUs a seat for each process; on cores as many as its threads fill, and no more than there are. A speed
        measurement is one process that runs alone.
    """
    alone = job.stage == "profile"
    processes = 1 if alone else context.nproc_per_node
    if cores is not None:
        processes = min(units, processes * math.ceil(job_threads(job, context) * units / cores))
    return Demand(job.name, processes, alone, job.needs.name if job.needs else None)


def core_seats(jobs: Iterable[Job], context: LaunchContext, cores: int) -> int:
    """Seats of a machine's cores: each holds the threads of a process of the job that has fewest."""
    threads = min((job_threads(j, context) for j in jobs if j.experiment.train.threads), default=cores)
    return max(context.nproc_per_node, cores // threads)


def starts(
    waiting: Iterable[Demand],
    running: Mapping[str, Seats],
    units: int,
    capacity: int,
    held: Collection[str] = (),
) -> dict[str, Seats]:
    """The jobs that start now, in the order in which they wait, and the seats of each.

    A job that does not fit, or whose need has not ended, is passed over: those behind it may start.

    Args:
        waiting: In order.
        running: Names and seats of the jobs that run.
        units: GPUs, or seats of the cores.
        capacity: Jobs that share one unit.
        held: Names of waiting jobs that must not start yet.

    Returns:
        For a job that runs alone every unit `capacity` times, else different units, those with the fewest jobs first.
    """
    waiting = list(waiting)
    unfinished = {d.name for d in waiting} | running.keys()
    taken = Counter(dict.fromkeys(range(units), 0))
    for seats in running.values():
        taken.update(seats)
    started: dict[str, Seats] = {}
    for d in waiting:
        if d.name in held or d.need in unfinished:
            continue
        if d.alone:
            seats = () if any(taken.values()) else tuple(range(units)) * capacity
        else:
            room = sorted((n, unit) for unit, n in taken.items() if n < capacity)
            if not room:
                break
            seats = tuple(unit for _, unit in room[: d.seats]) if d.seats <= len(room) else ()
        if seats:
            started[d.name] = seats
            taken.update(seats)
    return started


def ends(jobs: Iterable[tuple[Demand, float]], units: int, capacity: int) -> dict[str, float]:
    """When each job ends, in seconds from now, if each takes as many seconds as stated.

    Raises:
        ValueError: A job asks for more seats than there are, or needs itself.
    """
    jobs = list(jobs)
    seconds = {d.name: taken for d, taken in jobs}
    waiting = [d for d, _ in jobs]
    running: dict[str, Seats] = {}
    end: dict[str, float] = {}
    now = 0.0
    while waiting:
        begun = starts(waiting, running, units, capacity)
        running |= begun
        end |= {name: now + seconds[name] for name in begun}
        waiting = [d for d in waiting if d.name not in begun]
        if not running:
            raise ValueError(f"{waiting[0].name} can never start on {units} units")
        now = min(end[name] for name in running)
        running = {name: seats for name, seats in running.items() if end[name] > now}
    return end
