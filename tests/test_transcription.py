"""Every row of experiments/table*.yaml against a second transcription of the paper.

The second one is tests/data/published.yaml. Both are read with plain PyYAML and merged by three lines here, so that a
fault of the loader cannot hide a slip. Tables of other sources may be added beside the paper's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"

# id in tests/data/published.yaml -> table/row, in the paper's order
IDS = {
    "t1_bilinear": "table1/encnet-os8-bilinear",
    "t1_off2x": "table1/encnet-os8-lau2x-off",
    "t1_off3x": "table1/encnet-os8-lau3x-off",
    "t1_off4x": "table1/encnet-os8-lau4x-off",
    "t1_off5x": "table1/encnet-os8-lau5x-off",
    "t2_l0.0": "table2/encnet-os8-lau4x-off0.0",
    "t2_l0.1": "table2/encnet-os8-lau4x-off0.1",
    "t2_l0.2": "table2/encnet-os8-lau4x-off0.2",
    "t2_l0.3": "table2/encnet-os8-lau4x-off0.3",
    "t2_l0.4": "table2/encnet-os8-lau4x-off0.4",
    "t3a_enc8_ps2": "table3a/encnet-os8-pixelshuffle2x",
    "t3a_enc8_ps3": "table3a/encnet-os8-pixelshuffle3x",
    "t3a_enc8_ps22": "table3a/encnet-os8-pixelshuffle2x2x",
    "t3a_enc8_bilinear": "table3a/encnet-os8-bilinear",
    "t3a_enc8_off": "table3a/encnet-os8-lau4x-off",
    "t3a_enc32_ps2": "table3a/encnet-os32-pixelshuffle2x",
    "t3a_enc32_bilinear": "table3a/encnet-os32-bilinear",
    "t3a_enc32_off": "table3a/encnet-os32-lau4x-off",
    "t3a_aspp_ps2": "table3a/aspp-os8-pixelshuffle2x",
    "t3a_aspp_bilinear": "table3a/aspp-os8-bilinear",
    "t3a_aspp_off": "table3a/aspp-os8-lau4x-off",
    "t3b_ccl": "table3b/ccl-r101",
    "t3b_dup65": "table3b/dupsampling-x65",
    "t3b_dup71": "table3b/dupsampling-x71",
    "t3b_danet": "table3b/danet-r101",
    "t3b_hrnet": "table3b/hrnet-w48",
    "t3b_jpu": "table3b/jpu-r101",
    "t3b_bfp": "table3b/bfp-r101",
    "t3b_encnet": "table3b/encnet-r101-bilinear-ms",
    "t3b_off_ms": "table3b/encnet-r101-lau4x-off-ms",
    "t3b_off_ss": "table3b/encnet-r101-lau4x-off-ss",
    "t3b_reg_ms": "table3b/encnet-r101-lau4x-reg-ms",
    "t3b_reg_ss": "table3b/encnet-r101-lau4x-reg-ss",
    "t4_enc32_dcn": "table4/encnet-os32-deformable",
    "t4_enc32_lau": "table4/encnet-os32-lau4x",
    "t4_enc32_off": "table4/encnet-os32-lau4x-off",
    "t4_enc8_dcn": "table4/encnet-os8-deformable",
    "t4_enc8_lau": "table4/encnet-os8-lau4x",
    "t4_enc8_off": "table4/encnet-os8-lau4x-off",
    "t4_aspp_dcn": "table4/aspp-os8-deformable",
    "t4_aspp_lau": "table4/aspp-os8-lau4x",
    "t4_aspp_off": "table4/aspp-os8-lau4x-off",
    "t5_enc50": "table5/encnet-r50-bilinear",
    "t5_off50": "table5/encnet-r50-lau4x-off",
    "t5_reg50": "table5/encnet-r50-lau4x-reg",
    "t5_hrnet": "table5/hrnet-w48",
    "t5_psp152": "table5/pspnet-r152",
    "t5_enc101": "table5/encnet-r101-bilinear",
    "t5_psp269": "table5/pspnet-r269",
    "t5_off101": "table5/encnet-r101-lau4x-off",
    "t5_reg101": "table5/encnet-r101-lau4x-reg",
    "t6_psp269": "table6/pspnet-r269",
    "t6_winter": "table6/winteriscoming",
    "t6_casia": "table6/casia-iva-jd",
    "t6_enc101": "table6/encnet-r101",
    "t6_jpu101": "table6/jpu-r101",
    "t6_off101": "table6/encnet-r101-lau4x-off",
    "t6_reg101": "table6/encnet-r101-lau4x-reg",
    "t7_bil50": "table7/deeplabv3plus-r50-bilinear",
    "t7_lau50": "table7/deeplabv3plus-r50-lau4x",
    "t7_bil101": "table7/deeplabv3plus-r101-bilinear",
    "t7_lau101": "table7/deeplabv3plus-r101-lau4x",
    "t8_enc8_50_bil": "table8/encnet-os8-r50-bilinear",
    "t8_enc8_50_lau": "table8/encnet-os8-r50-lau4x",
    "t8_enc32_50_bil": "table8/encnet-os32-r50-bilinear",
    "t8_enc32_50_lau": "table8/encnet-os32-r50-lau4x",
    "t8_enc8_101_bil": "table8/encnet-os8-r101-bilinear",
    "t8_enc8_101_lau": "table8/encnet-os8-r101-lau4x",
    "t8_enc32_101_bil": "table8/encnet-os32-r101-bilinear",
    "t8_enc32_101_lau": "table8/encnet-os32-r101-lau4x",
    "t8_aspp_50_bil": "table8/aspp-os8-r50-bilinear",
    "t8_aspp_50_lau": "table8/aspp-os8-r50-lau4x",
    "t8_aspp_101_bil": "table8/aspp-os8-r101-bilinear",
    "t8_aspp_101_lau": "table8/aspp-os8-r101-lau4x",
}
CONTROLS = {"table3a/encnet-os8-grid4x"}

DATASETS = {"pcontext": "pascal_context", "ade20k": "ade20k", "voc2012": "voc2012_aug", None: None}
METRICS: dict[str, tuple[str, float | None]] = {  # None: the value as it is
    "miou60": ("miou60", None),
    "miou": ("miou", None),
    "pixacc": ("pixacc", None),
    "final": ("final_score", None),
    "fps": ("fps", None),
    "params_M": ("params", 1e6),
    "flops_G": ("macs", 1e9),
    "d_params_M": ("d_params", 1e6),
    "d_flops_G": ("d_macs", 1e9),
}
HEADS = {"encnet": "EncNet", "encnet_jpu": "EncNet + JPU"}  # as a quoted row's `method` names them
BACKBONES = {
    "resnet101": "ResNet-101",
    "resnet152": "ResNet-152",
    "resnet269": "ResNet-269",
    "xception65": "Xception-65",
    "xception71": "Xception-71",
    "hrnetv2_w48": "HRNetV2-W48",
    None: None,
}
UPSAMPLERS: dict[str, dict[str, Any]] = {
    "bilinear": {"kind": "bilinear"},
    "bilinear4x": {"kind": "bilinear"},
    "bilinear8x": {"kind": "bilinear"},
    "bilinear32x": {"kind": "bilinear"},
    "lau2x": {"kind": "lau", "scale_factor": 2},
    "lau3x": {"kind": "lau", "scale_factor": 3},
    "lau4x": {"kind": "lau", "scale_factor": 4},
    "lau5x": {"kind": "lau", "scale_factor": 5},
    "pixelshuffle2x": {"kind": "pixelshuffle", "factors": [2]},
    "pixelshuffle3x": {"kind": "pixelshuffle", "factors": [3]},
    "pixelshuffle2x2x": {"kind": "pixelshuffle", "factors": [2, 2]},
    "deformable_bilinear": {"kind": "deformable"},
}

TABLE_KEYS = {"title", "source", "metrics", "protocol", "defaults", "rows"}
ROW_KEYS = {"id", "label", "origin", "published", "set", "rerun", "confidence", "note", "protocol"}
ROW_KEYS |= {"method", "init_from"}


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Mappings merge, a mapping with `kind` replaces, anything else replaces."""
    both = {
        k for k in above if isinstance(above[k], dict) and isinstance(below.get(k), dict) and "kind" not in above[k]
    }
    return {**below, **above, **{k: merge(below[k], above[k]) for k in both}}


