"""One process of one job: set up, run the stage, write a record or a failure. Every launcher starts this module.

    python -m laurepro.worker --job '{"stage": "train", ...}' --runs runs --results results --data data

Exit codes: 0 a record was written (or was there), 1 the job failed, 2 bad input, 3 the loss is not finite, 75 another
process runs this job, 143 stopped by a signal after a checkpoint: started again, it resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from laurepro import failures, record
from laurepro.atomic import write_atomic
from laurepro.errors import Diverged, LaureproError
from laurepro.failures import BAD_INPUT, BUSY, DIVERGED, FINAL, NO_RETRY, STOP, STOPPED, die_with_parent, orphaned
from laurepro.spec import Job, parts, weights
from laurepro.trackers import Trackers

if TYPE_CHECKING:
    from laurepro.stages import Result
    from laurepro.stages._legs import Legs

LOCK_SECONDS = 0.2  # longer than `status` holds a lock that it looks at
GO = -1  # rank 0's decision where there is work; any other number is the exit code
STARTED_OVER = "started-over"  # in a job's folder, from --fresh to its record: an older record does not end it
_stop = False


def _on_signal(signum: int, frame: object) -> None:
    global _stop
    _stop = True


class Progress:
    """Writes `progress.json`, at most twice a second, for `status` and the launcher's bars; trackers are told all."""

    def __init__(self, file: Path, trackers: Trackers) -> None:
        self.file, self.last, self.trackers = file, 0.0, trackers
        self.values: dict[str, Any] = {}
        self.validation: dict[str, Any] = {}

    def __call__(self, values: dict[str, Any]) -> None:
        """Store the newest values."""
        self.values = values
        self.trackers.step(values)
        now = time.monotonic()
        if now - self.last > 0.5 or values.get("step") == values.get("steps"):
            self.last = now
            self._write()

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Store the newest scores of a training."""
        self.values = {"step": step} | self.values
        self.validation = {"validated_step": step, "validation": next(iter(scores.values()))}
        self.trackers.validated(step, scores)
        self._write()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # only shown; a full disk is an error where something would be lost
            values = {**self.values, **self.validation, "time": time.time()}
            write_atomic(self.file, json.dumps(values), durable=False)


def main(argv: list[str] | None = None) -> int:
    """Run one job in this process. Returns the exit code."""
    die_with_parent()
    if orphaned():
        return 1
    parser = argparse.ArgumentParser(prog="python -m laurepro.worker", description=__doc__.splitlines()[0])
    parser.add_argument("--job", required=True, help="the job as JSON")
    for option in ("--runs", "--results", "--data"):
        parser.add_argument(option, type=Path, required=True)
    parser.add_argument("--fresh", action="store_true", help="start over instead of from a checkpoint")
    parser.add_argument("--track", action="append", default=[], help="name of a tracker")
    args = parser.parse_args(argv)
    os.environ["LAUREPRO_DATA"] = str(args.data)  # where a data set without a plug-in's file is looked for
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # under nohup it stays ignored
            signal.signal(number, _on_signal)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = "not restricted" if visible is None else visible or "none"  # torch, which knows more, is not imported yet
    logging.info("CPU cores: %d, GPUs: %s", record.cores(), gpus)
    job = Job.model_validate_json(args.job)
    folder = record.run_folder(args.runs, job)
    folder.mkdir(parents=True, exist_ok=True)
    rank = int(os.environ.get("RANK", "0"))
    lock = FileLock(folder / "lock")
    try:
        code = _claim(args, job, folder, lock) if rank == 0 else GO
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return _run(args, job, folder, rank) if code == GO else code
        from laurepro import distributed

        distributed.initialise()
        code = distributed.from_rank_0(code)  # rank 0 decides for all
        if code == GO:
            distributed.check_shared(folder)
            code = _run(args, job, folder, rank)
        distributed.leave()
        return code
    except Exception as error:  # every error is reported by failure.json and the exit code
        code = BAD_INPUT if isinstance(error, LaureproError) else DIVERGED if isinstance(error, Diverged) else 1
        _fail(folder, rank, error, code)
        return code
    finally:
        lock.release()


def _claim(args: argparse.Namespace, job: Job, folder: Path, lock: FileLock) -> int:
    """Take the job's lock and remove outdated files. Returns GO, or the exit code if there is nothing to do."""
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        logging.info("%s runs %s", failures.holder(folder), job.name)
        return BUSY
    except OSError as error:
        raise LaureproError(
            f"{lock.lock_file}: cannot be locked: {error.strerror}",
            "choose a --runs folder on a file system with locks; NFS needs lockd on the server and on this machine",
        ) from None
    failures.write_holder(folder)
    if not args.fresh and not (folder / STARTED_OVER).exists():
        if _finished(args, job):
            return 0
        if (lost := _diverged(args, job)) is not None:
            if not (folder / "failure.json").exists():
                failures.write(folder, failures.of_diverged(lost))
            (folder / NO_RETRY).touch()
            return DIVERGED
    for old in [*folder.glob("failure*.json"), folder / NO_RETRY]:
        old.unlink(missing_ok=True)
    if args.fresh:
        for old in [*folder.glob("checkpoint*"), *folder.glob("weights.pt*"), *folder.glob("counts-*.json")]:
            old.unlink()
        (folder / STARTED_OVER).touch()
    return GO


