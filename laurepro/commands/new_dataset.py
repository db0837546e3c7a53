"""`laurepro new dataset`: a data set in Python that works as it is, and its test."""

from __future__ import annotations

from pathlib import Path

from laurepro.errors import LaureproError

DATASET = '''\
"""{title}: WHAT IT SHOWS, WHO MADE IT, AND UNDER WHICH LICENCE."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from laurepro.datasets import Image, Info, Label

INFO = Info(
    name="{name}",
    classes=("background", "square"),
    description="generated 96x96 images of one square: replace them with yours",
    licence="WHAT A REPORT STATES",
    splits=("train", "val"),
)
COUNTS = {{"train": 32, "val": 8}}


class Dataset:
    """One split. Keyword-only arguments with a default are options: `--set data.options.noise=20`."""

    def __init__(self, root: Path, split: str, *, noise: int = 60) -> None:
        self._seed, self._count, self._noise = INFO.splits.index(split), COUNTS[split], noise
        self.names = [f"{{split}}_{{index}}" for index in range(self._count)]

    def __len__(self) -> int:
        """The number of images."""
        return self._count

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        """Image uint8 [H, W, 3] and label int64 [H, W], -1 where ignored; several threads call it."""
        if not 0 <= index < self._count:
            raise IndexError(index)
        rng = np.random.default_rng((self._seed, index))
        label = np.zeros((96, 96), np.int64)
        top, left = rng.integers(0, 48, 2)
        label[top : top + 40, left : left + 40] = 1
        image = 90 + 60 * label[..., None] + rng.integers(0, self._noise + 1, (96, 96, 3))
        return image.astype(np.uint8), label


def problems(root: Path, splits: tuple[str, ...]) -> list[str]:
    """Why the splits cannot be used; empty if they can. Cheap: it is called before any work."""
    return [f"{name} has no split {{s!r}}, only {{', '.join(INFO.splits)}}" for s in splits if s not in INFO.splits]


def files(root: Path) -> Iterable[Path]:
    """The files that it reads: with other content they are another data set, and another experiment.

    Without this function it is all files below ROOT/{name}. A data set that defines `LAYOUT` and `originals` gets a
    manifest from `laurepro data prepare {name}` instead: laurepro/datasets/camvid.py is the example.
    """
    return ()
'''

TEST = '''\
"""{title}: the contract of a data set. Add an image whose label you know."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from laurepro.checks import plugin

ROOT = Path(os.environ.get("LAUREPRO_DATA", "data"))


def test_it_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUREPRO_PLUGINS", os.fspath(Path(__file__).parents[1]))
    (part,) = plugin.find("{name}", ROOT)
    assert [outcome for outcome in plugin.run(part) if outcome.problem is not None] == []
'''


def dataset(name: str, folder: Path) -> list[Path]:
    """Write the data set and its test below a plug-in folder, and return the files.

    Raises:
        LaureproError: the name is taken, or a file exists.
    """
    from laurepro.spec import parts

    texts = {folder / "datasets" / f"{name}.py": DATASET, folder / "tests" / f"test_{name}.py": TEST}
    taken = [str(f) for f in (parts.path("datasets", name), *texts) if f is not None and f.exists()]
    if taken:
        raise LaureproError(f"NAME {name!r} is taken: {taken[0]} exists", "choose another, or remove that file")
    for file, text in texts.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(name=name, title=name.replace("_", " ")))
    return [*texts]


def next_steps(name: str) -> list[str]:
    """The commands that use a written data set."""
    return [
        f"laurepro check plugin {name}",
        f"laurepro run table3a/encnet-os8-bilinear --scale smoke --set data.name={name}",
    ]
