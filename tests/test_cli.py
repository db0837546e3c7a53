"""The command line through real processes: what it says, what it refuses, and that it then leaves nothing behind."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROOT, ROW, environment, make_record, planned, run_cli, start

from laurepro import __version__, cli, doctor, plan, record, spec
from laurepro.spec import Job

COMMANDS = list(cli.main.commands)


def test_commands_of_the_contract_are_there() -> None:
    assert {"list", "show", "plan", "run", "status", "report", "doctor"} <= set(COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "table3a", "table3"])
def test_every_command_has_help(command: str, tmp_path: Path) -> None:
    ran = run_cli(command, "-h" if command == "run" else "--help", cwd=tmp_path)
    assert ran.code == 0 and f"{command} [OPTIONS]" in ran.out and ran.err == ""
    sentences = ran.out.split("\n\n")[1].strip()
    assert len(sentences) > 15, "no description"
    assert list(tmp_path.iterdir()) == []


def test_help_and_version(tmp_path: Path) -> None:
    ran = run_cli("--help", cwd=tmp_path)
    assert ran.code == 0 and [c for c in COMMANDS if not re.search(rf"^  {c} ", ran.out, re.M)] == []
    assert __version__ in run_cli("--version", cwd=tmp_path).out


def test_overview_names_tables_and_what_to_do_next(tmp_path: Path) -> None:
    ran = run_cli(cwd=tmp_path)
    assert ran.code == 0 and ran.err == ""
    assert [t for t in spec.tables() if not re.search(rf"^  {t} ", ran.out, re.M)] == []
    steps = re.findall(r"^  laurepro (\S+)", ran.out, re.M)
    assert len(steps) == 3 and set(steps) <= set(COMMANDS)
    assert list(tmp_path.iterdir()) == []


def test_list_says_what_there_is_and_from_where(tmp_path: Path) -> None:
    out = run_cli("list", cwd=tmp_path).out
    assert str(ROOT / "experiments") in out
    for name in [*spec.tables(), "paper", "smoke", "encnet", "lau", "shapes", "local", "dry"]:
        assert re.search(rf"\b{name}\b", out), name


def test_show_gives_value_origin_and_protocol(tmp_path: Path) -> None:
    out = run_cli("show", "table3a", cwd=tmp_path).out
    for row in spec.tables()["table3a"].rows:
        assert row.id in out
    line = next(line for line in out.splitlines() if line.split()[:1] == ["encnet-os8-lau4x-off"])
    assert "50.30" in line and "authors" in line and "pascal_context" in line and "val" in line
    assert re.search(r"encnet-os8-bilinear .*49\.10 .*quoted, rerun", out)
    blank = run_cli("show", "table5/hrnet-w48", cwd=tmp_path).out
    assert "43.20" in blank and "—" in blank and "0.00" not in blank
    assert "encnet-r50-bilinear" not in blank


def test_plan_as_json_is_the_contract(tmp_path: Path) -> None:
    ran = run_cli("plan", "table3a", "--scale", "smoke", "--format", "json", cwd=tmp_path)
    document = json.loads(ran.out)
    assert {"schema", "jobs", "rows", "reused"} <= set(document)
    assert (document["schema"], document["rows"], document["reused"]) == (1, 12, 0)
    names = [j["name"] for j in document["jobs"]]
    assert len(set(names)) == len(names) == 25
    for job in document["jobs"]:
        assert {"name", "key", "stage", "scale", "seed", "needs", "rows"} <= set(job)
        assert job["needs"] is None or names.index(job["needs"]) < names.index(job["name"])
        assert job["name"].endswith(job["key"]) and job["rows"]
    terminal = run_cli("plan", "table3a", "--scale", "smoke", cwd=tmp_path).out
    assert [n for n in names if n not in terminal] == []
    assert "25 jobs" in terminal and "13 train" in terminal
    assert list(tmp_path.iterdir()) == []


def test_plan_takes_scale_and_seeds(tmp_path: Path) -> None:
    by_option = planned(ROW, "--scale", "smoke", "--seeds", "2", cwd=tmp_path)
    assert sorted(j["seed"] for j in by_option) == [0, 0, 1, 1, 999]
    assert planned(ROW, "--seeds", "2", cwd=tmp_path, LAUREPRO_SCALE="smoke") == by_option
    assert {j["scale"] for j in planned(ROW, cwd=tmp_path)} == {"paper"}
    changed = planned(ROW, "--scale", "smoke", "--set", "train.lr=0.5", cwd=tmp_path)
    assert not {j["key"] for j in changed if j["seed"] == 0} & {j["key"] for j in by_option}


def test_status_counts_the_seeds_that_were_run(tmp_path: Path) -> None:
    table = spec.tables()["table3a"]
    row = plan.row_plan(table, table.row("encnet-os8-bilinear"), spec.scale("camvid-cpu"), 3)
    for job in row.jobs:
        record.write(tmp_path / "results", make_record(job, {"miou": 50.0}))
    ran = run_cli("status", "table3a/encnet-os8-bilinear", "--scale", "camvid-cpu", cwd=tmp_path)
    assert ran.code == 0 and "scale camvid-cpu: 3 done" in ran.out
    ran = run_cli("status", "table3a/encnet-os8-bilinear", "--scale", "camvid-cpu", "--seeds", "1", cwd=tmp_path)
    assert "scale camvid-cpu: 1 done" in ran.out


def test_status_where_nothing_is(tmp_path: Path) -> None:
    ran = run_cli("status", cwd=tmp_path)
    assert ran.code == 0 and "no records" in ran.out and list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- misuse

SMOKE = ["--scale", "smoke", "--launcher", "dry"]  # a case that is wrongly let through then does no work


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["run"], ["TABLE", "--all"]),
        (["run", "tabel3a"], ["'tabel3a'", "nearest: table3a"]),
        (["run", "table10"], ["'table10'", "table1"]),
        (["table10"], ["'table10'", "table1"]),
        (["run", "table3a/encnet-os8-lau4x", *SMOKE], ["'encnet-os8-lau4x'", "encnet-os8-lau4x-off", "table3a"]),
        (["show", "table3a/nothing"], ["'nothing'", "table3a"]),
        (["show"], ["TABLE"]),
        (["plan", "tabel3a"], ["'tabel3a'", "nearest: table3a"]),
        (["report", "tabel3a"], ["'tabel3a'", "nearest: table3a"]),
        (["report", "table3a", "--scale", "smok"], ["'smok'", "nearest: smoke"]),
        (["report", "table3a", "--format", "pdf"], ["'pdf'", "markdown"]),
        (["status", "tabel3a"], ["'tabel3a'", "nearest: table3a"]),
        (["repotr"], ["repotr"]),
        (["run", "table3a", "--scael", "smoke"], ["--scael"]),
        (["run", "table3a", "--scale", "smok", "--launcher", "dry"], ["'smok'", "nearest: smoke"]),
        (["run", "table3a", "--scale", "smoke", "--launcher", "locl"], ["'locl'", "nearest: local"]),
        (["run", "table3a", "--scale", "smoke", "--launcher", "__init__"], ["'__init__'", "local"]),
        (["run", "table3a", *SMOKE, "--seeds", "0"], ["--seeds", "0"]),
        (["run", "table3a", *SMOKE, "--nproc-per-node", "0"], ["--nproc-per-node", "0"]),
        (["run", "table3a", *SMOKE, "--nproc-per-node", "two"], ["--nproc-per-node", "'two'"]),
        (["run", "table3a", *SMOKE, "--set", "train.lrr=1"], ["'lrr'", "nearest: lr", "--set"]),
        (["run", "table3a", *SMOKE, "--set", "trian.lr=1"], ["'trian'", "nearest: train", "--set"]),
        (["run", "table3a", *SMOKE, "--set", "train.lr=fast"], ["train.lr", "'fast'"]),
        (["run", "table3a", *SMOKE, "--set", "train.iterations=3.5"], ["train.iterations", "3.5"]),
        (["run", "table3a", *SMOKE, "--set", "train.lr=.inf"], ["train.lr", "inf"]),
        (["run", "table3a", *SMOKE, "--set", "train=3"], ["train", "3"]),
        (["run", "table3a", *SMOKE, "--set", "model=3"], ["model", "3"]),
        (["run", "table3a", *SMOKE, "--set", "model.head=aspp"], ["model.head", "'aspp'"]),
        (["run", "table3a", *SMOKE, "--set", "model.head.kind=asp"], ["'asp'", "nearest: aspp"]),
        (["run", "table3a", *SMOKE, "--set", "data.name=shaeps"], ["'shaeps'", "nearest: shapes"]),
        (["run", "table3a", *SMOKE, "--set", "data.options.image=3"], ["'image'", "train_images"]),
        (["run", "table3a", *SMOKE, "--set", "loss.kind=offset_guided"], ["loss.kind", "upsampler"]),
        (["run", "table3a", *SMOKE, "--set", "train.epochs=3"], ["epochs", "iterations"]),
        (["run", "table3a", *SMOKE, "--set", "init_from=3"], ["init_from"]),
        (["run", "table3a", *SMOKE, "--set", "lr"], ["'lr'", "key=value"]),
        (["run", "table3a", *SMOKE, "--set", "train.lr=[1"], ["train.lr=[1", "YAML"]),
        (["--experiments", "nowhere", "list"], ["'nowhere'", "does not exist"]),
        (["run", "table3a"], ["data set pascal_context", "\n  laurepro run table3a --scale smoke\n"]),
        (["table3a"], ["data set pascal_context", "\n  laurepro run table3a --scale smoke\n"]),
        (["run", "table3a/encnet-os8-bilinear", "table5", "table7"], ["pascal_context", "ade20k", "voc2012_aug"]),
        (["run", "--all"], ["pascal_context", "\n  laurepro run --all --scale smoke\n"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_misuse_says_what_was_wrong_and_does_nothing(args: list[str], said: list[str], tmp_path: Path) -> None:
    ran = run_cli(*args, cwd=tmp_path)
    assert ran.code == 2, ran
    assert "Traceback" not in ran.err and ran.out == ""
    assert [s for s in said if s not in ran.err] == [], ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--results", "--runs"])
@pytest.mark.parametrize("below", ["", "/a/b"])
def test_a_folder_below_a_file_is_refused_before_any_work(option: str, below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    ran = run_cli("run", ROW, "--scale", "smoke", option, f"file{below}", cwd=tmp_path)
    assert ran.code == 2 and "Traceback" not in ran.err and option in ran.err and "file" in ran.err
    assert [f.name for f in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_a_missing_table_command_does_not_hide_a_misspelt_one(tmp_path: Path) -> None:
    ran = run_cli("tabel3a", cwd=tmp_path)
    assert ran.code == 2 and "tabel3a" in ran.err and "Traceback" not in ran.err


def test_an_error_in_a_table_file_stops_every_command(experiments: Path, tmp_path: Path) -> None:
    file = experiments / "table4.yaml"
    file.write_text(file.read_text().replace("origin: authors", "origin: author", 1))
    for command in ([], ["list"], ["plan", "table3a"], ["run", "table4", *SMOKE], ["report"], ["table4"]):
        ran = run_cli(*command, cwd=tmp_path, LAUREPRO_EXPERIMENTS=experiments)
        assert ran.code == 2 and "Traceback" not in ran.err, command
        assert str(file) in ran.err and "encnet-os32-deformable" in ran.err and "'author'" in ran.err, command
    assert [f.name for f in tmp_path.iterdir()] == ["experiments"]


# ---------------------------------------------------------------------------------------------------- dry


def test_dry_prints_one_command_a_job_and_writes_nothing(tmp_path: Path) -> None:
    options = ["--results", "res ults", "--runs", "r", "--data", "d"]
    ran = run_cli("run", "table3a", *SMOKE, *options, cwd=tmp_path)
    assert ran.code == 0 and list(tmp_path.iterdir()) == []
    jobs = planned("table3a", "--scale", "smoke", cwd=tmp_path)
    lines = ran.out.splitlines()
    assert len(lines) == len(jobs) == 25
    seen = []
    for line in lines:
        words = shlex.split(line, comments=True)
        assert re.fullmatch(r"OMP_NUM_THREADS=\d+", words[0])
        assert words[1:4] == [sys.executable, "-m", "laurepro.worker"]
        job = Job.model_validate_json(words[words.index("--job") + 1])
        assert words[words.index("--results") + 1] == "res ults" and words[words.index("--runs") + 1] == "r"
        if job.needs is not None:
            assert job.needs.name in seen and f"# after {job.needs.name}" in line
        seen.append(job.name)
    assert sorted(seen) == sorted(j["name"] for j in jobs)  # in the order in which the trainings would start


def test_dry_with_two_processes_goes_through_torchrun(tmp_path: Path) -> None:
    ran = run_cli("run", ROW, *SMOKE, "--nproc-per-node", "2", cwd=tmp_path)
    assert ran.code == 0 and len(ran.out.splitlines()) == 3
    for line in ran.out.splitlines():
        assert "-m torch.distributed.run" in line and "--nproc-per-node=2" in line and "-m laurepro.worker" in line
    nodes = run_cli("run", ROW, *SMOKE, "--nodes", "3", cwd=tmp_path)
    assert nodes.out.count("--nnodes=3") == 3 and nodes.out.count("--rdzv-endpoint=$MASTER_ADDR:") == 3
    assert "on all 3 machines" in nodes.err
    speed = run_cli("run", "table8/encnet-os8-r50-lau4x", *SMOKE, "--nodes", "3", cwd=tmp_path).out
    assert '"stage":"profile"' in speed and "torch.distributed.run" not in speed  # it is that of one process


def test_the_local_launcher_has_one_machine(tmp_path: Path) -> None:
    ran = run_cli("run", ROW, *SMOKE[:2], "--nodes", "2", cwd=tmp_path)
    assert ran.code == 2 and "--nodes 2" in ran.err and "--launcher dry" in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "results").exists()


def test_dry_shows_the_paper_without_its_data(tmp_path: Path) -> None:
    ran = run_cli("run", "table3a", "--launcher", "dry", cwd=tmp_path)
    assert ran.code == 0 and "Traceback" not in ran.err and list(tmp_path.iterdir()) == []
    assert ran.out


def test_make_shows_what_reproduce_all_runs(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make")
    command = [make, "-n", "-C", str(ROOT), "reproduce-all", "LAUNCHER=dry", "SCALE=smoke", "SEEDS=2"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in ran.stdout.splitlines() if "laurepro " in line]
    (line,) = [line for line in lines if "run --all" in line]
    words = shlex.split(line)[1:]
    assert words == ["run", "--all", "--scale", "smoke", "--seeds", "2", "--launcher", "dry"]
    assert not any(" report" in line for line in lines)
    shown = run_cli(*words, cwd=tmp_path)
    assert shown.code == 0 and len(shown.out.splitlines()) > 100 and list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------ imports


def test_looking_never_imports_torch() -> None:
    commands = [
        ["--help"], [], ["list"], ["run", "--help"], ["show", "table3a"], ["plan", "--all"], ["status"],
        ["report", "table3a"], ["run", "table3a", *SMOKE], ["run", "tabel3a"],
        ["report", "table3a", "--format", "csv"],
    ]  # fmt: skip
    code = (
        "import sys\nfrom laurepro.cli import main\n"
        f"for args in {commands!r}:\n"
        "    try: main(args)\n"
        "    except SystemExit: pass\n"
        "    assert not {'torch', 'torchvision', 'cupy'} & set(sys.modules), args\n"
        "    assert 'csv' in args or 'pandas' not in sys.modules, args\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["plan", "--all", "--scale", "smoke", "--seeds", "9", "--format", "json"],
        ["run", "--all", "--scale", "smoke", "--seeds", "5", "--launcher", "dry"],
        ["show", "table3b"],
        ["report", "table1", "table3b", "table8", "--format", "json"],
        ["report"],
    ],
    ids=lambda args: args[0],
)
def test_a_reader_that_leaves_gets_no_traceback(args: list[str], tmp_path: Path) -> None:
    process = start(*args, cwd=tmp_path)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    process.wait(60)
    assert "Traceback" not in err and "Exception ignored" not in err and "BrokenPipe" not in err


def test_doctor_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "profile.py").write_text("raise ImportError('taken for the module that torch imports')")
    ran = run_cli("doctor", "--runs", "file/runs", cwd=tmp_path)
    assert ran.code == 1 and "Traceback" not in ran.err
    for what in ("python", "torch", "CuPy", "data shapes", "commit", "--results", "disk"):
        assert re.search(rf"^(ok|note) +{what}: \S", ran.out, re.M), what
    assert re.findall(r"^FIX +(\S+):", ran.out, re.M) == ["--runs"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "profile.py"]


def test_ctrl_c_is_130_where_a_command_does_not_handle_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a command has no more to say of it than that it ended."""

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    ran = CliRunner().invoke(cli.main, ["doctor"])
    assert ran.exit_code == 130 and ran.output.splitlines() == ["interrupted"], ran
