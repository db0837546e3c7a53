"""YAML of whatever content, in files and in --set: read, or refused on one line; never a traceback or a hang."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
import pytest
import yaml
from conftest import environment, run_cli
from hypothesis import strategies as st

from laurepro import claims, plan, spec
from laurepro.errors import LaureproError

CHAIN = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 5000))
BOMB = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
HOSTILE = [
    (b"title: caf\xe9\n", "line 1: not valid YAML: byte 0xe9 is not UTF-8"),
    (b"a: 1\nb: 2001-99-99\n", "line 2: '2001-99-99' cannot be read as timestamp"),
    (b"[1]: 2\n", "line 1: expected a name as key, got [1]"),
    (b"{1: 2}: 2\n", "line 1: expected a name as key, got 1"),
    (b"3: 2\n", "line 1: expected a name as key, got 3"),
    (b"yes: 2\n", "line 1: expected a name as key, got True"),
    (b"a: " + b"7" * 5000 + b"\n", "line 1: '7777"),
    (b"a:\n  b: !!int x\n", "line 2: 'x' cannot be read as int"),
    (b"a: !!bool x\n", "line 1: 'x' cannot be read as bool"),
    (b"a: !!timestamp x\n", "line 1: 'x' cannot be read as timestamp"),
    (b"a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    (b"a: \x00\n", "not valid YAML"),
    (b"[" * 900 + b"]" * 900, "nested more than 50 levels deep"),
    (b"[" * 200_000, "nested more than 50 levels deep"),
    (b"- " * 200_000, "nested more than 50 levels deep"),
    (CHAIN.encode(), "nested more than 50 levels deep"),
    (b"&a [*a]", "nested more than 50 levels deep, by its aliases"),
    (b"a: &a {b: *a}", "not valid YAML"),
    (BOMB.encode(), "more than 1,000,000 values, by its aliases"),
]


@pytest.mark.parametrize(("content", "said"), HOSTILE, ids=[said[:60] for _, said in HOSTILE])
def test_yaml_of_whatever_content_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    """Without the limit on nesting, libyaml ends this process with a segmentation fault."""
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(LaureproError) as error:
        spec.read_yaml(file)
    assert str(error.value).startswith(str(file)) and said in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_table_of_whatever_content_ends_a_command_with_exit_code_2(experiments: Path) -> None:
    (experiments / "table3a.yaml").write_bytes(b"[" * 200_000)
    ran = run_cli("plan", "table1", cwd=experiments, LAUREPRO_EXPERIMENTS=experiments)
    assert ran.code == 2 and "table3a.yaml, line 1: nested" in ran.err and len(ran.err.strip().splitlines()) == 1


def test_text_beyond_ascii_is_read_under_any_locale(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("title: Größe\n", encoding="utf-8")
    code = "from laurepro import spec; print(ascii(spec.read_yaml(__import__('pathlib').Path('a.yaml'))))"
    env = {**environment(), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ran.stdout == "{'title': 'Gr\\xf6\\xdfe'}\n", ran.stderr


def test_a_named_pipe_among_the_tables_is_refused_at_once(experiments: Path) -> None:
    os.mkfifo(experiments / "table98.yaml")
    ran = run_cli("plan", "table3a", cwd=experiments, timeout=30, LAUREPRO_EXPERIMENTS=experiments)
    assert ran.code == 2 and "table98.yaml: cannot be read: not a regular file" in ran.err


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("train.lr=2001-99-99", "cannot be read as timestamp"),
        ("train.lr={[1]: 2}", "expected a name as key"),
        ("train.lr={1: 2}", "expected a name as key, got 1"),
        ("train.lr=" + "7" * 5000, "cannot be read as int"),
        ("train.lr=!!int x", "'x' cannot be read as int"),
        ("train.lr=" + "[" * 900, "nested more than 50 levels deep"),
        ("train.lr=" + "[" * 100_000, "nested more than 50 levels deep"),
        ("train.lr=[1", "not valid YAML"),
        ("train.lr=a: b: c", "not valid YAML"),
        ("train.lr=\udce9", "not valid YAML"),
        ("train.lr=!!python/name:os.system", "not valid YAML"),
        ("a" + ".a" * 2000 + "=1", "nested more than 50 levels deep"),
        ("train.lr", "expected key=value"),
        ("=1", "expected key=value"),
    ],
    ids=lambda value: value[:30].encode(errors="replace").decode(),
)
def test_a_setting_of_whatever_content_is_one_line(pair: str, said: str) -> None:
    with pytest.raises(LaureproError) as error:
        spec.parse_overrides((pair,))
    assert said in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


@hypothesis.given(st.one_of(st.text(), st.text(alphabet="[]{}:,&*!|>-?#%@`'\"\n 0aé\t.")))
@hypothesis.settings(max_examples=40)
def test_text_is_read_or_refused(text: str) -> None:
    for read in (lambda: spec.files.load_yaml(text, "here"), lambda: spec.parse_overrides((f"train.lr={text}",))):
        try:
            read()
        except LaureproError as error:
            assert "\n" not in str(error)


# ------------------------------------------------------------------------- valid YAML that a table cannot mean

FIELDS = (
    *("train", "train.lr", "train.phases", "train.pretrained", "model", "model.backbone", "model.backbone.kind"),
    *("model.backbone.blocks", "model.head", "model.head.rates", "model.upsampler", "model.upsampler.kind"),
    *("data", "data.name", "data.options", "data.augment.short_side", "eval.factors", "eval.split", "loss.kind"),
    *("op", "profile", "version", "recipe", "init_from.part", "model.backbone.kind.x", "a.b", ".", "..lr", "x"),
)
VALUES = (
    *("", "null", "true", "0", "-1", "1e400", ".inf", ".nan", "x", "[]", "[1]", "[[1]]", "[-1,0,1,2]", "{}", "2001-01-01"),
    *("{kind: x}", "{kind: 3}", "{kind: []}", "{kind: null}", "{kind: ../x}", "{kind: /tmp/x}", "{kind: lau}", "9" * 400),
    *("{kind: resnet50, width: 0}", "{a: {b: 1}}", "!!binary aGk=", "!!set {a}", "!!omap [a: 1]", "~", "&a x", "|"),
    *("encnet@", "x@y@z", "../shapes", "/etc/passwd", '"\\x1b[31m"', '"a\\nb"'),
)  # fmt: skip


@hypothesis.given(st.sampled_from(FIELDS), st.sampled_from(VALUES), st.sampled_from(["smoke", "paper"]))
@hypothesis.settings(max_examples=25)
def test_a_setting_is_taken_or_refused(field: str, value: str, scale: str) -> None:
    _resolved("table3a", scale, f"{field}={value}")


NODES = (None, True, -1, 1.5, "", "a\nb", "\x1b[31m", [], [[1]], {}, {"kind": []}, {"a": {"b": 1}}, 10**400, "../x")


@pytest.mark.acceptance
@pytest.mark.parametrize("name", ["table6.yaml", "scales/smoke.yaml", "recipes/ade20k.yaml", "claims/controls.yaml"])
@hypothesis.given(st.randoms(use_true_random=False), st.sampled_from(NODES))
@hypothesis.settings(max_examples=10, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_any_value_anywhere_in_a_file_is_taken_or_refused(
    name: str, experiments: Path, random: Random, value: object
) -> None:
    file = experiments / name
    text = file.read_text()
    content = spec.read_yaml(file)
    node, key = random.choice(list(_places(content)))
    node[key] = value
    file.write_text(yaml.safe_dump(content))
    for cached in (spec.table._tables, spec.table._scale):
        cached.cache_clear()
    try:
        _resolved("table6", "paper" if "recipe" in name else "smoke")
        claims.model._load.cache_clear()
        claims.load()
    except LaureproError as error:
        assert "\x1b" not in str(error)
    finally:
        file.write_text(text)


def test_a_pretraining_without_a_mapping_is_named(experiments: Path) -> None:
    file = experiments / "scales" / "smoke.yaml"
    content = spec.read_yaml(file)
    content["pretrain"]["set"]["model"] = 1.5
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(LaureproError, match=r"smoke\.yaml, pretrain: model.*1\.5"):
        row = plan.select(["table3a/encnet-os8-bilinear"], spec.scale("smoke"))[0]
        plan.row_plan(*row, spec.scale("smoke"), 1)


def _places(node: object) -> Iterator[tuple[Any, Any]]:
    """Every value of a document, as its container and key."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield node, key
        yield from _places(value)


def _resolved(table: str, scale_name: str, *pairs: str) -> None:
    """Resolve a table and compute its keys, or be refused in a few lines that a terminal can print."""
    try:
        scale = spec.scale(scale_name)
        for table_, row in plan.select([table], scale):
            for job in plan.row_plan(table_, row, scale, 1, spec.parse_overrides(pairs)).jobs:
                assert job.key
    except LaureproError as error:
        assert len(str(error).splitlines()) <= 4 and "\x1b" not in str(error)
