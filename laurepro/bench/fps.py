"""Table 8: the speed of each LaU row against that of its bilinear row, measured as the stage `profile` measures it.

Batch 1, the auxiliary head off, both networks in one process, groups of forwards in turns, the device idle whenever
the clock is read. The whole measurement is repeated `--rounds` times; the spread is over these repeats. On a GPU the
rows have the paper's size (512 x 512, 100 forwards after the warm-up); on a CPU that of scale smoke.

`details` has what the table prints: `fps`, `fps_ratio` (LaU's over the bilinear row's: the higher the better) with its
standard deviation over the repeats, and the paper's numbers beside them.
"""

from __future__ import annotations

import statistics

import torch

from laurepro import plan, spec
from laurepro.bench import Options, Row, _measure
from laurepro.errors import LaureproError
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
    wanted = {f"fps/{pair}": pair for pair in pairs if options.wants(f"fps/{pair}")}
    if not wanted:
        raise LaureproError(f"--only {' '.join(options.only)}: no such case", f"a case is named as in fps/{pairs[0]}")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        return [row for case in _measure.announced(list(wanted)) for row in _pair(wanted[case], options, device)]
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _pair(pair: str, options: Options, device: torch.device) -> list[Row]:
    """Both rows of a pair, bilinear first."""
    rows = [_experiment(f"{pair}-{suffix}", options) for suffix in SUFFIXES]
    base, lau = (evaluated(e.model) for e in rows)
    timed = profile.subjects([base, lau], rows[1], 0, device)
    context = Context(spec.experiments_dir(), spec.experiments_dir(), None, lambda values: None, lambda: False)
    repeats = []  # of each: seconds of one forward of either row
    iterations = 0
    for _ in range(options.rounds):
        times = profile.time_in_turns(timed.forwards, timed.image, rows[1].profile, context)
        iterations = sum(n for n, _ in times)
        repeats.append([sum(taken[i] for _, taken in times) / iterations for i in range(2)])
    peaks: list[float | None] = [None, None]
    if options.memory and device.type == "cuda":
        del timed
        peaks = [profile.subjects([model], e, 0, device).peak_bytes for model, e in zip((base, lau), rows, strict=True)]
    ratios = [bilinear / own for bilinear, own in repeats]
    published = [_published(f"{pair}-{suffix}") for suffix in SUFFIXES]
    height, width = rows[1].profile.height, rows[1].profile.width
    found = []
    for i, suffix in enumerate(SUFFIXES):
        seconds = [repeat[i] for repeat in repeats]
        best = min(seconds)
        details: dict[str, float | None] = {
            "fps": 1 / statistics.median(seconds),
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
        peak = peaks[i]
        found.append(
            Row(
                case=f"fps/{pair}/{height}x{width}-{options.dtype}{'-compiled' if options.compile else ''}",
                variant=suffix,
                ours=True,
                milliseconds=best * 1e3,
                spread=statistics.median(seconds) / best - 1,
                peak_bytes=None if peak is None else int(peak),
                peer=SUFFIXES[0],
                ratio=statistics.fmean(repeat[i] / repeat[0] for repeat in repeats),
                peak_ratio=peak / peaks[0] if peak is not None and peaks[0] else None,
                floor_share=None,
                error=None,
                tolerance=None,
                note=note,
                details=details,
            )
        )
    return found


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