def _finished(args: argparse.Namespace, job: Job) -> bool:
    """Whether a record (and, for a training, its weights) appeared while this process started."""
    try:
        record.read(record.records_dir(args.results) / f"{job.name}.json")
    except LaureproError:  # none, or an unreadable one, which counts as missing
        return False
    return job.stage != "train" or record.has_weights(args.runs, job)


def _diverged(args: argparse.Namespace, job: Job) -> record.Record | None:
    """The record of the job's divergence, if one appeared while this process started."""
    if job.name in record.names(args.results):
        return None  # --force had it trained after all
    with contextlib.suppress(LaureproError):
        return record.read(record.diverged_dir(args.results) / f"{job.name}.json")
    return None


def _run(args: argparse.Namespace, job: Job, folder: Path, rank: int) -> int:
    from laurepro import distributed
    from laurepro.datasets import data_digest, data_source
    from laurepro.evaluation import images
    from laurepro.spec.sources import check_sources
    from laurepro.stages import Context, Stopped, diverged
    from laurepro.stages._legs import Legs

    distributed.initialise()
    stage = parts.load("stages", job.stage)
    need = job.needs
    legs = Legs(weights.packages(job.experiment, job.stage))
    context = Context(
        folder=folder,
        data_root=args.data,
        weights=record.run_folder(args.runs, need) if need else None,
        progress=lambda values: None,
        stop_requested=lambda: _stop or (folder / STOP).exists(),
        legs=legs,
    )
    copy = None if job.stage == "profile" else data_digest(job.experiment.data, args.data)
    check_sources(job.experiment, copy)
    progress: Progress | None = None
    with contextlib.ExitStack() as stack:
        if rank == 0:
            trackers = Trackers(args.track, job, folder, args.fresh)
            stack.callback(trackers.close)
            progress = Progress(folder / "progress.json", trackers)
            context = context._replace(progress=progress, validated=progress.validated)
        try:
            result = stage.run(job, context)
        except Stopped:
            logging.info("stopped by a signal; the checkpoint is written")
            return STOPPED
        except Diverged as error:
            if progress is not None:
                record.write(args.results, _record(job, diverged(error.step), progress, legs, copy, None, None))
                (folder / STARTED_OVER).unlink(missing_ok=True)
            raise
        if progress is not None:  # only rank 0 writes the record
            source = None if copy is None else data_source(job.experiment.data, args.data)
            counts = None if result.images is None else images.write(args.results, job.name, result.images)
            written = _record(job, result, progress, legs, copy, source, counts)
            trackers.finished(written, record.write(args.results, written))
            (folder / STARTED_OVER).unlink(missing_ok=True)
    return 0


def _record(
    job: Job, result: Result, progress: Progress, legs: Legs, copy: str | None, source: str | None, counts: str | None
) -> record.Record:
    """What the job leaves.

    `copy`: the digest of its data; `source`: which form of the originals they came from; `counts`: the digest of the
    file of each image's counts.
    """
    from laurepro import distributed

    done = int(progress.values.get("step", 0))
    all_legs = legs.after(done, result.device, result.threads, distributed.world_size())
    environment = all_legs[-1].environment
    if any(leg.environment.dirty for leg in all_legs):
        environment = environment.model_copy(update={"dirty": True})
    return record.Record(
        job=job.name,
        key=job.key,
        stage=job.stage,
        scale=job.scale,
        dataset=job.experiment.data.name,
        split=job.experiment.eval.split if job.stage == "evaluate" else job.experiment.data.train_split,
        seed=job.seed,
        experiment=job.experiment,
        metrics=result.metrics,
        class_names=result.class_names,
        confusion=result.confusion,
        boundary_confusion=result.boundary_confusion,
        boundary_counts=result.boundary_counts,
        image_counts_sha256=counts,
        curve=result.curve,
        validation=result.validation,
        kept_step=result.kept_step,
        diverged_at=result.diverged_at,
        weights_sha256=result.weights_sha256,
        pretrained_sha256=result.pretrained_sha256,
        data_sha256=copy,
        data_source=source,
        idle_share=progress.values.get("idle_share"),
        environment=environment,
        started=all_legs[0].started,
        seconds=round(sum(leg.seconds for leg in all_legs), 2),
        legs=all_legs if len(all_legs) > 1 else (),
        world_size=distributed.world_size(),
        command=os.environ.get("LAUREPRO_COMMAND") or shlex.join(sys.argv),
    )


def _fail(folder: Path, rank: int, error: Exception, code: int) -> None:
    """Write `failure.json`: reason, rank, and the last frames. `diagnose` takes the rank that failed first."""
    if code in FINAL:
        with contextlib.suppress(OSError):
            (folder / NO_RETRY).touch()
    with contextlib.suppress(OSError):  # the log may be on a full disk
        traceback.print_exc()
    reason = str(error) if isinstance(error, LaureproError) else f"{type(error).__name__}: {error}"
    last = tuple(traceback.format_exc().splitlines()[-failures.LAST_LINES :])
    typed, remedy = failures.typed_command(), FINAL.get(code)
    note = failures.FailureNote(
        reason=reason, rank=rank, last_lines=last, time=time.time(), remedy=remedy, command=typed
    )
    failures.write(folder, note, "failure.json" if rank == 0 else f"failure-rank{rank}.json")


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)  # everything is written, and tearing down torch takes half a second
