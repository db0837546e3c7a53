"""Trackers: what they are told, that no job depends on one, and MLflow's with a real local store."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import ROW, SHORT, finish, make_record, run_cli, start, wait_until
from test_launch import at_step, records

from laurepro import plan, record, spec
from laurepro.cli import main
from laurepro.spec import Job
from laurepro.trackers import Trackers
from laurepro.trackers.tensorboard import FOLDER

TRACKER = """
import json
from laurepro import trackers

class Tracker(trackers.Tracker):
    def tell(self, **values):
        with open(self.folder / "told.jsonl", "a") as stream:
            stream.write(json.dumps(values) + "\\n")

    def step(self, values):
        self.tell(step=values["step"])

    def validated(self, step, scores):
        self.tell(validated=step, scores=scores)

    def finished(self, record, file):
        self.tell(finished=record.job, file=file.name)

    def close(self):
        self.tell(closed=True)
"""
BROKEN = TRACKER.replace(
    "def step(self, values):", "def step(self, values):\n        raise OSError('the server is gone')"
)


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plug-in folder with two trackers."""
    folder = tmp_path / "plugins" / "trackers"
    folder.mkdir(parents=True)
    (folder / "lines.py").write_text(TRACKER)
    (folder / "broken.py").write_text(BROKEN)
    monkeypatch.setenv("LAUREPRO_PLUGINS", str(folder.parent))
    return folder.parent


def job(stage: str = "train") -> Job:
    ((table, row),) = plan.select([ROW], spec.scale("smoke"))
    return plan.row_plan(table, row, spec.scale("smoke"), 1).jobs[0].model_copy(update={"stage": stage})


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]


