"""`laurepro plan --budget HOURS`: the rows that judge the most claims in a number of device-hours."""

from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from laurepro import claims, plan
from laurepro.claims import inference
from laurepro.claims.model import Claim, row_of
from laurepro.cost.estimate import device_hours
from laurepro.cost.estimator import Estimator
from laurepro.plan import RowPlan
from laurepro.record import Record
from laurepro.spec import Job, Raw, Scale
from laurepro.spec.metrics import METRICS

LEAST_SEEDS = 2  # one seed gives no verdict
OPEN = ("not run", "undecided")


class Choice(NamedTuple):
    """What to run. `seeds` by row; `hours` are the middle of the estimate."""

    claims: tuple[str, ...]
    seeds: dict[str, int]
    jobs: tuple[str, ...]
    hours: float
    cheapest: float | None  # hours of the cheapest claim that was not chosen
    not_estimated: int  # claims with a job whose time is not known

    def commands(self, scale: Scale, pairs: tuple[str, ...]) -> list[str]:
        """The commands to run: one for each number of seeds."""
        rows: dict[int, set[str]] = defaultdict(set)
        for address, seeds in self.seeds.items():
            rows[seeds].add(address)
        sets = [word for pair in pairs for word in ("--set", pair)]
        lines = []
        for n, addresses in sorted(rows.items(), reverse=True):
            words = []
            for table in sorted({address.partition("/")[0] for address in addresses}):
                whole = {f"{t.id}/{r.id}" for t, r in plan.select([table], scale) if r.set is not None}
                chosen = {address for address in addresses if address.startswith(f"{table}/")}
                words += [table, *sorted(chosen - whole)] if whole <= chosen else sorted(chosen)
            lines.append(shlex.join(["laurepro", "run", *words, "--scale", scale.name, "--seeds", str(n), *sets]))
        return lines

    def statements(self) -> dict[str, list[str]]:
        """The claims by their statements."""
        statements: dict[str, list[str]] = defaultdict(list)
        for claim in self.claims:
            statement, _, comparison = claim.partition(".")
            statements[statement].append(comparison)
        return dict(statements)


class Candidate(NamedTuple):
    """An open claim: the rows that it compares, the number of seeds, and the hours of each job that is missing."""

    claim: str
    rows: tuple[str, ...]
    seeds: int
    hours: Mapping[str, float]


def choose(
    scale: Scale,
    records: Mapping[str, Record],
    has_weights: Callable[[Job], bool],
    estimator: Estimator,
    hours: float,
    seeds: int | None = None,
    overrides: Raw | None = None,
    within: Iterable[str] | None = None,
    diverged: Collection[str] = (),
) -> Choice:
    """Take claims while they fit into the hours, the cheapest first; jobs that claims share count once.

    Args:
        scale: Whose claims are judged.
        records: That exist; a claim that they decide is not open any more.
        has_weights: As for `plan.build`.
        estimator: Of the jobs' seconds.
        hours: Of GPUs, or of cores on a CPU.
        seeds: Of each row (default: the scale's), at least LEAST_SEEDS; where these exist and the claim is undecided,
            as many as its verdict states.
        overrides: The --set of the runs.
        within: Addresses of the rows that may be run (default: all).
        diverged: Names of trainings that diverged, which `run` leaves out.
    """
    open_claims, unknown = candidates(scale, records, has_weights, estimator, seeds, overrides, within, diverged)
    # Two orders, as neither is always better: by a claim's hours, and by its share of the hours of shared jobs.
    best = max((_greedy(open_claims, hours, shared) for shared in (False, True)), key=lambda c: (len(c[0]), -c[1]))
    taken, spent = best
    names = {c.claim for c in taken}
    others = [sum(c.hours.values()) for c in open_claims if c.claim not in names]
    rows: dict[str, int] = {}
    for candidate in taken:
        for address in candidate.rows:
            rows[address] = max(rows.get(address, 0), candidate.seeds)
    return Choice(
        claims=tuple(c.claim for c in open_claims if c.claim in names),
        seeds=dict(sorted(rows.items())),
        jobs=tuple(dict.fromkeys(job for c in taken for job in c.hours)),
        hours=spent,
        cheapest=min(others, default=None),
        not_estimated=unknown,
    )


