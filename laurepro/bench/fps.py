"""Table 8: the speed of each LaU row against that of its bilinear row, measured as the stage `profile` measures it.

Batch 1, without the auxiliary head, both networks in one process, groups of forwards in turns, the device idle whenever
the clock is read. The whole measurement is repeated `--rounds` times; the spread is over these repeats. On a GPU the
rows have the paper's size (512 x 512, 100 forwards after the warm-up); on a CPU that of scale smoke.

`details` has the numbers of the table: `fps`, `fps_ratio` (LaU's over the bilinear row's: the higher the better) with
its standard deviation over the repeats, and the paper's numbers beside them.
"""

from __future__ import annotations

import statistics

import torch

from laurepro import plan, spec
from laurepro.bench import Options, Row, _measure
from laurepro.network.counted import evaluated
from laurepro.stages import Context, profile
from laurepro.training.step import check_compile

TABLE, SUFFIXES = "table8", ("bilinear", "lau4x")
SECONDS = {"tiny": 0.2, "small": 3.0, "full": 24.0}  # of one repeat of a pair, on a CPU


def run(options: Options, bandwidth: float) -> list[Row]:
    """A case for each pair of rows; see `laurepro.bench`.

    Raises:
        LaureproError: no case matches `options.only`, or the machine cannot compile.
    """
    device = torch.device(options.device)
    check_compile("--compile", "default" if options.compile else "none", device)
    pairs = sorted({row.id.rsplit("-", 1)[0] for row in spec.tables()[TABLE].rows})
    chosen = options.chosen(f"fps/{pair}" for pair in pairs)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        return [row for case in _measure.announced(chosen, options.compile) for row in _pair(case, options, device)]
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _pair(case: str, options: Options, device: torch.device) -> list[Row]:
    """Both rows of the pair of a case, bilinear first."""
    pair = case.removeprefix("fps/")
    rows = [_experiment(f"{pair}-{suffix}", options) for suffix in SUFFIXES]
    base, lau = (evaluated(e.model) for e in rows)
    timed = profile.subjects([base, lau], rows[1], 0, device)
    context = Context(spec.experiments_dir(), spec.experiments_dir(), None, lambda values: None, lambda: False)
    repeats = []  # seconds of one forward of either row
    iterations = 0
    for _ in range(options.rounds):
        groups = profile.time_in_turns(timed.forwards, timed.image, rows[1].profile, context)
        iterations = sum(n for n, _ in groups)
        repeats.append([sum(taken[i] for _, taken in groups) / iterations for i in range(2)])
    peaks: list[float | None] = [None, None]
    if options.memory and device.type == "cuda":
        del timed
        peaks = [profile.subjects([model], e, 0, device).peak_bytes for model, e in zip((base, lau), rows, strict=True)]
    ratios = [bilinear / lau_seconds for bilinear, lau_seconds in repeats]
    published = [_published(f"{pair}-{suffix}") for suffix in SUFFIXES]
    height, width = rows[1].profile.height, rows[1].profile.width
    name = f"{case}/{height}x{width}-{options.dtype}{'-compiled' if options.compile else ''}"
    times = {suffix: _measure.Times([repeat[i] for repeat in repeats]) for i, suffix in enumerate(SUFFIXES)}
    allocated = {suffix: int(peak) for suffix, peak in zip(SUFFIXES, peaks, strict=True) if peak is not None}
    measured = []
    for i, suffix in enumerate(SUFFIXES):
        details: dict[str, float | None] = {
            "fps": 1 / statistics.median(times[suffix].seconds),
            "fps_of_the_paper": published[i],
            "iterations": iterations,
        }
        note = None
        if suffix == "lau4x":
            mean, spread = statistics.fmean(ratios), statistics.stdev(ratios) if len(ratios) > 1 else None
            of_paper = published[1] / published[0]
            details |= {
                "fps_ratio": mean,
                "fps_ratio_std": spread,
                "fps_ratio_of_the_paper": of_paper,
            }
            shown = "" if spread is None else f" +- {spread:.4f}"
            note = f"FPS ratio {mean:.4f}{shown} over {len(ratios)}, the paper's {of_paper:.4f}"
        row = _measure.row(name, suffix, True, SUFFIXES[0], times, allocated, note=note, details=details)
        # The mean of the ratios of each repeat, and not the ratio of the fastest.
        measured.append(row._replace(ratio=statistics.fmean(repeat[i] / repeat[0] for repeat in repeats)))
    return measured


def _experiment(row_id: str, options: Options) -> spec.Experiment:
    """The row as the table has it, or at scale smoke; timed as the options say."""
    table = spec.tables()[TABLE]
    scale = spec.scale("paper" if options.shapes == "full" else "smoke")
    experiment = plan.row_plan(table, table.row(row_id), scale, 1).experiment
    assert experiment is not None
    changes = {
        "seconds": SECONDS[options.shapes],
        "dtype": options.dtype,
        "compile": "default" if options.compile else "none",
    }
    return experiment.model_copy(update={"profile": experiment.profile.model_copy(update=changes)})


def _published(row_id: str) -> float:
    value = spec.tables()[TABLE].row(row_id).published["fps"].value
    assert value is not None
    return value
