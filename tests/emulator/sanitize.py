"""Run kernels under gcc's sanitizers: `python -m emulator.sanitize address` (or thread) in `environment`.

"address", with undefined behaviour, is as compute-sanitizer's memcheck on a GPU: an access outside of a tensor aborts the
process and names the line. "thread" is as its racecheck, and finds races between blocks too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

FLAGS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1"),
    "thread": ("-fsanitize=thread", "-DEMULATOR_THREADS", "-pthread", "-g1"),
}
TESTS = Path(__file__).parents[1]
Shape = tuple[int, int, int, int, tuple[int, int], int]  # n, c, h, w, (k_h, k_w), m
# They end in the middle of a block, a warp and a vector. Threads are slow: samples of two blocks.
SHAPES: dict[str, list[Shape]] = {
    "address": [
        (2, 6, 5, 3, (3, 3), 1),
        (1, 67, 3, 4, (2, 2), 1),
        (1, 3, 3, 1, (2, 2), 3),
        (1, 2, 1, 1, (1, 1), 1),
    ],
    "thread": [(1, 6, 5, 4, (4, 4), 1), (1, 2, 3, 6, (2, 4), 2)],
}


def environment(sanitizer: str) -> dict[str, str]:
    """For a Python process that loads kernels compiled with FLAGS."""
    names = {"address": ("libasan.so", "libstdc++.so"), "thread": ("libtsan.so",)}
    libraries = [  # libstdc++: exceptions thrown before it is loaded would abort
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in names[sanitizer]
    ]
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "TSAN_OPTIONS": "history_size=0:exitcode=66:suppress_equal_addresses=0",
        "PYTHONPATH": os.pathsep.join((str(TESTS), str(TESTS.parent))),
        "OMP_NUM_THREADS": "1",
    }


def main(sanitizer: str) -> None:
    """LaU and its losses, forward and backward."""
    import torch

    import emulator
    from laurepro.ops import _cupy, _cupy_loss, _cupy_loss_launch, _cupy_upsample

    gathers = ("gather_nchw<float, 16>", "gather_nhwc<float, 2, 16, 1>")
    shared = [name for name in _cupy_upsample.backward_instances(torch.float32) if "gather" not in name]
    groups = [
        ("lau_forward", tuple(_cupy_upsample.forward_instances(torch.float32))),
        ("lau_backward", (*shared, *gathers, "gather_nhwc<float, 1, 16, 5>")),
    ]
    divisions = {_cupy_loss_launch.lanes_of(shape[1], torch.float32) for shape in SHAPES[sanitizer]}
    for source, instances in _cupy_loss.INSTANCES.items():
        wanted = [
            name
            for name in instances(torch.float32)
            if any(
                re.search(rf"<float(, {d.lanes}(, {d.vectors}, .*{str(d.turns).lower()})?)?>", name) for d in divisions
            )
        ]
        groups.append((source, tuple(wanted)))
    _cupy.LOADERS["cpu"] = emulator.Loader(groups, FLAGS[sanitizer])
    torch.manual_seed(0)
    for n, c, h, w, k, m in SHAPES[sanitizer]:
        for layout in (torch.contiguous_format, torch.channels_last):
            u = torch.randn(n, c, h, w).contiguous(memory_format=layout)
            d = torch.randn(n, 2 * m, h * k[0], w * k[1]) * 3
            d[:, :, 0] = 1e30
            d[0, 0, -1, -1] = float("nan")
            v = _cupy_upsample.forward(u, d, *k, False)
            for deterministic in (False, True):
                _cupy_upsample.backward(v, u, d, *k, True, True, True, deterministic)
            if (layout == torch.channels_last) is not (m == 1):
                continue  # the losses would copy the input
            target = torch.randint(-2, c + 1, (n, h * k[0], w * k[1]))  # including labels that are not classes
            rules = range(len(_cupy_loss.RULES) if m == 1 else 2)
            calls = [*((rule, False, True) for rule in rules), (0, True, True), (1, False, False)]
            for rule, deterministic, gradients in calls:
                numbers = (*k, rule, 0.3, 0.1, 1.0, -1, True, gradients, gradients)
                _cupy_loss.forward(u, d, target, *numbers, deterministic)
    print("nothing found")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
