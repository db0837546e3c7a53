"""YAML of whatever content, in files and in --set: read, or refused on one line; never a traceback or a hang."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
from conftest import environment, run_cli
from hypothesis import strategies as st

from laurepro import spec
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
@hypothesis.settings(max_examples=100)
def test_text_is_read_or_refused(text: str) -> None:
    for read in (lambda: spec.files.load_yaml(text, "here"), lambda: spec.parse_overrides((f"train.lr={text}",))):
        try:
            read()
        except LaureproError as error:
            assert "\n" not in str(error)
