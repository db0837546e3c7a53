"""Why a number may differ from the printed one."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from laurepro import plan
from laurepro.evaluation.scores import by_seed
from laurepro.plan import RowPlan
from laurepro.record import Record
from laurepro.spec import Experiment, Job, Raw, Scale, layers, parts, protocols
from laurepro.spec.metrics import METRICS
from laurepro.spec.weights import model_of

TOLERANCE = 0.5  # percentage points between our mean and a printed score; `experiments/claims/paper.yaml` says why
CONFUSABLE = ("miou59", "miou60", "miou60_background")


class Cause(NamedTuple):
    """Why a number may differ from the printed one. `command` measures it without training, where that is possible."""

    cause: str
    state: Literal["explains", "excluded", "unknown"]
    found: str
    command: str | None = None


class Deviation(NamedTuple):
    """A mean over seeds that is out of tolerance, with what may explain it. `command` runs the row."""

    metric: str
    printed: float
    by_seed: Mapping[int, float]
    planned: RowPlan
    experiment: Experiment
    records: Mapping[str, Record]
    scale: Scale
    overrides: Raw
    command: str

    @property
    def mean(self) -> float:
        """Our mean over seeds."""
        return statistics.fmean(self.by_seed.values())

    def compared(self, value: float) -> str:
        """A value, and how far it is from the printed one."""
        return f"{value:.2f} ({value - self.printed:+.2f})"

    def state(self, value: float) -> Literal["explains", "excluded"]:
        """Whether a value measured another way is within tolerance of the printed one."""
        return "explains" if abs(value - self.printed) <= TOLERANCE < abs(self.mean - self.printed) else "excluded"


def _measured(metric: str, jobs: tuple[Job, ...], records: Mapping[str, Record]) -> dict[int, float]:
    """A metric by seed."""
    return {seed: value for seed, (value, _) in by_seed(metric, jobs, records).items()}


def known_causes(d: Deviation) -> list[Cause]:
    """The known causes: first what explains the difference, then what is still open, then what is excluded."""
    jobs = d.planned.jobs
    evaluations = [d.records[j.name] for j in jobs if j.stage == "evaluate" and j.name in d.records]
    trainings = [d.records[n.name] for j in jobs if (n := j.needs) is not None and n.name in d.records]
    known = [
        *_conventions(d),
        *_protocols(d),
        _weights(d.experiment),
        _noise(d),
        _batch(d.experiment, trainings or evaluations),
        _length(d.experiment, trainings),
    ]
    order = ("explains", "unknown", "excluded")
    return sorted(known, key=lambda cause: order.index(cause.state))


def _conventions(d: Deviation) -> Iterable[Cause]:
    """The same confusion matrices under another convention of PASCAL Context's mIoU."""
    for metric in CONFUSABLE if d.metric in CONFUSABLE else ():
        by_seed = _measured(metric, d.planned.jobs, d.records)
        if metric != d.metric and by_seed:
            mean = statistics.fmean(by_seed.values())
            text = f"{METRICS[metric].title} is {d.compared(mean)}, from the same confusion matrices"
            yield Cause(f"convention: {metric}", d.state(mean), text)


def _protocols(d: Deviation) -> Iterable[Cause]:
    """The same weights scored by another protocol: another evaluation, no other training."""
    name = protocols.name_of(d.experiment.eval)
    align_corners = not d.experiment.eval.align_corners
    changes: list[tuple[str, Raw]] = [(f"eval.protocol={p}", {"protocol": p}) for p in protocols.PROTOCOLS if p != name]
    changes.append((f"eval.align_corners={json.dumps(align_corners)}", {"align_corners": align_corners}))
    for pair, change in changes:
        overrides = layers.merge(d.overrides, {"eval": change})
        jobs = plan.row_plan(d.planned.table, d.planned.row, d.scale, d.by_seed, overrides).jobs
        by_seed = _measured(d.metric, jobs, d.records)
        cause = f"evaluation protocol: {pair}"
        if by_seed:
            mean = statistics.fmean(by_seed.values())
            yield Cause(cause, d.state(mean), f"{d.compared(mean)} over {len(by_seed)} of the same trainings")
        else:
            text = f"not measured; this is {name or 'no named protocol'}"
            yield Cause(cause, "unknown", text, f"{d.command} --seeds {plan.seeds_text(d.by_seed)} --set {pair}")


def _weights(experiment: Experiment) -> Cause:
    backbone, pretrained = experiment.model.backbone, experiment.train.pretrained
    stem = parts.all_options("backbones", backbone).get("stem")
    text = f"{model_of(backbone)}{f', {stem} stem' if stem else ''}, from {pretrained or 'random weights'}"
    return Cause("stem and ImageNet weights", "unknown", f"{text}; another choice is another training")


def _noise(d: Deviation) -> Cause:
    """Whether the printed number, which is one run's, could be one more of our seeds."""
    from scipy.special import stdtrit

    n, gap = len(d.by_seed), d.mean - d.printed
    if n < 2:
        return Cause("seed noise", "unknown", "one seed shows no spread", f"{d.command} --seeds 3")
    std = statistics.stdev(d.by_seed.values())
    reach = float(stdtrit(n - 1, 0.975)) * std * (1 + 1 / n) ** 0.5
    text = f"{gap:+.2f}; a 95 % prediction interval for one more run reaches ±{reach:.2f} (n = {n}, sd {std:.2f})"
    return Cause("seed noise", "explains" if abs(gap) <= reach else "excluded", text)


def _batch(experiment: Experiment, used: list[Record]) -> Cause:
    sizes = sorted({r.world_size for r in used})
    over = ", ".join(map(str, sizes)) if sizes else "an unknown number of"
    text = (
        f"batch {experiment.train.batch_size} over {over} processes, batch normalisation over all of it; the paper "
        f"had 4 GPUs. loss.count is {experiment.loss.count}; the released code counts each GPU's pixels"
    )
    return Cause("effective batch, and normalisation over GPUs", "unknown", text)


def _length(experiment: Experiment, trainings: list[Record]) -> Cause:
    train = experiment.train
    steps = sorted({r.curve[-1][0] for r in trainings if r.curve})
    planned = train.iterations or sum(p.iterations for p in train.phases or ())
    length = f"{train.epochs} epochs" if train.epochs else f"{planned} steps"
    if not steps:
        return Cause("length of training", "unknown", f"{length} asked for; no record of a training is available")
    done = f"{length} asked for, {', '.join(map(str, steps))} steps done"
    if not planned:
        return Cause("length of training", "unknown", done)
    return Cause("length of training", "excluded" if steps == [planned] else "explains", done)