PAPER = {row["id"]: row for row in read(ROOT / "tests/data/published.yaml")}
EVERY = {file.stem: read(file) for file in sorted(EXPERIMENTS.glob("table*.yaml"))}
TABLES = {name: content for name, content in EVERY.items() if "1911.05250" in content["source"]["paper"]}
ROWS = {f"{table}/{row['id']}": row for table, content in TABLES.items() for row in content["rows"]}


def effective(address: str) -> dict[str, Any]:
    """The experiment of a row: recipe, then the table's defaults, then the row's `set`."""
    defaults = dict(TABLES[address.split("/")[0]]["defaults"])
    recipe = read(EXPERIMENTS / "recipes" / f"{defaults.pop('recipe')}.yaml")
    return merge({"loss": {"kind": "cross_entropy"}}, merge(merge(recipe, defaults), ROWS[address]["set"]))


def runnable(paper: dict[str, Any]) -> bool:
    return paper["origin"] == "authors" or paper.get("rerun", False)


def expected_loss(paper: dict[str, Any]) -> dict[str, Any]:
    kind, is_lau = paper.get("loss", "none"), paper["up"].startswith("lau")
    if kind == "off":
        return {"kind": "offset_guided", "offset_weight": paper["lambda"]}
    if kind == "reg":
        gamma = paper["gamma"]
        return {"kind": "offset_regression", "offset_weight": paper["lambda"], "regression_weight": gamma}
    assert kind == "none"
    if is_lau and paper["head"] != "deeplabv3plus":  # LaU of the logits without loss: lambda 0
        assert paper.get("lambda", 0.0) == 0.0
        return {"kind": "offset_guided", "offset_weight": 0.0}
    return {"kind": "cross_entropy"}


