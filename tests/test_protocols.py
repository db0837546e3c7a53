"""A protocol's name stands for fields, is the same job as the fields written out, and never trains anything again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import ROW, Finished, run_cli

from laurepro import spec
from laurepro.errors import LaureproError
from laurepro.spec.protocols import PROTOCOLS, expanded, name_of


def job(address: str, scale: str = "paper", stage: str = "evaluate", **overrides: Any) -> spec.Job:
    table, _, row = address.partition("/")
    found = spec.tables()[table]
    experiment = spec.resolve(found, found.row(row), spec.scale(scale), overrides or None)
    return spec.Job(stage=stage, scale=scale, seed=0, experiment=experiment)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_name_is_its_fields(name: str) -> None:
    evaluation = spec.Eval(**PROTOCOLS[name])
    assert name_of(evaluation) == name
    assert name_of(evaluation.model_copy(update={"align_corners": False})) is None
    named = job("table3a/encnet-os8-bilinear", eval={"protocol": name})
    written = job("table3a/encnet-os8-bilinear", eval=dict(PROTOCOLS[name]))
    assert named.key == written.key and name_of(named.experiment.eval) == name
    assert named.needs is not None and named.needs.key == job("table3a/encnet-os8-bilinear", stage="train").key


def test_the_papers_rows_are_scored_by_named_protocols() -> None:
    own = {
        "table2/encnet-os8-lau4x-off0.3": "encnet-ss",
        "table3b/encnet-r101-lau4x-off-ss": "encnet-ss",
        "table3b/encnet-r101-lau4x-off-ms": "encnet-ms",
        "table5/encnet-r50-bilinear": "encnet-ms",
        "table6/encnet-r101-lau4x-reg": "encnet-ms",
        "table7/deeplabv3plus-r50-lau4x": "whole",
    }
    for address, name in own.items():
        assert name_of(job(address).experiment.eval) == name, address
        assert job(address, eval={"protocol": name}).key == job(address).key, address
    single = job("table3b/encnet-r101-lau4x-off-ms", eval={"protocol": "encnet-ss"})
    assert single.key == job("table3b/encnet-r101-lau4x-off-ss").key


def test_the_sizes_and_the_split_are_the_recipes() -> None:
    small = job("table5/encnet-r50-bilinear", "smoke", eval={"protocol": "encnet-ms"}).experiment.eval
    assert (small.mode, small.base_size, small.crop_size, small.split) == ("slide", 96, 96, "val")
    large = job("table5/encnet-r50-bilinear", eval={"protocol": "encnet-ss", "split": "train"}).experiment.eval
    assert (large.base_size, large.crop_size, large.split, large.multi_scale) == (520, 480, "train", False)


def test_a_layer_laid_over_another_wins_with_its_name_or_its_fields() -> None:
    own = expanded({"eval": {"protocol": "encnet-ms", "factors": [1.0]}, "train": {}}, "here")
    assert own["eval"]["factors"] == [1.0] and own["eval"]["multi_scale"] is True and own["train"] == {}
    assert expanded({"eval": {"split": "val"}}, "here") == {"eval": {"split": "val"}}
    whole = job("table3b/encnet-r101-lau4x-off-ms", eval={"protocol": "whole"}).experiment.eval
    assert (whole.mode, whole.multi_scale) == ("whole", False)


@pytest.mark.parametrize("name", ["encnet_ms", 3, None])
def test_a_misspelt_protocol(name: Any) -> None:
    with pytest.raises(
        LaureproError, match=r"eval\.protocol.*encnet-ms" if name != "encnet_ms" else "nearest: encnet-ms"
    ):
        job("table3a/encnet-os8-bilinear", eval={"protocol": name})


def test_scoring_a_trained_job_under_another_protocol_trains_nothing(
    finished: Finished, tiny: Path, tmp_path: Path
) -> None:
    for folder in ("results", "runs", "data"):
        shutil.copytree(finished.folder / folder, tmp_path / folder)
    before = {file.name for file in (tmp_path / "results" / "records").glob("*.json")}
    command = (ROW, "--scale", "tiny", "--set", "eval.protocol=encnet-ms")
    planned = json.loads(run_cli("plan", *command, "--format", "json", cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny).out)
    assert [j["stage"] for j in planned["jobs"]] == ["evaluate"] and planned["reused"] == 1
    ran = run_cli("run", *command, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0, ran.err
    [new] = {file.name for file in (tmp_path / "results" / "records").glob("*.json")} - before
    found = json.loads((tmp_path / "results" / "records" / new).read_text())
    assert found["key"] == planned["jobs"][0]["key"] and found["stage"] == "evaluate"
    assert found["experiment"]["eval"]["multi_scale"] is True and found["experiment"]["eval"]["mode"] == "slide"
    assert found["weights_sha256"] == finished.train.weights_sha256
    assert found["confusion"] != [list(row) for row in finished.evaluate.confusion or ()]
