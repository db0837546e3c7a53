"""`laurepro export`: files that other programs run, what is checked before they are written, and what is refused."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from click.testing import CliRunner
from conftest import ROW, Finished, run_cli
from torch import Tensor

from laurepro import spec
from laurepro.commands.export import command
from laurepro.errors import LaureproError
from laurepro.evaluation import export, prediction
from laurepro.network import model

pytestmark = pytest.mark.usefixtures("torch_settings")

Run = Any


@pytest.fixture
def run(finished: Finished, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`laurepro export ARGS` in this process, with the records, weights and data of `finished`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAUREPRO_EXPERIMENTS", str(tiny))
    where = [f"--{name}={finished.folder / name}" for name in ("results", "runs", "data")]
    return lambda *args: CliRunner().invoke(command, [*args, *where])


def test_a_state_dict_and_the_line_that_rebuilds_the_network(finished: Finished, run: Run, tmp_path: Path) -> None:
    ran = run(ROW, "--scale", "tiny", "--format", "state_dict")
    assert ran.exit_code == 0, ran.output
    folder, job = tmp_path / "exports", finished.train.job
    assert {f.name for f in folder.iterdir()} == {f"{job}.pt", f"{job}.json"}
    assert len(re.findall(r"at \d+x\d+: ([\d,]+) of \1 pixels have eager code's class;", ran.output)) == 5
    weights = torch.load(folder / f"{job}.pt", weights_only=True)
    assert all(isinstance(value, Tensor) for value in weights.values())

    about = json.loads((folder / f"{job}.json").read_text())
    record = finished.train
    assert about["class_names"] == list(record.class_names) and about["weights_sha256"] == record.weights_sha256
    assert (about["key"], about["dataset"], about["commit"]) == (record.key, "shapes", record.environment.commit)

    line = re.search(r"in Python: (.*)", ran.output)[1]  # type: ignore[index]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(line, scope := dict[str, Any]())
    trained = prediction.load(record, finished.folder / "runs")
    image = torch.rand(1, 3, 50, 70)
    with torch.no_grad():
        have, want = (n.cpu().predict(image) for n in (scope["network"], trained.network))
    torch.testing.assert_close(have, want, rtol=1e-5, atol=1e-5)
    assert not scope["network"].training

    ran = run(finished.evaluate.key, "--format", "state_dict")  # the same weights under the evaluation's name
    assert ran.exit_code == 0 and (folder / f"{finished.evaluate.job}.pt").is_file()


def test_a_file_that_predicts_other_classes_is_not_written(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    def other(program: export.Program, *_: Any) -> Any:
        weights = dict(program.network.state_dict())
        weights["classifier.bias"] = weights["classifier.bias"].roll(1)
        weights["classifier.weight"] = weights["classifier.weight"].roll(1, 0)
        torch.save(weights, stream := io.BytesIO())
        yield "state_dict", stream.getvalue()

    monkeypatch.setattr(export, "artefacts", other)
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).save(tmp_path / "x.png")
    ran = run(ROW, "--scale", "tiny", "--format", "state_dict", "--check", "x.png")
    assert ran.exit_code == 1 and "DIFFER" in ran.output and "not written, classes differ from eager" in ran.output
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("nothing",), "unknown job 'nothing'"),
        ((ROW.replace("lau4x", "lau9x"), "--scale", "tiny"), "unknown row of table3a:"),
        ((ROW, "--scale", "tiny", "--seed", "3"), "was not trained at scale tiny with seed 3"),
        ((ROW, "--scale", "tiny", "--set", "train.lr=0.3"), f"laurepro run {ROW} --scale tiny --seeds 0-0"),
        (("table6/encnet-r101", "--scale", "tiny"), "is quoted from the literature"),
        (("KEY", "--data", "nowhere", "--check", "none.png"), "no such image: none.png"),
        (("KEY", "--check", "text.png"), "text.png: cannot be read as an image"),
        (("KEY", "--size", "64"), "expected height x width, as in 480x640"),
        (("KEY", "--size", "0x64"), "expected height x width, as in 480x640"),
        (("KEY", "--output", "text.png"), "text.png"),
        (("KEY", "--output", "used"), "JOB.json exists"),
        (("KEY", "--output", "used", "--format", "onnx"), "[layer]'; or without ONNX: --format pt2"),
    ],
)
def test_what_is_refused_before_weights_are_read(
    finished: Finished, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(prediction, "load", lambda *_: pytest.fail("the weights were read"))
    libraries = (*export.ONNX_LIBRARIES, "a_library_that_nobody_has")
    monkeypatch.setattr(export, "ONNX_LIBRARIES", libraries if "onnx" in args else ())
    (tmp_path / "text.png").write_text("no image")
    mine = tmp_path / "used" / f"{finished.train.job}.json"
    mine.parent.mkdir()
    mine.write_text("mine")
    ran = run(*(finished.train.key if arg == "KEY" else arg for arg in args))
    told = ran.output + str(ran.exception)
    assert isinstance(ran.exception, LaureproError) or ran.exit_code == 2, told
    assert said.replace("JOB", finished.train.job) in told and "Traceback" not in told
    assert mine.read_text() == "mine" and not (tmp_path / "exports").exists()


def test_a_record_or_an_image_that_is_read_is_never_replaced(
    finished: Finished, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "load", lambda *_: pytest.fail("the weights were read"))
    shutil.copytree(finished.folder / "results", tmp_path / "copy")
    records = tmp_path / "copy" / "records"
    file = records / f"{finished.train.job}.json"
    before, options = file.read_bytes(), ("--results", "copy", "--overwrite", "--data", str(finished.folder / "data"))
    image = tmp_path / f"{finished.train.job}.pt"
    PIL.Image.new("RGB", (40, 40), "red").save(image, format="PNG")
    for more in (("--output", str(records)), ("--output", ".", "--check", image.name)):
        ran = CliRunner().invoke(command, [finished.train.key, *options, *more, "--format", "state_dict"])
        assert isinstance(ran.exception, LaureproError) and "would replace the input" in str(ran.exception), ran.output
    assert file.read_bytes() == before and image.read_bytes().startswith(b"\x89PNG")


class Scores(torch.nn.Module):
    """Scores of two classes: the first channel of the image, and one number for every pixel."""

    def __init__(self, second: float = 0.0) -> None:
        super().__init__()
        self.second = second

    def forward(self, image: Tensor) -> Tensor:
        return torch.stack([image[:, 0], torch.full_like(image[:, 0], self.second)], 1)


def test_only_equal_scores_may_be_of_another_class() -> None:
    """A difference of a hundredth of a percent of the largest score is rounding; more, and what is NaN, is not."""
    image = np.full((3, 4, 3), 255, np.uint8)
    highest = (1 - model.MEAN[0]) / model.STD[0]

    def changed(*values: float, second: float = 0.0) -> export.Agreement:
        def artefact(pixels: Tensor) -> Tensor:
            scores = Scores(second)(pixels)
            scores[0, 1, 0, : len(values)] = torch.tensor(values)
            return scores

        return export.compared(artefact, Scores(second), image, (3, 4))  # type: ignore[arg-type]

    assert changed()[1:] == (0, 0, 0.0)
    assert changed(highest - 1)[1:3] == (0, 0) and changed(highest + 1, highest + 1)[1:3] == (2, 0)
    assert changed(float("nan"))[1] == 1
    for below, wrong, ties in ((0.5, 0, 1), (2.0, 1, 0)):  # how far the second class is behind, in units of rounding
        second = highest * (1 - below * export.ROUNDING)
        assert changed(highest + 1, second=second)[1:3] == (wrong, ties)


def test_sizes_that_no_stride_divides() -> None:
    for height, width in ((96, 96), (720, 960), (4000, 3000), (20, 500)):
        sizes = export.sizes_of(height, width, 520, 33)
        assert len(set(sizes)) == 5
        assert max(sizes[0]) <= 520 and all(min(size) >= 33 for size in sizes)
        assert all(h % 2 and w % 2 for h, w in sizes[1:])


# ------------------------------------------------------------------------------------------------- programs


@pytest.mark.acceptance
@pytest.mark.timeout(1200)
@pytest.mark.layer
@pytest.mark.imagenet
def test_programs_predict_eagers_classes_on_photographs(finished: Finished, tmp_path: Path) -> None:
    """Of the command, loaded with the libraries alone, at five sizes that it did not check; and at one size."""
    import onnx
    import onnxruntime
    import skimage.data

    photographs = {"coffee": skimage.data.coffee()[::2, ::2], "rocket": skimage.data.rocket()[::2, ::2]}
    for name, pixels in photographs.items():
        PIL.Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    job, folder = finished.train.job, tmp_path / "exports"
    args = ("export", job, "--check", tmp_path / "*.png", "--output", folder)
    ran = run_cli(*args, cwd=finished.folder, timeout=600)
    assert ran.code == 0 and ran.err == "", ran.err
    assert len(re.findall(r"(?:coffee|rocket)\.png at \d+x\d+: [\d,]+ of [\d,]+ pixels", ran.out)) == 15

    held = {"laurepro.json": ""}
    program = torch.export.load(folder / f"{job}.pt2", extra_files=held).module()
    stored = {entry.key: entry.value for entry in onnx.load(folder / f"{job}.onnx").metadata_props}
    about = json.loads(held["laurepro.json"])
    assert about == json.loads((folder / f"{job}.json").read_text())
    assert about["class_names"] == json.loads(stored["class_names"]) == list(finished.train.class_names)
    assert about["mean"] == json.loads(stored["mean"]) and about["std"] == json.loads(stored["std"])
    assert stored["key"] == finished.train.key and stored["dataset"] == "shapes"
    session = onnxruntime.InferenceSession(folder / f"{job}.onnx")

    network = prediction.load(finished.train, finished.folder / "runs").network
    mean, std = (np.array(about[name], np.float32) for name in ("mean", "std"))
    seen = set()
    for height, width in ((96, 96), (75, 131), (200, 33), (64, 160), (9, 250)):
        resized = [PIL.Image.fromarray(p).resize((width, height)) for p in photographs.values()]
        images = ((np.stack(resized).astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
        batch = torch.from_numpy(np.ascontiguousarray(images))
        with torch.no_grad():
            want, by_program = network.predict(batch), program(batch)
        by_onnx = torch.from_numpy(session.run(None, {"image": batch.numpy()})[0])
        two = want.topk(2, 1).values
        clear = two[:, 0] - two[:, 1] > 1e-4 * want.abs().max()
        assert clear.float().mean() > 0.99
        for have in (by_program, by_onnx):
            assert torch.equal(have.argmax(1)[clear], want.argmax(1)[clear])
        seen |= set(want.argmax(1).unique().tolist())
    assert len(seen) > 2

    fixed_size = ("--size", "90x121", "--format", "onnx")
    ran = run_cli(*args[:-1], tmp_path / "fixed", *fixed_size, cwd=finished.folder, timeout=600)
    assert ran.code == 0 and ran.out.count("at 90x121: 10,890 of 10,890 pixels") == 2, ran.out + ran.err
    fixed = onnxruntime.InferenceSession(tmp_path / "fixed" / f"{job}.onnx")
    assert fixed.get_inputs()[0].shape == [1, 3, 90, 121]


def built(row: str) -> tuple[export.Program, spec.Experiment]:
    """The untrained network of a row at scale smoke."""
    table = spec.tables()[row.partition("/")[0]]
    experiment = spec.resolve(table, table.row(row.partition("/")[2]), spec.scale("smoke"))
    torch.manual_seed(0)
    return export.Program(model.build(experiment.model, experiment.op, 8), True).eval(), experiment


@pytest.mark.acceptance
@pytest.mark.parametrize(
    "row", ["table7/deeplabv3plus-r50-lau4x", "table3a/encnet-os32-lau4x-off", "table3a/aspp-os8-bilinear"]
)
def test_programs_of_other_heads_and_strides_hold_for_five_sizes(row: str) -> None:
    program, experiment = built(row)
    noise = np.random.default_rng(0).integers(0, 255, (13, 11, 3), np.uint8)
    image = noise.repeat(9, 0).repeat(12, 1)
    [(_, content)] = export.artefacts(program, ("pt2",), None, {})
    artefact = export.loaded("pt2", content, {}, True)
    for _, pixels, size in export.cases([("noise", image)], None, experiment):
        assert export.compared(artefact, program, pixels, size).wrong == 0


@pytest.mark.acceptance
def test_a_network_without_a_program_for_every_size_says_so_and_has_one_for_a_size() -> None:
    program, _ = built("table9/deeplabv3plus-sapa4x")
    image = np.random.default_rng(0).integers(0, 255, (61, 70, 3), np.uint8)
    [(_, content)] = export.artefacts(program, ("pt2",), (61, 70), {})
    assert export.compared(export.loaded("pt2", content, {}, True), program, image, (61, 70)).wrong == 0
    with pytest.raises(LaureproError, match=r"61x71.*\n.*--size HxW"):
        export.compared(export.loaded("pt2", content, {}, True), program, image, (61, 71))