def test_no_row_is_missing_or_too_many() -> None:
    assert len(PAPER) == len(set(IDS.values())) == 74
    assert list(PAPER) == list(IDS), "the second transcription and the dictionary above list the same rows"
    addresses = [f"{table}/{row['id']}" for table, content in TABLES.items() for row in content["rows"]]
    assert len(addresses) == len(set(addresses)) == 75
    assert set(addresses) - set(IDS.values()) == CONTROLS
    assert [a for a in addresses if a not in CONTROLS] == list(IDS.values()), "rows stand in the paper's order"
    for name, address in IDS.items():
        assert address.startswith(f"table{PAPER[name]['table']}/")


@pytest.mark.parametrize("table", TABLES)
def test_only_known_keys(table: str) -> None:
    content = TABLES[table]
    assert set(content) == TABLE_KEYS
    assert set(content["source"]) == {"paper", "where"}
    assert content["source"]["where"].startswith(f"Table {table.removeprefix('table')}")
    for row in content["rows"]:
        assert {"id", "label", "origin", "published"} <= set(row) <= ROW_KEYS, row["id"]
        assert set(row["published"]) <= set(content["metrics"]), row["id"]
        assert "set" not in row or "method" not in row, row["id"]
    labels = [row["label"] for row in content["rows"]]
    assert len(labels) == len(set(labels))
    used = {metric for row in content["rows"] for metric in row["published"]}
    assert used == set(content["metrics"])


