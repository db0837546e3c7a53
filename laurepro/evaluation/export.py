"""A trained network as files that other programs run: a state dict, a torch.export program, ONNX.

Both programs map a normalised image to the scores of the classes at the image's size, in one forward pass and in
float32: `Network.predict`, which protocol `whole` uses. Each artefact is compared with eager code before it is written.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn

from laurepro import __version__, spec
from laurepro.datasets import Image
from laurepro.errors import LaureproError, install
from laurepro.evaluation.inference import scaled_size
from laurepro.evaluation.prediction import Trained
from laurepro.network import checkpoint, model
from laurepro.record import Record

SUFFIXES = {"state_dict": ".pt", "pt2": ".pt2", "onnx": ".onnx"}  # of the formats' files
ONNX_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
METADATA = "laurepro.json"  # in a .pt2: extra_files of torch.export.load
# Height and width of the five checks, as shares of the photograph's. All but the first are rounded to odd numbers,
# which no stride divides.
SHARES = ((1.0, 1.0), (0.75, 0.75), (0.5, 0.8), (1.2, 0.6), (0.9, 1.3))
ROUNDING = 1e-4  # of the largest score of an image: scores that differ by less are tied

Size = tuple[int, int]  # height, width
Predict = Callable[[Tensor], Tensor]  # image [N, 3, H, W] to scores [N, n, H, W]


class Program(nn.Module):
    """What is exported: a network's prediction of whole images."""

    def __init__(self, network: model.Network, align_corners: bool) -> None:
        super().__init__()
        self.network = network
        self.align_corners = align_corners

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images [N, 3, H, W] to scores [N, n, H, W]."""
        return self.network.predict(image, align_corners=self.align_corners)


class Agreement(NamedTuple):
    """How far an artefact agrees with eager code on one image.

    Attributes:
        size: height and width of the image.
        wrong: pixels of another class whose two scores are no tie in eager code.
        ties: pixels of another class whose two scores are.
        largest: difference of any score, as a share of the image's largest.
    """

    size: Size
    wrong: int
    ties: int
    largest: float

    def __str__(self) -> str:
        pixels = self.size[0] * self.size[1]
        words = f"{pixels - self.wrong - self.ties:,} of {pixels:,} pixels have eager code's class"
        words += f", {self.ties} are rounding ties" if self.ties else ""
        words += f", {self.wrong} DIFFER" if self.wrong else ""
        return f"{words}; scores differ by at most {self.largest:.0e} of the largest"


def program_of(trained: Trained) -> Program:
    """The network's prediction, on the CPU, in float32 and contiguous, as an artefact holds it."""
    network = trained.network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    network.autocast = None
    return Program(network, trained.evaluation.align_corners).eval()


def metadata(stored: Record, program: Program, size: Size | None) -> dict[str, Any]:
    """What a user of an artefact must know: classes, normalisation, sizes, and where the weights come from."""
    experiment = stored.experiment
    smallest = experiment.model.output_stride + 1
    return {
        "class_names": list(stored.class_names),
        "mean": list(model.MEAN),
        "std": list(model.STD),
        "input": "image: float32 [N, 3, H, W], RGB divided by 255, minus mean, divided by std",
        "output": "logits: float32 [N, classes, H, W]; a pixel's class is the index of the largest",
        "align_corners": program.align_corners,
        "size": f"any from {smallest} x {smallest}" if size is None else list(size),
        "dataset": stored.dataset,
        "data_sha256": stored.data_sha256,
        "job": stored.job,
        "key": stored.key,
        "commit": stored.environment.commit,
        "weights_sha256": checkpoint.weights_sha256(program.network.state_dict()),
        "laurepro": __version__,
        "model": experiment.model.model_dump(mode="json"),
        "op": experiment.op.model_dump(mode="json"),
    }


def as_json(about: dict[str, Any]) -> str:
    """The metadata as the text of a file."""
    return json.dumps(about, indent=1) + "\n"


def rebuild_line(stem: str) -> str:
    """Python that builds the network of STEM.json and loads STEM.pt into it."""
    return (
        "import json, torch; from laurepro import spec; from laurepro.network.model import build; "
        f"about = json.load(open({stem + '.json'!r})); "
        'network = build(spec.Model(**about["model"]), spec.Op(**about["op"]), len(about["class_names"])); '
        f"network.load_state_dict(torch.load({stem + '.pt'!r}, weights_only=True)); network.eval()"
    )


def check_libraries(formats: tuple[str, ...]) -> None:
    """Raise LaureproError where a format's libraries are not installed."""
    missing = [name for name in ONNX_LIBRARIES if find_spec(name) is None]
    if "onnx" in formats and missing:
        others = " ".join(f"--format {name}" for name in formats if name != "onnx") or "--format pt2"
        raise LaureproError(
            f"--format onnx needs {', '.join(missing)}", f"{install('layer')}; or without ONNX: {others}"
        )


# -------------------------------------------------------------------------------------------------- artefacts


