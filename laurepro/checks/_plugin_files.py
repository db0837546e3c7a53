"""The contracts of data sets, launchers and trackers."""

from __future__ import annotations

import ast
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from laurepro.checks._plugin import Broken, Part, expect
from laurepro.errors import LaureproError
from laurepro.spec import parts


def light(part: Part) -> str:
    """These files are read by commands that start in milliseconds."""
    heavy = {"torch", "torchvision", "pandas", "matplotlib", "cupy"}
    for node in parts.syntax(part.file).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            expect(name.split(".")[0] not in heavy, f"line {node.lineno} imports {name}: import it in a function")
    return "no torch at module level"


def info(part: Part) -> str:
    from laurepro.datasets import Info

    module = part.module()
    info = module.info(**part.options) if hasattr(module, "info") else module.INFO
    expect(isinstance(info, Info), f"expected an Info, got {info!r:.60}")
    expect(info.name == part.name, f"INFO.name is {info.name!r}, the file's name is {part.name!r}")
    expect(len(info.classes) > 1 and len(set(info.classes)) == len(info.classes), f"classes: {info.classes!r:.80}")
    expect(bool(info.splits), "splits are empty")
    return f"{len(info.classes)} classes, splits {', '.join(info.splits)}"


def unknown_split(part: Part) -> str:
    for root in (part.data, Path("/nonexistent")):
        problems = part.module().problems(root, ("no-such-split",))
        expect(
            isinstance(problems, list) and bool(problems) and all(isinstance(p, str) for p in problems),
            f"expected a list with a problem, got {problems!r:.80}",
        )
    return "refused"


def samples(part: Part) -> str:
    import numpy as np

    module, seen = part.module(), []
    classes = len((module.info(**part.options) if hasattr(module, "info") else module.INFO).classes)
    for split in module.INFO.splits:
        if module.problems(part.data, (split,)):
            continue
        dataset = module.Dataset(part.data, split, **part.options)
        count = len(dataset)
        expect(count > 0, f"{split} is empty")
        some = sorted({0, count // 2, count - 1})
        first = [dataset[i] for i in some]
        for index, (image, label) in zip(some, first, strict=True):
            where = f"{split}[{index}]"
            expect(
                image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3,
                f"{where}: expected an image uint8 [H, W, 3], got {image.dtype} {image.shape}",
            )
            expect(
                label.dtype == np.int64 and label.shape == image.shape[:2],
                f"{where}: expected a label int64 {image.shape[:2]}, got {label.dtype} {label.shape}",
            )
            expect(
                label.min() >= -1 and label.max() < classes,
                f"{where}: labels are {label.min()} to {label.max()}, expected -1 to {classes - 1}",
            )
        with ThreadPoolExecutor(4) as pool:
            again = list(pool.map(dataset.__getitem__, some))
        equal = all(np.array_equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True))
        expect(equal, f"{split}: read a second time, by threads, a sample differs")
        try:
            dataset[count]
        except IndexError:
            seen.append(f"{split} {count}")
        else:
            raise Broken(f"{split}[{count}]: expected IndexError")
    if not seen:
        raise Broken(f"no split is usable below {part.data}: {module.problems(part.data, module.INFO.splits)[0]}")
    return ", ".join(seen)


def preparation(part: Part) -> str:
    module = part.module()
    layout, originals = hasattr(module, "LAYOUT"), hasattr(module, "originals")
    expect(layout == originals, f"it has {'LAYOUT' if layout else 'originals'} alone: a data set of files has both")
    return "LAYOUT and originals" if layout else "none: a data set without files"


def launcher_options(part: Part) -> str:
    """Options of `laurepro run` have defaults, and a line of help in the docstring."""
    options = getattr(part.module(), "Options", None)
    if options is None:
        return "none"
    undocumented = [name for name in options._fields if f"{name}:" not in (options.__doc__ or "")]
    expect(not undocumented, f"the docstring of Options has no line on {', '.join(undocumented)}")
    return ", ".join(f"{name}={value!r}" for name, value in options()._asdict().items())


def launch(part: Part) -> str:
    from laurepro.launchers import LaunchContext
    from laurepro.plan import Plan

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        context = LaunchContext(root / "results", root / "runs", root / "data")
        try:
            failures = part.module().launch(Plan((), (), (), {}), context)
        except LaureproError as error:
            return f"it refuses here: {str(error).splitlines()[0]}"
    expect(failures == [], f"expected an empty list of failures for an empty plan, got {failures!r:.60}")
    return "an empty plan has no failures"


def states(part: Part) -> str:
    """A launcher whose jobs outlive it reports their states; the others leave that to the locks."""
    module = part.module()
    if not hasattr(module, "states"):
        return "none declared"
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = module.states(Path(folder))
        except LaureproError as error:
            return f"it refuses here: {str(error).splitlines()[0]}"
    expect(not found, f"expected nothing for an empty folder, got {found!r:.60}")
    return "none"


def tracker(part: Part) -> str:
    """It is not made here: a tracker may write into a store that others see."""
    made = getattr(part.module(), "Tracker", None)
    told = ("step", "validated", "finished", "close")
    base = isinstance(made, type) and any(c.__module__ == "laurepro.trackers" for c in made.__mro__)
    expect(base, "expected class Tracker(laurepro.trackers.Tracker)")
    overridden = [name for name in told if name in vars(made)]
    expect(bool(overridden), f"Tracker overrides none of {', '.join(told)}: it would show nothing")
    return ", ".join(overridden)