@pytest.mark.parametrize("name", IDS)
def test_published_numbers(name: str) -> None:
    paper, row = PAPER[name], ROWS[IDS[name]]
    expected = {}
    for printed, value in paper["metrics"].items():
        metric, unit = METRICS[printed]
        expected[metric] = value if unit is None or value is None else round(value * unit)
    found = {m: c["value"] if isinstance(c, dict) else c for m, c in row["published"].items()}
    assert found == expected

    assert row["origin"] == paper["origin"]
    assert row.get("confidence") == paper.get("conf")
    assert row.get("rerun", False) == paper.get("rerun", False)
    assert "note" in row or "note" not in paper, "a remark of the second transcription has a note here"
    for metric, cell in row["published"].items():
        if isinstance(cell, dict):  # Table 1 prints one quoted and two measured numbers in its first row
            assert (name, cell["origin"], cell["confidence"]) == ("t1_bilinear", "authors", "high")
            assert metric in ("params", "macs") and "ASPP" in cell["note"]


@pytest.mark.parametrize("name", IDS)
def test_protocol(name: str) -> None:
    paper, address = PAPER[name], IDS[name]
    protocol = {**TABLES[address.split("/")[0]]["protocol"], **ROWS[address].get("protocol", {})}
    split = paper.get("split", "val") if paper["dataset"] else None
    expected = {"dataset": DATASETS[paper["dataset"]], "split": split, "multi_scale": paper.get("ms", False)}
    assert protocol == expected
    if runnable(paper) and paper["dataset"]:
        experiment = effective(address)
        run = experiment["eval"]
        assert {
            "dataset": experiment["data"]["name"],
            "split": run["split"],
            "multi_scale": run["multi_scale"],
        } == protocol


@pytest.mark.parametrize("name", IDS)
def test_experiment(name: str) -> None:
    paper, address = PAPER[name], IDS[name]
    row = ROWS[address]
    assert ("set" in row) == runnable(paper)
    if not runnable(paper):
        method = {"head": HEADS.get(paper["head"], paper["head"]), "backbone": BACKBONES[paper["backbone"]]}
        assert row["method"] == method
        assert "init_from" not in row
        return

    experiment = effective(address)
    model = experiment["model"]
    head = {"kind": paper["head"]}
    if paper["table"] == "3b":  # the released ResNet-101 script for PASCAL Context, and no other
        head["lateral"] = True
    assert model["backbone"] == {"kind": paper["backbone"]}
    assert model["output_stride"] == paper["os"]
    assert model["head"] == head
    upsampler = dict(UPSAMPLERS[paper["up"]])
    if upsampler["kind"] == "lau" and paper["backbone"] == "resnet101":  # likewise; 128, the default, elsewhere
        upsampler["bottleneck_channels"] = 64
    assert model["upsampler"] == upsampler
    factor = re.fullmatch(r"bilinear(\d+)x", paper["up"])
    if factor:  # of DeepLabv3+ the decoder's: from stride 16 to stride 4
        assert int(factor[1]) == (4 if paper["head"] == "deeplabv3plus" else paper["os"])
    assert model["aux"] is (paper["head"] != "deeplabv3plus" and paper["table"] != 8)
    assert experiment["loss"] == expected_loss(paper)
    start = IDS[paper["init_from"]] if "init_from" in paper else None
    assert row.get("init_from") == start


def test_control_row() -> None:
    row = ROWS["table3a/encnet-os8-grid4x"]
    lau = effective("table3a/encnet-os8-lau4x-off")
    assert (row["origin"], row["published"]) == ("control", {})
    assert "not in the paper" in row["note"]
    change = {
        "model": {"upsampler": {"kind": "grid", "scale_factor": 4}},
        "loss": {"kind": "offset_guided", "offset_weight": 0.0},
    }
    assert effective("table3a/encnet-os8-grid4x") == merge(lau, change)


def test_schedules() -> None:
    """Section 4.1 of the paper: what every row trains, by table."""

    def schedule(address: str) -> tuple[Any, ...]:
        experiment = effective(address)
        train, data = experiment["train"], experiment["data"]
        length = {k: train[k] for k in ("epochs", "iterations", "phases") if k in train}
        assert (train["momentum"], train["weight_decay"], train["power"]) == (0.9, 0.0001, 0.9)
        assert (train["head_lr_multiplier"], train["offset_lr_multiplier"]) == (10.0, 10.0)
        assert train["offset_weight_decay"] == 0.0
        assert data["augment"]["short_side"] == [0.5, 2.0]
        assert (data["augment"]["hflip"], data["augment"]["vflip"]) == (True, False)
        return (
            length,
            train["lr"],
            train["batch_size"],
            data["train_split"],
            data["base_size"],
            data["crop_size"],
        )

    twice = [{"iterations": 30000, "lr": 0.007}, {"iterations": 30000, "lr": 0.001}]
    expected = {
        "table5": ({"epochs": 180}, 0.004, 16, "train", 520, 480),
        "table6": ({"epochs": 30}, 0.0004, 16, "trainval", 520, 480),
        "table7-r50": ({"iterations": 30000}, 0.007, 48, "trainaug", 520, 513),
        "table7-r101": ({"phases": twice}, 0.007, 48, "trainaug", 520, 513),
    }
    context = ({"epochs": 80}, 0.001, 16, "train", 520, 480)
    for address, row in ROWS.items():
        if "set" in row:
            table = address.split("/")[0]
            depth = ("-r101" if "r101" in address else "-r50") if table == "table7" else ""
            assert schedule(address) == expected.get(table + depth, context), address


def test_profiled_size() -> None:
    """Table 8's caption says 512 x 512; the cost added in Table 1 is that of a 480 x 480 image."""
    for table, size in (("table1", 480), ("table8", 512)):
        for row in TABLES[table]["rows"]:
            assert effective(f"{table}/{row['id']}")["profile"] == {"height": size, "width": size}


def test_what_is_trained_once() -> None:
    """Rows that share an experiment, counted with no help of the planner: 38 trainings, 40 evaluations."""
    trainings: dict[str, set[str]] = {}
    evaluations: dict[str, set[str]] = {}
    for name, address in IDS.items():
        if runnable(PAPER[name]) and PAPER[name]["dataset"]:
            experiment = effective(address)
            parts = [experiment[k] for k in ("model", "loss", "data", "train")]
            parts.append(ROWS[address].get("init_from"))
            trainings.setdefault(json.dumps(parts, sort_keys=True), set()).add(name)
            parts.append(experiment["eval"])
            evaluations.setdefault(json.dumps(parts, sort_keys=True), set()).add(name)
    assert (len(trainings), len(evaluations)) == (38, 40)
    assert sum(PAPER[min(names)].get("split") == "test" for names in evaluations.values()) == 2
    assert {frozenset(names) for names in trainings.values() if len(names) > 1} == {
        frozenset({"t1_off4x", "t2_l0.3", "t3a_enc8_off", "t4_enc8_off"}),
        frozenset({"t2_l0.0", "t4_enc8_lau"}),
        frozenset({"t1_bilinear", "t3a_enc8_bilinear"}),
        frozenset({"t3a_enc32_off", "t4_enc32_off"}),
        frozenset({"t3a_aspp_off", "t4_aspp_off"}),
        frozenset({"t3b_off_ms", "t3b_off_ss"}),
        frozenset({"t3b_reg_ms", "t3b_reg_ss"}),
    }


@pytest.mark.parametrize("name", ["pascal_context", "ade20k", "voc2012_aug"])
def test_recipe(name: str) -> None:
    recipe = read(EXPERIMENTS / "recipes" / f"{name}.yaml")
    assert set(recipe) == {"data", "train", "eval", "model"}
    assert recipe["data"]["name"] == name
    assert set(recipe["model"]) <= {"aux", "aux_lau", "norm_init"}, "head, upsampler and loss belong to the tables"
    assert recipe["model"]["norm_init"] == "uniform"