def test_a_tracker_that_raises_is_left_out_and_named(
    plugins: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = Trackers(["broken", "lines", "lines"], job(), tmp_path, fresh=False)
    both.step({"step": 1, "loss": 0.5})
    both.validated(1, {"miou": 40.0})
    both.close()
    assert told(tmp_path) == [{"step": 1}, {"validated": 1, "scores": {"miou": 40.0}}, {"closed": True}]
    assert "tracker broken is left out from here on: the server is gone" in caplog.text


def test_a_tracker_whose_server_is_down_fails_no_job(
    plugins: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`run` has checked it before the first job; by a later one the server may be gone."""
    down = "\n\ndef check():\n    raise LaureproError('the server is down')\n"
    (plugins / "trackers" / "down.py").write_text("from laurepro.errors import LaureproError\n" + TRACKER + down)
    both = Trackers(["down", "lines"], job(), tmp_path, fresh=False)
    both.step({"step": 1})
    assert told(tmp_path) == [{"step": 1}]
    assert "tracker down is left out from here on: the server is down" in caplog.text


@pytest.mark.parametrize(
    ("name", "words"),
    [("mlflo", ("unknown tracker 'mlflo'", "nearest: mlflow")), ("mlflow", ("not installed", "[mlflow]"))],
)
def test_what_is_not_there_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    there: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *more: None if n == "mlflow" else there(n, *more))
    ran = CliRunner().invoke(main, ["run", ROW, "--scale", "smoke", "--track", name])
    assert ran.exit_code == 2 and all(word in ran.output for word in words), ran.output
    assert list(tmp_path.iterdir()) == []


def test_workers_are_given_the_trackers(plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--launcher", "dry", "--track", "lines", "--track", "lines", "--nproc-per-node", "2"]
    ran = CliRunner().invoke(main, ["run", ROW, "--scale", "smoke", *options])
    assert ran.exit_code == 0 and ran.output.count(" --track lines") == ran.output.count("laurepro.worker") > 0
    checked = CliRunner().invoke(main, ["check", "plugin", "lines"])
    assert checked.exit_code == 0 and "step, validated, finished, close" in checked.output, checked.output


@pytest.mark.acceptance
def test_a_tracker_in_a_plugin_folder_is_told_of_each_job(plugins: Path, tiny: Path, tmp_path: Path) -> None:
    """Two processes: the first one tells it."""
    options = ["--nproc-per-node", 2, "--track", "lines", "--track", "broken", "--set", "train.validate_every=4"]
    where = {"LAUREPRO_EXPERIMENTS": tiny, "LAUREPRO_PLUGINS": plugins}
    ran = run_cli("run", ROW, "--scale", "tiny", *options, "--set", "train.iterations=8", cwd=tmp_path, **where)
    assert ran.code == 0, ran.err
    (training,) = tmp_path.glob("runs/train-*")
    steps = [line.get("step", f"val {line.get('validated')}") for line in told(training)[:-2]]
    assert steps == [1, 2, 3, 4, "val 4", 5, 6, 7, 8, "val 8"]
    assert told(training)[-2:] == [{"finished": training.name, "file": f"{training.name}.json"}, {"closed": True}]
    (evaluation,) = tmp_path.glob("runs/evaluate-*")
    assert told(evaluation)[-2]["finished"] == evaluation.name
    assert "tracker broken is left out from here on" in (training / "log.txt").read_text()


@pytest.mark.tensorboard
def test_tensorboard_has_losses_and_validations_once(tmp_path: Path) -> None:
    """The second leg begins with the validation that a stop interrupted, the third at an older checkpoint."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for leg in (("s1", "s2", "s3"), ("v3", "s4", "s5", "v5"), ("s4", "s5", "v5", "s6")):
        both = Trackers(["tensorboard"], job(), tmp_path, fresh=False)
        for word in leg:
            step = int(word[1:])
            if word.startswith("s"):
                both.step({"step": step, "loss": 1 / step})
            else:
                both.validated(step, {"miou": 10.0 * step})
        both.close()
    events = EventAccumulator(str(tmp_path / FOLDER), size_guidance={"scalars": 0}).Reload()
    assert [(e.step, round(e.value, 3)) for e in events.Scalars("val/miou")] == [(3, 30.0), (5, 50.0)]
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


# ------------------------------------------------------------------------------------------------------- MLflow


def store(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """A client of the store that a tracker in the folder writes to."""
    from laurepro.trackers import mlflow

    monkeypatch.chdir(folder)
    return mlflow._client()


def test_no_test_sees_a_developers_store_make_or_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
        "MAKEFLAGS",
        "MFLAGS",
        "OFFLINE",
        "FORCE_COLOR",
        "NO_COLOR",
    )
    for name in names:
        monkeypatch.setenv(name, "1")
    runpy.run_path(str(Path(__file__).with_name("conftest.py")))
    assert not set(names) & set(os.environ)


def history(client: Any, run: Any, metric: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in sorted(client.get_metric_history(run.info.run_id, metric), key=lambda m: m.step)]


def runs(client: Any) -> dict[str, Any]:
    """By job."""
    experiment = client.get_experiment_by_name("laurepro")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


@pytest.mark.mlflow
def test_mlflow_continues_a_run_without_repeating_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = store(monkeypatch, tmp_path)
    values = {"lr": 0.1, "epoch": 0}
    first = Trackers(["mlflow"], job(), tmp_path, fresh=False)
    for step in range(1, 8):
        first.step({"step": step, "loss": 1 / step, **values})
    first.validated(6, {"miou": 40.0})
    first.close()
    (run,) = runs(client).values()
    assert run.info.status == "KILLED" and run.data.params["train.lr"] == str(job().experiment.train.lr)
    assert run.data.params["model.upsampler.kind"] == "lau" and run.data.params["seed"] == "0"
    second = Trackers(["mlflow"], job(), tmp_path, fresh=False)
    for step in range(5, 11):  # from an older checkpoint
        second.step({"step": step, "loss": 1 / step, **values})
        if step in (6, 9):
            second.validated(step, {"miou": 34.0 + step})
    curve = {"curve": tuple((s, 1 / s) for s in range(1, 11)), "validation": {"miou": ((6, 40.0), (9, 43.0))}}
    made = make_record(job(), {}, **curve, split="train")
    second.finished(made, record.write(tmp_path / "results", made))
    second.close()
    (same,) = runs(client).values()
    assert same.info.run_id == run.info.run_id and same.info.status == "FINISHED"
    assert history(client, same, "train/loss") == [(step, 1 / step) for step in range(1, 11)]
    assert history(client, same, "val/miou") == [(6, 40.0), (9, 43.0)]
    assert {file.path for file in client.list_artifacts(same.info.run_id)} == {f"{made.job}.json", "page.html"}
    page = Path(client.download_artifacts(same.info.run_id, "page.html", str(tmp_path))).read_text()
    assert made.job in page and "mIoU on val" in page and page.count("<svg") == 2
    (experiment,) = client.search_experiments(filter_string="name = 'laurepro'")
    for forced, number in ((False, 2), (True, 3)):  # its record is gone; then by --force while it could be resumed
        over = Trackers(["mlflow"], job(), tmp_path, fresh=forced)
        over.step({"step": 1, "loss": 0.5, **values})
        over.close()
        newest, *others = client.search_runs([experiment.experiment_id])
        assert history(client, newest, "train/loss") == [(1, 0.5)] and len(others) == number - 1


@pytest.mark.mlflow
def test_a_store_that_cannot_be_used_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://store")
    ran = CliRunner().invoke(main, ["run", ROW, "--scale", "smoke", "--track", "mlflow"])
    assert ran.exit_code == 2 and "MLFLOW_TRACKING_URI is nosuch://store" in ran.output, ran.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.mlflow
@pytest.mark.acceptance
def test_mlflow_has_a_run_for_each_job_of_an_interrupted_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["run", ROW, "--scale", "tiny", "--track", "mlflow", *SHORT, "--set", "train.validate_every=25"]
    process = start(*command, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    wait_until(at_step(tmp_path, 15), "a quarter", timeout=200)
    os.killpg(process.pid, signal.SIGINT)
    assert finish(process).code == 130
    ran = run_cli(*command, cwd=tmp_path, LAUREPRO_EXPERIMENTS=tiny)
    assert ran.code == 0, ran.err
    client = store(monkeypatch, tmp_path)
    by_job, left = runs(client), {r.job: r for r in records(tmp_path).values()}
    assert set(by_job) == set(left) and all(run.info.status == "FINISHED" for run in by_job.values())
    for name, run in by_job.items():
        assert {file.path for file in client.list_artifacts(run.info.run_id)} == {f"{name}.json", "page.html"}
        assert run.data.params["key"] == left[name].key
        if left[name].stage == "train":
            assert [step for step, _ in history(client, run, "train/loss")] == list(range(1, 61))
            assert history(client, run, "val/miou") == list(map(tuple, left[name].validation["miou"]))
        else:
            assert run.data.metrics == {m: v for m, v in left[name].metrics.items() if v is not None}
