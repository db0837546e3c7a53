"""MLflow: a run for each job, with its parameters, losses, scores, record and page.

MLflow's own settings say where to: MLFLOW_TRACKING_URI (default: mlflow.db in the working directory, as for
`mlflow ui`) and MLFLOW_EXPERIMENT_NAME (default: laurepro). `mlflow.json` in the job's folder names the run, which a
job that resumes continues: values that the run has are not sent again.
"""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laurepro import trackers
from laurepro.atomic import write_atomic
from laurepro.errors import LaureproError, install
from laurepro.record import Record, read_json
from laurepro.spec import Job, Raw

FILE = "mlflow.json"  # in a job's folder: the store and the run
SECONDS = 5.0  # between two batches of values: a store takes tens of milliseconds for each
MOST_METRICS, MOST_PARAMS = 900, 100  # of one batch; MLflow takes 1000 and 100
MOST_CHARACTERS = 500  # of a parameter: what older versions take


def check() -> None:
    """Raise LaureproError where MLflow is not installed, or its store cannot be used. Makes the store and experiment.

    Jobs that start together then find them there.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise LaureproError("--track mlflow: the package mlflow is not installed", install("mlflow"))
    try:
        _experiment(_client())
    except Exception as error:  # of a store, a server, a driver
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LaureproError(
            f"--track mlflow: its store cannot be used: {reason}",
            f"MLFLOW_TRACKING_URI is {os.environ.get('MLFLOW_TRACKING_URI', 'not set')}; "
            "a database needs SQLAlchemy and alembic, which the extra laurepro[mlflow] brings",
        ) from None


def _client() -> Any:
    # MLflow reports its use unless told not to, and waits minutes for a server that does not answer.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow.tracking import MlflowClient

    return MlflowClient()


def _experiment(client: Any) -> str:
    """The id of the experiment, which is made if it is not there."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "laurepro")
    existing = client.get_experiment_by_name(name)
    return str(existing.experiment_id if existing is not None else client.create_experiment(name))


class Tracker(trackers.Tracker):
    """Sends what it is told in batches: all at the end, and of a process that is killed all but the last seconds."""

    def __init__(self, job: Job, folder: Path, fresh: bool) -> None:
        super().__init__(job, folder, fresh)
        self._client, self._batch, self._sent = _client(), list[Any](), time.monotonic()
        self._last: dict[str, int] = {}  # the last step that the run has of each metric
        self._run = self._resumed() or self._new()
        self._done = False

    def step(self, values: Mapping[str, Any]) -> None:
        """`train/loss`, `train/lr` and `train/epoch`."""
        scalars = {f"train/{name}": float(values[name]) for name in trackers.SCALARS if name in values}
        self._add(int(values["step"]), scalars)

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """`val/miou` and others."""
        self._add(step, {f"val/{metric}": value for metric, value in scores.items()})

    def finished(self, record: Record, file: Path) -> None:
        """The scores, the record's file, and the job's page."""
        from laurepro import report

        self._add(0, {metric: value for metric, value in record.metrics.items() if value is not None})
        self._flush()
        self._client.log_artifact(self._run, str(file))
        self._client.log_text(self._run, report.render_job(record), "page.html")
        self._client.set_terminated(self._run)
        self._done = True

    def close(self) -> None:
        """Send what is left; a run whose job is not done is marked as killed."""
        self._flush()
        if not self._done:
            self._client.set_terminated(self._run, status="KILLED")

    def _resumed(self) -> str | None:
        """The run that an earlier leg of the job has begun in this store, if it is still there and not done.

        A job that is done and runs once more, as its record or weights are gone, starts over.
        """
        from mlflow.exceptions import MlflowException

        begun = None if self.fresh else read_json(self.folder / FILE)
        if begun is None or begun.get("store") != self._client.tracking_uri:
            return None
        try:
            run = self._client.get_run(str(begun.get("run")))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        if run.info.lifecycle_stage != "active" or run.info.status == "FINISHED":
            return None
        run_id: str = run.info.run_id
        self._client.update_run(run_id, status="RUNNING")
        self._last = {
            metric: max(point.step for point in self._client.get_metric_history(run_id, metric))
            for metric in run.data.metrics
        }
        return run_id

    def _new(self) -> str:
        """A new run with the job's parameters."""
        from mlflow.entities import Param

        run = self._client.create_run(_experiment(self._client), run_name=self.job.name)
        run_id: str = run.info.run_id
        where = {"store": self._client.tracking_uri, "run": run_id}
        write_atomic(self.folder / FILE, json.dumps(where), durable=False)
        params = [Param(name, value) for name, value in parameters(self.job).items()]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(run_id, params=params[start : start + MOST_PARAMS])
        return run_id

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        """Put values into the batch, but for those that the run has."""
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        self._batch += [Metric(m, value, now, step) for m, value in values.items() if step > self._last.get(m, -1)]
        if len(self._batch) >= MOST_METRICS or time.monotonic() - self._sent > SECONDS:
            self._flush()

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        if batch:
            self._client.log_batch(self._run, metrics=batch)
        self._sent = time.monotonic()


def parameters(job: Job) -> dict[str, str]:
    """Every field of the job's experiment by its path, as `train.lr`, with stage, scale, seed and key."""
    experiment = job.experiment.model_dump(mode="json")
    start = job.starts_from
    experiment["init_from"] = None if start is None else start.name
    head = {"job": job.name, "stage": job.stage, "scale": job.scale, "seed": job.seed, "key": job.key}
    return {name: str(value)[:MOST_CHARACTERS] for name, value in (head | _flat(experiment)).items()}


def _flat(tree: Raw, path: str = "") -> Raw:
    """Nested mappings as one, with dots in its names."""
    flat: Raw = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat
