"""Reading table files, merging, the canonical form and the keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laurepro import spec
from laurepro.errors import LaureproError
from laurepro.spec import Experiment, Job, merge, parts

# ------------------------------------------------------------------------------------------------ YAML


def test_duplicate_key_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("first: 1\nsecond:\n  inner: 1\n  other: 2\n  inner: 3\n")
    with pytest.raises(LaureproError) as error:
        spec.read_yaml(file)
    assert f"{file}, line 5" in str(error.value) and "'inner'" in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("-2E+3", -2000.0), ("1.e3", 1000.0), ("5e0", 5.0), ("+3e2", 300.0), ("1.5e3", 1500.0)],
)
def test_yaml_1_2_floats(tmp_path: Path, text: str, value: float) -> None:
    (tmp_path / "a.yaml").write_text(f"x: {text}\n")
    found = spec.read_yaml(tmp_path / "a.yaml")["x"]
    assert found == value and isinstance(found, float)


@pytest.mark.parametrize(("text", "value"), [("e4", "e4"), ("1e", "1e"), ("12", 12), ("r50", "r50"), ("'1e4'", "1e4")])
def test_what_is_no_float_stays(tmp_path: Path, text: str, value: object) -> None:
    (tmp_path / "a.yaml").write_text(f"x: {text}\n")
    found = spec.read_yaml(tmp_path / "a.yaml")["x"]
    assert found == value and type(found) is type(value)


def test_bad_yaml_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: 1\nb: [1, 2\nc: 3\n")
    with pytest.raises(LaureproError, match=r"a\.yaml, line [234]: not valid YAML"):
        spec.read_yaml(file)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(LaureproError, match=r"none\.yaml: cannot be read"):
        spec.read_yaml(tmp_path / "none.yaml")


# --------------------------------------------------------------------------------------- broken table files

TABLE = "table3a.yaml"
PIXEL = "{kind: pixelshuffle, factors: [3]}"
LAU = "upsampler: {kind: lau, scale_factor: 4}}, loss: {kind: offset_guided"


def resolve_all(scale: str = "smoke") -> None:
    for table in spec.tables().values():
        for row in table.rows:
            if row.set is not None:
                spec.resolve(table, row, spec.scale(scale))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rerun: true", "rerunn: true", ["row 'encnet-os8-bilinear'", "unknown key 'rerunn'", "nearest: rerun"]),
        ("defaults:", "defalts:", ["unknown key 'defalts'", "nearest: defaults"]),
        ("output_stride: 8", "output_strid: 8", ["model", "'output_strid'", "nearest: output_stride"]),
        ("output_stride: 32", "output_stride: 31", ["row 'encnet-os32-pixelshuffle2x'", "model.output_stride", "31"]),
        ("rerun: true", "rerun: perhaps", ["row 'encnet-os8-bilinear'", "rerun", "'perhaps'"]),
        ("offset_weight: 0.3", "offset_weight: much", ["loss.offset_weight", "'much'"]),
        ("offset_weight: 0.3", "offset_weight: -0.3", ["loss.offset_weight", "-0.3"]),
        ("offset_weight: 0.3", "offset_wieght: 0.3", ["'offset_wieght'", "nearest: offset_weight"]),
        ("metrics: [miou60]", "metrics: [miou6]", ["metrics", "unknown metric 'miou6'", "miou60"]),
        ("{miou60: 43.4}", "{mio60: 43.4}", ["row 'encnet-os8-pixelshuffle2x'", "'mio60'", "nearest: miou60"]),
        ("{miou60: 43.4}", "{miou60: high}", ["row 'encnet-os8-pixelshuffle2x'", "published.miou60", "'high'"]),
        ("{miou60: 43.4}", "43.4", ["row 'encnet-os8-pixelshuffle2x'", "published", "43.4"]),
        ("id: aspp-os8-bilinear", "id: aspp-os8-lau4x-off", ["'aspp-os8-lau4x-off'", "twice"]),
        ("id: aspp-os8-bilinear", "id: ASPP OS8", ["row 'ASPP OS8'", "id"]),
        ("origin: quoted", "origin: qouted", ["row 'encnet-os8-bilinear'", "origin", "'qouted'"]),
        (PIXEL, "{kind: pixelshufle}", ["row 'encnet-os8-pixelshuffle3x'", "'pixelshufle'", "nearest: pixelshuffle"]),
        (PIXEL, "{kind: pixelshuffle, factor: [3]}", ["'encnet-os8-pixelshuffle3x'", "'factor'", "nearest: factors"]),
        (PIXEL, "{kind: pixelshuffle, factors: [x]}", ["'encnet-os8-pixelshuffle3x'", "factors", "'x'"]),
        (PIXEL, "{factors: [3]}", ["row 'encnet-os8-pixelshuffle3x'", "'factors'"]),
        ("head: {kind: aspp}", "head: {kind: aspq}", ["row 'aspp-os8-pixelshuffle2x'", "'aspq'", "nearest: aspp"]),
        ("kind: offset_guided", "kind: offset_giuded", ["loss.kind", "'offset_giuded'"]),
        (LAU, LAU.replace("{kind: lau, scale_factor: 4}", "{kind: bilinear}"), ["needs an upsampler", "'bilinear'"]),
        ("title:", "id: mine\ntitle:", ["unknown key 'id'"]),
        ("rows:", "rows: 3\nmore:", ["rows", "3"]),
        ("    set: {}", "    set: {model: 3}", ["row 'encnet-os8-bilinear'", "model", "3"]),
        ("    set: {}", "    set: {data: {nam: x}}", ["row 'encnet-os8-bilinear'", "data", "nearest: name"]),
        ("    set: {}", "    set: {}\n    init_from: table3/x", ["'encnet-os8-bilinear'", "init_from", "'table3'"]),
        ("    set: {}", "    set: {}\n    init_from: table3a/x", ["unknown row", "'x'"]),
        ("    set: {}", "    set: {}\n    init_from: table3a/encnet-os8-bilinear", ["init_from", "circular"]),
        ("    set: {}", "    set: {}\n    baseline: nosuch", ["baseline", "unknown other row of table3a: 'nosuch'"]),
        ("title:", "title: again\ntitle:", ["line 2", "duplicate key 'title'"]),
    ],
)
def test_broken_table_is_an_error_that_says_where(experiments: Path, old: str, new: str, said: list[str]) -> None:
    file = experiments / TABLE
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(LaureproError) as error:
        resolve_all()
    assert [s for s in [str(file), *said] if s not in str(error.value)] == [], str(error.value)


def test_misspelt_recipe(experiments: Path) -> None:
    file = experiments / TABLE
    file.write_text(file.read_text().replace("recipe: pascal_context", "recipe: pascal_contxt"))
    with pytest.raises(LaureproError, match=r"unknown recipe 'pascal_contxt'\n.*nearest: pascal_context"):
        resolve_all("paper")


@pytest.mark.parametrize("text", ["", "[]", "3", "text"])
@pytest.mark.parametrize("name", ["table3a.yaml", "scales/smoke.yaml", "recipes/pascal_context.yaml"])
def test_a_file_that_is_no_mapping_is_named(experiments: Path, name: str, text: str) -> None:
    (experiments / name).write_text(text)
    with pytest.raises(LaureproError) as error:
        resolve_all("smoke" if "smoke" in name else "paper")
    assert str(experiments / name) in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds: 1", "seed: 1", ["'seed'", "nearest: seeds"]),
        ("seeds: 1", "seeds: 0", ["seeds", "0"]),
        ("  head:", "  heads:", ["adapt", "heads"]),
        ("{width: 16, blocks: [1, 1, 1, 1]}", "{widht: 16}", ["'widht'", "nearest: width"]),
    ],
)
def test_broken_scale(experiments: Path, old: str, new: str, said: list[str]) -> None:
    file = experiments / "scales" / "smoke.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(LaureproError) as error:
        resolve_all()
    assert [s for s in ["smoke", *said] if s not in str(error.value)] == [], str(error.value)


# -------------------------------------------------------------------------------------------------- merge

values = st.integers() | st.text(max_size=3) | st.none() | st.lists(st.integers(), max_size=2)
keys = st.sampled_from("abcd")
anything = st.recursive(values, lambda inner: st.dictionaries(keys | st.just("kind"), inner, max_size=3))
mappings = st.dictionaries(keys | st.just("kind"), anything, max_size=4)
# a field is a mapping in every layer or in none, and there is no `kind`: what the layers of one experiment are
leaves = st.dictionaries(st.sampled_from(["v", "w"]), values, max_size=2)
inner = st.builds(lambda m, n: m | n, leaves, st.fixed_dictionaries({}, optional={"m": leaves, "n": leaves}))
layers = st.builds(lambda m, n: m | n, leaves, st.fixed_dictionaries({}, optional={"m": inner, "n": inner}))


@given(mappings)
def test_merge_with_itself_or_nothing_is_itself(a: dict[str, Any]) -> None:
    assert merge(a, a) == a == merge(a, {}) == merge({}, a)


@given(mappings, mappings)
def test_merge_twice_is_once(a: dict[str, Any], b: dict[str, Any]) -> None:
    once = merge(a, b)
    assert merge(once, b) == once
    assert set(once) == set(a) | set(b)
    for key in b:
        if not isinstance(b[key], dict):
            assert once[key] == b[key]


@given(layers, layers, layers)
def test_merge_is_associative_where_a_field_keeps_its_type(a: Any, b: Any, c: Any) -> None:
    assert merge(merge(a, b), c) == merge(a, merge(b, c))


def test_merge_is_not_associative_over_a_plain_value() -> None:
    a, b, c = {"x": {"p": 1}}, {"x": None}, {"x": {"q": 2}}
    assert merge(merge(a, b), c) == {"x": {"q": 2}}  # how resolve does it: from below
    assert merge(a, merge(b, c)) == {"x": {"p": 1, "q": 2}}


def test_kind_replaces_and_its_absence_merges() -> None:
    below = {"head": {"kind": "encnet", "channels": 64}, "lr": 1, "aux": True}
    assert merge(below, {"head": {"kind": "aspp"}}) == {"head": {"kind": "aspp"}, "lr": 1, "aux": True}
    assert merge(below, {"head": {"channels": 8}})["head"] == {"kind": "encnet", "channels": 8}
    assert below == {"head": {"kind": "encnet", "channels": 64}, "lr": 1, "aux": True}


def test_order_of_layers(experiments: Path) -> None:
    """Recipe, defaults, row, the scale's adapt, its set, --set: each beats those before."""
    (experiments / "recipes" / "own.yaml").write_text(
        "train: {epochs: 1, lr: 1, power: 1, batch_size: 1, momentum: 0.1}"
    )
    (experiments / "table9.yaml").write_text(
        "title: T\nsource: {paper: p, where: w}\nmetrics: [miou]\n"
        "defaults: {recipe: own, train: {lr: 2, power: 2, batch_size: 2}, model: {head: {kind: aspp, channels: 7}}}\n"
        "rows:\n- {id: r, label: L, origin: control, published: {}, set: {train: {power: 3, batch_size: 3}}}\n"
    )
    (experiments / "scales" / "own.yaml").write_text(
        "title: T\nsentence: S\nadapt: {head: {aspp: {channels: 9}}}\nset: {train: {batch_size: 4}}\n"
    )
    table = spec.tables()["table9"]
    found = spec.resolve(table, table.rows[0], spec.scale("own"))
    train = found.train
    assert (train.momentum, train.lr, train.power, train.batch_size) == (0.1, 2, 3, 4)
    assert found.model.head.options == {"channels": 9}
    again = spec.resolve(table, table.rows[0], spec.scale("own"), {"train": {"batch_size": 5}})
    assert again.train.batch_size == 5 and again.train.power == 3


# ------------------------------------------------------------------------------------------- --set KEY=VALUE


def test_overrides_are_yaml() -> None:
    pairs = ("train.lr=1e-3", "train.iterations=5", "model.aux=false", "data.augment.short_side=[1, 2]", "a=b=c")
    assert spec.parse_overrides(pairs) == {
        "train": {"lr": 1e-3, "iterations": 5},
        "model": {"aux": False},
        "data": {"augment": {"short_side": [1, 2]}},
        "a": "b=c",
    }


@pytest.mark.parametrize("pairs", [("train.lr",), ("=3",), ("a=1", "a.b=2"), ("a=[1",)])
def test_bad_overrides(pairs: tuple[str, ...]) -> None:
    with pytest.raises(LaureproError, match="--set"):
        spec.parse_overrides(pairs)


@pytest.mark.parametrize("value", [".inf", ".nan", "-1", "0", "fast", "[1]", "1e400"])
def test_a_learning_rate_that_cannot_be(value: str) -> None:
    table = spec.tables()["table3a"]
    overrides = spec.parse_overrides((f"train.lr={value}",))
    with pytest.raises(LaureproError, match=r"train\.lr"):
        spec.resolve(table, table.rows[0], spec.scale("smoke"), overrides)


@pytest.mark.parametrize(
    "override",
    [
        "train.threads=true",
        "train.lr=true",
        "data.augment.short_side=[true, 2.0]",
        "model.backbone.blocks=[1, 1, false, 1]",
        "model.output_stride=true",
        "model.upsampler.scale_factor=true",
        "model.head.codewords=false",
    ],
)
def test_true_and_false_are_no_numbers(override: str) -> None:
    table = spec.tables()["table3a"]
    with pytest.raises(LaureproError, match=override.partition("=")[0].rpartition(".")[2]):
        spec.resolve(table, table.row("encnet-os8-lau4x-off"), spec.scale("paper"), spec.parse_overrides((override,)))


def test_true_and_false_where_they_are_meant() -> None:
    table, pairs = spec.tables()["table3a"], ("model.head.lateral=true", "model.aux=false", "data.augment.blur=false")
    found = spec.resolve(table, table.row("encnet-os8-bilinear"), spec.scale("paper"), spec.parse_overrides(pairs))
    assert found.model.head.options == {"lateral": True} and not found.model.aux and not found.data.augment.blur


# ---------------------------------------------------------------------------------------- canonical form, keys


def key(stage: str = "evaluate", **raw: Any) -> str:
    experiment = spec.canonical(Experiment(**raw))
    return Job(stage=stage, scale="paper", seed=0, experiment=experiment).key


LAU4 = {"upsampler": {"kind": "lau", "scale_factor": 4}}
GUIDED = {"kind": "offset_guided"}


def test_lau_without_loss_is_the_offset_guided_loss_of_weight_0() -> None:
    plain = spec.canonical(Experiment(model=LAU4, loss={"kind": "cross_entropy"}))
    guided = spec.canonical(Experiment(model=LAU4, loss={"kind": "offset_guided", "offset_weight": 0.0}))
    assert plain == guided
    assert plain.loss.kind == "offset_guided" and plain.loss.offset_weight == 0
    assert key(model=LAU4) == key(model=LAU4, loss={"kind": "offset_guided", "offset_weight": 0.0})
    assert key(model=LAU4) != key(model=LAU4, loss=GUIDED)


def test_lau_inside_a_decoder_keeps_cross_entropy() -> None:
    model = {**LAU4, "head": {"kind": "deeplabv3plus"}, "aux": False}
    assert spec.canonical(Experiment(model=model)).loss.kind == "cross_entropy"


@pytest.mark.parametrize(
    ("model", "loss", "change", "idle"),
    [
        ({}, {}, {"offset_weight": 0.7}, True),
        (LAU4, GUIDED, {"offset_weight": 0.7}, False),
        ({}, {}, {"tie": "code"}, True),
        (LAU4, GUIDED, {"tie": "code"}, False),
        (LAU4, {**GUIDED, "offset_weight": 0}, {"tie": "code"}, True),
        (LAU4, {"kind": "offset_regression"}, {"tie": "code"}, True),
        ({}, {}, {"resolution": "full"}, True),
        (LAU4, GUIDED, {"resolution": "full"}, False),
        ({}, {}, {"normalize": "valid"}, True),
        (LAU4, GUIDED, {"normalize": "valid"}, False),
        (LAU4, GUIDED, {"regression_weight": 0.7}, True),
        (LAU4, {"kind": "offset_regression"}, {"regression_weight": 0.7}, False),
        (LAU4, GUIDED, {"beta": 2.0}, True),
        (LAU4, {"kind": "offset_regression"}, {"beta": 2.0}, False),
        ({"aux": False}, {}, {"aux_weight": 0.7}, True),
        ({}, {}, {"aux_weight": 0.7}, False),
        ({"head": {"kind": "aspp"}}, {}, {"se_weight": 0.7}, True),
        ({}, {}, {"se_weight": 0.7}, False),
    ],
)
def test_a_loss_field_counts_only_where_it_can_matter(model: Any, loss: Any, change: Any, idle: bool) -> None:
    same = key("train", model=model, loss=loss) == key("train", model=model, loss={**loss, **change})
    assert same is idle


@pytest.mark.parametrize(
    ("stage", "raw", "change", "idle"),
    [
        ("train", {}, {"op": {"integer_gradient": "code"}}, True),
        ("train", {"model": LAU4}, {"op": {"integer_gradient": "code"}}, False),
        ("train", {}, {"eval": {"split": "test"}}, True),
        ("evaluate", {}, {"eval": {"split": "test"}}, False),
        ("evaluate", {}, {"eval": {"factors": [1.0, 2.0]}}, True),
        ("evaluate", {"eval": {"multi_scale": True}}, {"eval": {"multi_scale": True, "factors": [1.0, 2.0]}}, False),
        ("evaluate", {}, {"profile": {"height": 3}}, True),
        ("profile", {}, {"profile": {"height": 3}}, False),
        ("profile", {}, {"train": {"epochs": 3}}, True),
        ("profile", {}, {"train": {"epochs": 80, "threads": 3}}, False),
        ("profile", {}, {"data": {"name": "shapes"}}, False),
        ("profile", {}, {"data": {"crop_size": 3}}, True),
        ("profile", {}, {"profile": {"seconds": 3}}, False),
        ("profile", {}, {"profile": {"dtype": "bfloat16"}}, False),
        ("profile", {}, {"profile": {"compile": "default"}}, False),
        ("profile", {}, {"train": {"epochs": 80, "precision": "bfloat16", "compile": "default"}}, True),
        ("train", {}, {"train": {"epochs": 3}}, False),
        ("evaluate", {}, {"train": {"epochs": 3}}, False),
        ("train", {"model": {"aux": False}}, {"model": {"aux": False, "aux_channels": 3}}, True),
        ("train", {}, {"model": {"aux_channels": 3}}, False),
        ("train", {}, {"version": 2}, False),
    ],
)
def test_a_stage_depends_on_its_own_fields(stage: str, raw: Any, change: Any, idle: bool) -> None:
    assert (key(stage, **raw) == key(stage, **{**raw, **change})) is idle


def test_seed_and_scale_are_in_the_key_but_a_profile_has_no_seed() -> None:
    def of(stage: str, scale: str, seed: int) -> str:
        return Job(stage=stage, scale=scale, seed=seed, experiment=Experiment()).key

    assert len({of("train", "paper", 0), of("train", "paper", 1), of("train", "smoke", 0)}) == 3
    assert of("profile", "paper", 0) == of("profile", "paper", 1)


def test_a_default_written_out_does_not_change_a_key() -> None:
    assert key() == key(**Experiment().model_dump())
    out = {"upsampler": {"kind": "lau", "scale_factor": 4, "bottleneck_channels": 128}, "dropout": 0.1}
    assert key(model={"upsampler": {"kind": "lau"}}) == key(model=out, train={"epochs": 80, "lr": 1e-3})
    assert key(model={"upsampler": {"kind": "lau"}}) != key(model={"upsampler": {"kind": "lau", "scale_factor": 3}})


@pytest.mark.parametrize("scale", spec.scale_names())
def test_every_row_resolves_at_every_scale_and_its_canonical_form_is_final(scale: str) -> None:
    seen = 0
    for table in spec.tables().values():
        for row in table.rows:
            if row.set is None:
                continue
            experiment = spec.resolve(table, row, spec.scale(scale))
            assert spec.canonical(experiment) == experiment, row.id
            assert Experiment(**experiment.model_dump()) == experiment, row.id
            job = Job(stage="evaluate", scale=scale, seed=0, experiment=experiment)
            short = job.model_dump_json(exclude_defaults=True)  # what a worker is given
            assert Job.model_validate_json(short).key == job.key, row.id
            seen += 1
    assert seen == sum(row.set is not None for table in spec.tables().values() for row in table.rows) >= 60


# ------------------------------------------------------------------------------------------------- pinned


@pytest.mark.parametrize(
    ("address", "stage", "name", "with_ones"),
    [
        (
            "table3a/encnet-os8-lau4x-off",
            "evaluate",
            "evaluate-pascal_context-encnet-resnet50-lau-s0-6fbb6fde80",
            "0b01b6bc67",
        ),
        (
            "table3a/encnet-os8-lau4x-off",
            "train",
            "train-pascal_context-encnet-resnet50-lau-s0-4fcd0260d8",
            "a0d466a2a4",
        ),
        ("table6/encnet-r101-lau4x-off", "evaluate", "test-ade20k-encnet-resnet101-lau-s0-7f95813bca", "585dd4a47b"),
        ("table6/encnet-r101-lau4x-off", "train", "train-ade20k-encnet-resnet101-lau-s0-8ebd8d53a6", "7f0cb371d3"),
    ],
)
def test_pinned_names(address: str, stage: str, name: str, with_ones: str) -> None:
    """Another name would orphan every record there is. It may change with a row's meaning, and with nothing else.

    With `norm_init: ones`, keys are those from before that field was.
    """
    table, _, row = address.partition("/")
    args = spec.tables()[table], spec.tables()[table].row(row), spec.scale("paper")
    assert Job(stage=stage, scale="paper", seed=0, experiment=spec.resolve(*args)).name == name
    ones = spec.resolve(*args, {"model": {"norm_init": "ones"}})
    assert Job(stage=stage, scale="paper", seed=0, experiment=ones).key == with_ones


def test_a_changed_copy_of_a_job_has_a_key_of_its_own() -> None:
    """The key is kept once it is computed; neither a copy nor a comparison may see that."""
    job = Job(stage="evaluate", scale="smoke", seed=0, experiment=Experiment())
    key, name = job.key, job.name
    other = job.model_copy(update={"seed": 1})
    assert other.key != key and other.name != name and job.key == key
    assert job == Job(stage="evaluate", scale="smoke", seed=0, experiment=Experiment())
    assert job.needs is not None and job.needs.stage == "train" and job.needs.key != key


def test_pinned_defaults() -> None:
    """Defaults are left out of the hash: a changed one would give old records a new meaning. Raise `version` then."""
    assert Experiment().model_dump(mode="json") == {
        "version": 1,
        "model": {
            "backbone": {"kind": "resnet50"},
            "output_stride": 8,
            "head": {"kind": "encnet"},
            "upsampler": {"kind": "bilinear"},
            "aux": True,
            "aux_channels": 256,
            "aux_lau": False,
            "dropout": 0.1,
            "norm_init": "ones",
        },
        "loss": {
            "kind": "cross_entropy",
            "offset_weight": 0.3,
            "regression_weight": 0.1,
            "beta": 1.0,
            "resolution": "lau",
            "normalize": "all",
            "tie": "paper",
            "count": "global",
            "aux_weight": 0.2,
            "se_weight": 0.2,
            "fused": True,
            "search_radius": 1,
            "reference": "grid",
            "stages": "last",
        },
        "op": {"integer_gradient": "right"},
        "data": {
            "name": "pascal_context",
            "train_split": "train",
            "base_size": 520,
            "crop_size": 480,
            "augment": {"short_side": [0.5, 2.0], "blur": True, "hflip": True, "vflip": False},
            "options": {},
        },
        "train": {
            "epochs": 80,
            "iterations": None,
            "phases": None,
            "batch_size": 16,
            "lr": 0.001,
            "lr_multiplier": 1.0,
            "momentum": 0.9,
            "weight_decay": 0.0001,
            "power": 0.9,
            "head_lr_multiplier": 10.0,
            "offset_lr_multiplier": 10.0,
            "offset_weight_decay": 0.0,
            "threads": None,
            "pretrained": None,
            "precision": "float32",
            "tf32": True,
            "compile": "none",
            "fused_optimizer": False,
            "accumulate": 1,
            "checkpoint_activations": False,
            "validate_every": 0,
            "keep": "last",
        },
        "eval": {
            "split": "val",
            "multi_scale": False,
            "factors": [0.5, 0.75, 1.0, 1.25, 1.5, 1.75],
            "mode": "slide",
            "base_size": 520,
            "crop_size": 480,
            "align_corners": True,
            "oracle_radius": None,
            "labels": "own",
            "precision": "float32",
            "tf32": False,
        },
        "profile": {
            "height": 480,
            "width": 480,
            "iterations": 100,
            "groups": 10,
            "warmup": 10,
            "seconds": 24.0,
            "dtype": "float32",
            "compile": "none",
        },
        "init_from": None,
        "sources": {},
    }
    assert spec.InitFrom(experiment=Experiment()).model_dump(exclude={"experiment"}) == {"part": "model", "seed": None}


@pytest.mark.parametrize(
    ("folder", "kind", "defaults"),
    [
        ("backbones", "resnet50", {"stem": "deep", "width": 64, "blocks": None}),
        ("backbones", "resnet101", {"stem": "deep", "width": 64, "blocks": None}),
        ("upsamplers", "bilinear", {}),
        (
            "upsamplers",
            "lau",
            {"scale_factor": 4, "bottleneck_channels": 128, "sampling_grid": "corner", "groups": 1, "bound": None},
        ),
        ("upsamplers", "lau_cascade", {"factors": (2, 2), "bottleneck_channels": 128}),
        ("upsamplers", "grid", {"scale_factor": 4, "sampling_grid": "corner"}),
        ("upsamplers", "pixelshuffle", {"factors": (2,), "input": "feature", "icnr": False}),
        ("upsamplers", "deformable", {"version": 1, "position": "logits"}),
        ("heads", "encnet", {"channels": 512, "codewords": 32, "lateral": False, "se": True}),
        ("heads", "aspp", {"channels": 256, "rates": (12, 24, 36)}),
        ("datasets", "shapes", {"design": "scenes", "train_images": 1024, "val_images": 200}),
    ],
)
def test_pinned_defaults_of_parts(folder: str, kind: str, defaults: dict[str, Any]) -> None:
    file = parts.path(folder, kind)
    assert file is not None
    found = parts.options(folder, file)().model_dump()
    assert found == defaults