def artefacts(
    program: Program, formats: tuple[str, ...], size: Size | None, about: dict[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """Yield each format and the content of its file.

    Args:
        program: of `program_of`.
        formats: of `SUFFIXES`.
        size: of the images, one at a time; None: any number of images of any size.
        about: of `metadata`.

    Raises:
        LaureproError: the network cannot be exported.
    """
    exported = None
    for name in formats:
        if name == "state_dict":
            buffer = io.BytesIO()
            torch.save(program.network.state_dict(), buffer)
            yield name, buffer.getvalue()
            continue
        try:
            with _quiet():
                exported = exported or _exported(program, size)
                yield name, _pt2(exported, about) if name == "pt2" else _onnx(exported, about)
        except LaureproError:
            raise
        except Exception as error:  # what the exporters raise on what they cannot do has no common type
            raise LaureproError(f"{name}: this network cannot be exported: {_first_line(error)}", _hint(size)) from None


def _exported(program: Program, size: Size | None) -> torch.export.ExportedProgram:
    if size is not None:
        return torch.export.export(program, (torch.zeros(1, 3, *size),))
    dynamic = torch.export.Dim.DYNAMIC
    # Sides above every stride and equal to no other number, so that nothing of the program is tied to the example.
    example = torch.zeros(2, 3, 97, 115)
    return torch.export.export(program, (example,), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},))


def _pt2(exported: torch.export.ExportedProgram, about: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(exported, buffer, extra_files={METADATA: json.dumps(about)})
    return buffer.getvalue()


def _onnx(exported: torch.export.ExportedProgram, about: dict[str, Any]) -> bytes:
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    written = torch.onnx.export(exported, (), dynamo=True, external_data=False, verbose=False, **names)
    assert written is not None
    proto = written.model_proto
    for key, value in about.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    content: bytes = proto.SerializeToString()
    return content


def loaded(name: str, content: bytes, about: dict[str, Any], align_corners: bool) -> Predict:
    """An artefact as its user runs it: loaded from the bytes of its file; a state dict as `rebuild_line` does.

    Raises:
        LaureproError: it cannot be loaded, as an operator that ONNX Runtime lacks.
    """
    if name == "state_dict":
        stated = json.loads(json.dumps(about))
        network = model.build(spec.Model(**stated["model"]), spec.Op(**stated["op"]), len(stated["class_names"]))
        network.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
        return Program(network, align_corners).eval()
    try:
        with _quiet():
            if name == "pt2":
                return torch.export.load(io.BytesIO(content)).module()
            import onnxruntime

            session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # of another library
        raise LaureproError(
            f"{name}: the file cannot be loaded: {_first_line(error)}", "choose other formats with --format"
        ) from None
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def _hint(size: Size | None) -> str:
    return "give one size: --size HxW" if size is None else "choose other formats with --format"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' warnings, none of which a user can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


# -------------------------------------------------------------------------------------------------- agreement


def sizes_of(height: int, width: int, long: int, smallest: int) -> list[Size]:
    """The five sizes at which a photograph is compared: shares of its own, with the long side at most `long` pixels."""
    base = (height, width) if max(height, width) <= long else scaled_size(height, width, long)
    sides = [[max(round(share * n), smallest) for share, n in zip(shares, base, strict=True)] for shares in SHARES]
    return [(h, w) if shares == (1.0, 1.0) else (h | 1, w | 1) for shares, (h, w) in zip(SHARES, sides, strict=True)]


def cases(
    images: list[tuple[str, Image]], size: Size | None, experiment: spec.Experiment
) -> list[tuple[str, Image, Size]]:
    """Which images are compared at which sizes: each at least once, and all five sizes; or each at the one size.

    Args:
        images: name and pixels uint8 [H, W, 3].
        size: of a program for one size, or None.
        experiment: whose evaluation's `base_size` bounds the sizes, and whose output stride is below them.
    """
    if size is not None:
        return [(name, image, size) for name, image in images]
    chosen = []
    for index in range(max(len(SHARES), len(images))):
        name, image = images[index % len(images)]
        height, width = image.shape[:2]
        sizes = sizes_of(height, width, experiment.eval.base_size, experiment.model.output_stride + 1)
        chosen.append((name, image, sizes[index % len(sizes)]))
    return chosen


def compared(artefact: Predict, program: Program, image: Image, size: Size) -> Agreement:
    """Compare an artefact with eager code on an image uint8 [H, W, 3], resized to `size`.

    Raises:
        LaureproError: eager code gives no finite scores, or the artefact does not run on this size.
    """
    resized = PIL.Image.fromarray(image).resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR)
    pixels = model.normalise(torch.from_numpy(np.array(resized))[None]).contiguous()
    with torch.no_grad():
        want = program(pixels)[0]
        try:
            have = artefact(pixels)[0]
        except Exception as error:  # of another library, or a guard of the program
            raise LaureproError(
                f"does not run on {size[0]}x{size[1]}: {_first_line(error)}", "try --size HxW"
            ) from None
    if not want.isfinite().all():
        raise LaureproError("the network's scores are not finite: its weights are broken")
    highest, classes = want.max(0)
    chosen = have.argmax(0)
    differs = chosen != classes
    tied = highest - want.gather(0, chosen[None])[0] <= ROUNDING * float(want.abs().max())
    wrong = int((differs & ~tied | ~have.isfinite().all(0)).sum())
    largest = float((have - want).abs().max() / want.abs().max().clamp(min=torch.finfo(want.dtype).tiny))
    return Agreement(size, wrong, int((differs & tied).sum()), largest)