def candidates(
    scale: Scale,
    records: Mapping[str, Record],
    has_weights: Callable[[Job], bool],
    estimator: Estimator,
    seeds: int | None,
    overrides: Raw | None,
    within: Iterable[str] | None,
    diverged: Collection[str] = (),
) -> tuple[list[Candidate], int]:
    """The open claims whose rows can be run and estimated, and the number of those that cannot be estimated."""
    allowed = None if within is None else set(within)
    wanted = max(LEAST_SEEDS, seeds or scale.seeds)
    plans: dict[tuple[str, int], RowPlan] = {}
    estimated, unknown = [], 0
    hours: dict[str, float | None] = {}

    def missing(claim: Claim, n: int) -> tuple[list[RowPlan], tuple[Job, ...]]:
        rows = []
        for address in claim.addresses:
            if (address, n) not in plans:
                table, row = row_of(address)
                plans[address, n] = plan.row_plan(table, row, scale, n, overrides, partial=True)
            if plans[address, n].jobs:
                rows.append(plans[address, n])
        return rows, plan.build(rows, set(records), has_weights, diverged=diverged).jobs

    for claim, needed in _open(scale, records, overrides):
        assert claim.metric is not None
        n = 1 if METRICS[claim.metric].stage == "profile" else wanted
        rows, jobs = missing(claim, n)
        if not jobs and needed is not None and needed > n:
            n = needed
            rows, jobs = missing(claim, n)
        if not jobs or (allowed is not None and not {r.address for r in rows} <= allowed):
            continue
        for job in jobs:
            name = job.name
            if name not in hours:
                seconds = estimator.cost(job).seconds
                hours[name] = None if seconds is None else device_hours(job, seconds, estimator.machine).middle
        known = {job.name: value for job in jobs if (value := hours[job.name]) is not None}
        if len(known) < len(jobs):
            unknown += 1
        else:
            estimated.append(Candidate(claim.id, tuple(r.address for r in rows), n, known))
    return estimated, unknown


def _open(scale: Scale, records: Mapping[str, Record], overrides: Raw | None) -> Iterable[tuple[Claim, int | None]]:
    """Claims about rows that are not decided at the scale, and the seeds that would decide them."""
    at_scale = {name: r for name, r in records.items() if r.scale == scale.name}
    if scale.comparable and not at_scale:  # judging runs `laurepro check` too, with torch
        yield from ((claim, None) for claim in claims.load() if claim.addresses)
        return
    for verdict in claims.judge(scale, records, overrides):
        if verdict.claim.addresses and verdict.verdict in OPEN:
            needed = verdict.needed or (inference.LEAST_SEEDS if 1 < verdict.n < inference.LEAST_SEEDS else None)
            yield verdict.claim, needed


def _greedy(open_claims: list[Candidate], hours: float, shared: bool) -> tuple[list[Candidate], float]:
    """Take the cheapest claim, given what was taken before, until none fits."""
    rest, taken, chosen, spent = list(open_claims), list[Candidate](), set[str](), 0.0
    while rest:
        users = Counter(job for c in rest for job in c.hours)
        prices = []
        for index, candidate in enumerate(rest):
            new = {job: h for job, h in candidate.hours.items() if job not in chosen}
            added = sum(new.values())
            if spent + added <= hours:
                prices.append((sum(h / users[job] for job, h in new.items()) if shared else added, added, index))
        if not prices:
            break
        _, added, index = min(prices)
        spent += added
        best = rest.pop(index)
        chosen |= set(best.hours)
        taken.append(best)
    return taken, spent
