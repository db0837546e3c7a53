"""The vocabulary: every column a table may have, and what each stage's key covers. No torch here."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """One column. `unit` is how the stored value is to be read; `divisor` only scales what is shown."""

    title: str
    unit: str
    stage: str
    digits: int
    better: str
    what: str
    divisor: float = 1.0


# How far from an edge counts as boundary, in pixels; `boundary_miou` is that of 3, and stored as a whole matrix.
BOUNDARY_WIDTHS = (1, 3, 5, 9)
BOUNDARY_SHARE = 0.02  # of the picture's diagonal: the width that Cheng et al. (2021) take for boundary IoU

METRICS: dict[str, Metric] = {
    "miou": Metric("mIoU", "%", "evaluate", 2, "higher", "mean over classes of intersection / union"),
    "miou59": Metric("mIoU-59", "%", "evaluate", 2, "higher", "PASCAL Context, mean over the 59 classes"),
    "miou60": Metric("mIoU-60", "%", "evaluate", 2, "higher", "miou59 x 59/60, the paper's convention"),
    "miou60_background": Metric("mIoU-60bg", "%", "evaluate", 2, "higher", "60 classes, background scored"),
    "pixacc": Metric("pixAcc", "%", "evaluate", 2, "higher", "correct / labelled pixels"),
    "mean_accuracy": Metric("mAcc", "%", "evaluate", 2, "higher", "mean over classes of recall"),
    "boundary_miou": Metric("bmIoU", "%", "evaluate", 2, "higher", "mIoU within 3 pixels of a label edge"),
    **{
        f"boundary_miou_{w}px": Metric(f"bmIoU-{w}", "%", "evaluate", 2, "higher", f"mIoU within {w} px of an edge")
        for w in BOUNDARY_WIDTHS
        if w != 3
    },
    "boundary_iou": Metric("bIoU", "%", "evaluate", 2, "higher", "mean boundary IoU, width 2% of the diagonal"),
    **{
        f"boundary_iou_{w}px": Metric(f"bIoU-{w}", "%", "evaluate", 2, "higher", f"mean boundary IoU, width {w} px")
        for w in BOUNDARY_WIDTHS
    },
    "final_score": Metric("Final", "", "evaluate", 4, "higher", "(pixAcc + mIoU) / 2 as a fraction, ADE20K's own"),
    "offset_groups": Metric(
        "M", "", "profile", 0, "lower", "offsets for each output pixel, of point-sampling upsamplers"
    ),
    "params": Metric("Params", "M", "profile", 2, "lower", "learnable parameters, no auxiliary head", 1e6),
    "macs": Metric("MACs", "G", "profile", 2, "lower", "multiply-accumulates of convolutions and linears", 1e9),
    "d_params": Metric("+Params", "M", "profile", 2, "lower", "parameters added to the bilinear row", 1e6),
    "d_macs": Metric("+MACs", "G", "profile", 2, "lower", "multiply-accumulates added to the bilinear row", 1e9),
    "flops": Metric("FLOPs", "G", "profile", 2, "lower", "two for each MAC, matrix products included", 1e9),
    "activation_bytes": Metric("Activations", "MB", "profile", 1, "lower", "layers' outputs of one forward", 1e6),
    "latency_ms": Metric("Latency", "ms", "profile", 2, "lower", "one forward pass, batch 1"),
    "fps": Metric("FPS", "1/s", "profile", 2, "higher", "forward passes a second, batch 1"),
    "fps_ratio": Metric("FPS ratio", "", "profile", 4, "higher", "FPS over that of the bilinear row, in one process"),
    "peak_bytes": Metric("Peak memory", "MB", "profile", 1, "lower", "CUDA memory of one forward, weights too", 1e6),
}

# The parts of an experiment, or single fields, that can change what a stage measures. A job's key covers these, the
# stage, the scale, `version` and the seed (a profile has none), and nothing else. A profile needs no data, but the
# classifier has as many outputs as the data set has classes.
STAGES: dict[str, tuple[str, ...]] = {
    "train": ("model", "loss", "op", "data", "train", "init_from", "sources"),
    "evaluate": ("model", "loss", "op", "data", "train", "init_from", "eval", "sources"),
    "profile": ("model", "op", "data.name", "data.options.background", "train.threads", "profile", "sources"),
}


def own_metric(column: str, dataset: str) -> str:
    """The metric of our own record that stands beside a published column.

    Only PASCAL Context has the 59/60 conventions; on any other data set the column is plain `miou`.
    """
    if column in ("miou59", "miou60", "miou60_background") and dataset != "pascal_context":
        return "miou"
    return column


class Cost(NamedTuple):
    """What can be counted exactly, for one picture; see `laurepro.stages.profile.counts`."""

    params: int
    macs: int
    activation_bytes: int
