"""Training, evaluation, checkpoints and several processes, all with tiny networks on the CPU."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, fork_python
from torch import Tensor, nn

from laurepro import distributed, spec
from laurepro.datasets import open_split
from laurepro.errors import Diverged, LaureproError
from laurepro.network import checkpoint, model
from laurepro.network.model import MEAN, STD, normalise
from laurepro.stages import Context, Result, Stopped, evaluate, train
from laurepro.stages._legs import Legs
from laurepro.training.batches import Batches
from laurepro.training.clock import STEPS_IN_FLIGHT, IdleClock
from laurepro.training.progress import agree
from laurepro.training.schedule import learning_rates

STEPS = 8

pytestmark = pytest.mark.usefixtures("torch_settings")


def make_job(stage: str = "train", seed: int = 0, scale: str = "test", **changes: dict[str, Any]) -> spec.Job:
    """A job whose network has width 4; `changes` are laid over its parts."""
    parts: dict[str, Any] = {
        "model": {
            "backbone": {"width": 4, "blocks": (1, 1, 1, 1)},
            "head": {"kind": "encnet", "channels": 8, "codewords": 4},
            "upsampler": {"kind": "lau", "scale_factor": 4, "bottleneck_channels": 4},
            "aux_channels": 4,
            "dropout": 0.1,
        },
        "loss": {"kind": "offset_guided", "normalize": "valid"},
        "data": {
            "name": "shapes",
            "base_size": 64,
            "crop_size": 32,
            "augment": {"short_side": (0.5, 1.0)},
            "options": {"train_images": 18, "val_images": 5},
        },
        "train": {"iterations": STEPS, "batch_size": 4, "lr": 0.02, "head_lr_multiplier": 2.0, "threads": 1},
        "eval": {"mode": "whole"},
    }
    experiment = spec.Experiment.model_validate(spec.merge(parts, changes))
    return spec.Job(stage=stage, scale=scale, seed=seed, experiment=spec.canonical(experiment))


def make_context(folder: Path, weights: Path | None = None, stop: Callable[[], bool] = lambda: False) -> Context:
    folder.mkdir(exist_ok=True)
    return Context(folder, folder.parent / "data", weights, lambda values: None, stop)


def after(steps: int) -> Callable[[], bool]:
    """Asks for a stop when it is called the n-th time, which is after n steps."""
    calls = iter(range(1, 10**6))
    return lambda: next(calls) >= steps


# ------------------------------------------------------------------------------------------------ training


def test_same_seed_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    a = train.run(make_job(), make_context(tmp_path / "a"))
    b = train.run(make_job(), make_context(tmp_path / "b"))
    c = train.run(make_job(seed=1), make_context(tmp_path / "c"))
    assert a == b
    assert a.weights_sha256 != c.weights_sha256
    assert [step for step, _ in a.curve] == list(range(1, STEPS + 1))
    assert (a.device, a.threads, a.metrics) == ("cpu", 1, {})
    saved = torch.load(tmp_path / "a" / "weights.pt", weights_only=True)
    assert saved["sha256"] == a.weights_sha256 == checkpoint.weights_sha256(saved["state_dict"])


@pytest.mark.parametrize("stops", [(3,), (2, 4)])
def test_stopped_and_resumed_is_bitwise_the_same(tmp_path: Path, stops: tuple[int, ...]) -> None:
    whole = train.run(make_job(), make_context(tmp_path / "whole"))
    for steps in stops:
        with pytest.raises(Stopped):
            train.run(make_job(), make_context(tmp_path / "parts", stop=after(steps)))
    assert (tmp_path / "parts" / f"checkpoint-{sum(stops):08d}.ckpt").is_file()
    torch.rand(7)  # what other code drew in between does not matter
    assert train.run(make_job(), make_context(tmp_path / "parts")) == whole


def test_reading_in_a_pool_gives_the_same_batches(tmp_path: Path) -> None:
    job = make_job()
    _, images = open_split(job.experiment.data, tmp_path, "train")
    batches = Batches(images, job.experiment.data, 0, 4, 0, 1)
    inline, pooled = list(batches.read(2, 9, 1)), list(batches.read(2, 9, 3))
    assert len(inline) == len(pooled) == 7
    for (a, b), (c, d) in zip(inline, pooled, strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, d)


def test_an_epoch_is_a_permutation_shared_by_the_ranks(tmp_path: Path) -> None:
    job = make_job()
    _, images = open_split(job.experiment.data, tmp_path, "train")  # 18 images: 4 batches, 2 left out
    whole = Batches(images, job.experiment.data, 5, 4, 0, 1)
    ranks = [Batches(images, job.experiment.data, 5, 4, r, 2) for r in range(2)]
    first = [i for step in range(4) for i in whole.indices(step)]
    second = [i for step in range(4, 8) for i in whole.indices(step)]
    assert len(set(first)) == len(set(second)) == 16 and first != second
    assert [whole.epoch(step) for step in (0, 3, 4)] == [0, 0, 1]
    for step in (6, 1):  # in any order
        shares = [ranks[r].indices(step) for r in range(2)]
        assert [shares[i % 2][i // 2] for i in range(4)] == whole.indices(step)


def test_poly_schedule_and_phases() -> None:
    rates = learning_rates(spec.Train(epochs=3, batch_size=4, lr=0.5), 18)
    assert rates == pytest.approx([0.5 * (1 - t / 12) ** 0.9 for t in range(12)])
    assert len(learning_rates(spec.Train(iterations=7), 100)) == 7
    phases = ({"iterations": 2, "lr": 1.0}, {"iterations": 4, "lr": 0.1})
    rates = learning_rates(spec.Train(phases=phases, power=1.0), 100)
    assert rates == pytest.approx([1.0, 0.5, 0.1, 0.075, 0.05, 0.025])
    with pytest.raises(LaureproError, match="more than the 15"):
        learning_rates(spec.Train(epochs=1, batch_size=16), 15)


def test_each_group_has_its_rate_and_decay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, tuple[float, float]]] = []

    class Recorded(torch.optim.SGD):
        def step(self, *args: Any) -> None:  # type: ignore[override]
            seen.append({g["name"]: (g["lr"], g["weight_decay"]) for g in self.param_groups})
            assert all(g["momentum"] == 0.9 for g in self.param_groups)

    monkeypatch.setattr(torch.optim, "SGD", Recorded)
    changes = {"iterations": 2, "lr": 0.02, "head_lr_multiplier": 3.0, "offset_lr_multiplier": 5.0}
    train.run(make_job(train=changes), make_context(tmp_path / "job"))
    second = 0.02 * 0.5**0.9
    assert seen[0] == {"backbone": (0.02, 1e-4), "head": (0.06, 1e-4), "offset": (0.1, 0.0)}
    assert {name: lr for name, (lr, _) in seen[1].items()} == pytest.approx(
        {"backbone": second, "head": 3 * second, "offset": 5 * second}
    )


def test_progress_and_curve(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    context = make_context(tmp_path / "job")._replace(progress=told.append)
    plain = {"upsampler": {"kind": "bilinear"}}
    job = make_job(model=plain, loss={"kind": "cross_entropy"}, train={"iterations": 60})
    result = train.run(job, context)
    assert [t["step"] for t in told] == list(range(1, 61)) and {t["steps"] for t in told} == {60}
    assert told[4]["epoch"] == 1  # 18 images are 4 batches
    assert [step for step, _ in result.curve] == list(range(2, 61, 2))
    assert result.curve[3][1] == pytest.approx((told[6]["loss"] + told[7]["loss"]) / 2)
    assert np.mean([loss for _, loss in result.curve[-5:]]) < np.mean([loss for _, loss in result.curve[:5]])
    names = sorted(file.name for file in (tmp_path / "job").iterdir())
    assert names == ["checkpoint-00000025.ckpt", "checkpoint-00000050.ckpt", "weights.pt"]


@pytest.mark.parametrize("stop", [None, 1, 2, 3, 5])
def test_losses_that_are_read_later_change_nothing(
    stop: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, which is a step ahead of what is read: stopped, resumed or not, the same curve and weights."""
    expected = train.run(make_job(), make_context(tmp_path / "at once"))
    seen: list[dict[str, Any]] = []

    monkeypatch.setitem(STEPS_IN_FLIGHT, "cpu", 1)
    context = make_context(tmp_path / "later")._replace(progress=seen.append)
    if stop is not None:
        asked = iter(range(100))
        with pytest.raises(Stopped):
            train.run(make_job(), context._replace(stop_requested=lambda: next(asked) >= stop))
        assert seen[-1]["step"] == stop + 2  # the step that was under way is done too
    assert train.run(make_job(), context) == expected
    assert [v["step"] for v in seen] == list(range(1, seen[-1]["steps"] + 1))


def test_the_time_between_steps_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = iter([1.0, 1.5, 3.0, 3.25])  # a step ends, the next begins
    monkeypatch.setattr("laurepro.training.clock.time.perf_counter", lambda: next(now))
    clock = IdleClock(torch.device("cpu"))
    found = []
    for _ in range(3):
        clock.begin_step()
        clock.end_step() if len(found) < 2 else None
        found.append(clock.idle_seconds())
    assert found == [0.0, 0.5, 0.25]
    monkeypatch.undo()
    values: list[dict[str, Any]] = []
    train.run(make_job(), make_context(tmp_path)._replace(progress=values.append))
    assert all(0 <= v["idle_share"] < 1 for v in values) and values[-1]["idle_share"] > 0


@pytest.mark.gpu
def test_a_gpu_that_is_kept_waiting_is_idle() -> None:
    device = torch.device("cuda")
    work, clock = torch.rand(2048, 2048, device=device), IdleClock(device)
    idle = []
    for wait in (0.0, 0.2, 0.0):
        time.sleep(wait)
        clock.begin_step()
        work @ work
        clock.end_step()
        idle.append(clock.idle_seconds())
    assert idle[0] == 0.0 and 0.19 < idle[1] < 0.4 and idle[2] < 0.1


def test_checkpoints_by_time_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train.run(make_job(), make_context(tmp_path / "plain"))
    assert not list((tmp_path / "plain").glob("*.ckpt"))
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
    assert train.run(make_job(), make_context(tmp_path / "timed")) == plain
    names = sorted(f.name for f in (tmp_path / "timed").glob("*.ckpt"))
    assert names == [f"checkpoint-{step:08d}.ckpt" for step in (STEPS - 2, STEPS - 1)]


def test_starting_from_other_weights(tmp_path: Path) -> None:
    parent = make_job(seed=7, train={"iterations": 1})
    train.run(parent, make_context(tmp_path / "parent"))
    weights = checkpoint.load_weights(tmp_path / "parent")
    job = make_job()
    for part, expected in (("model", set(weights)), ("backbone", {n for n in weights if n.startswith("backbone.")})):
        network = model.build(job.experiment.model, job.experiment.op, 8)
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        train.start_from(network, part, make_context(tmp_path / "child", weights=tmp_path / "parent"))
        after_ = network.state_dict()
        changed = {name for name in weights if not torch.equal(before[name], after_[name])}
        assert changed <= expected and all(torch.equal(after_[name], weights[name]) for name in expected)
        assert any(name.startswith("backbone.") for name in changed)
    with pytest.raises(LaureproError, match="do not fit"):
        other = model.build(make_job(model={"backbone": {"width": 8}}).experiment.model, job.experiment.op, 8)
        train.start_from(other, "backbone", make_context(tmp_path / "child", weights=tmp_path / "parent"))
    with pytest.raises(LaureproError, match="no such file"):
        train.start_from(network, "model", make_context(tmp_path / "child", weights=tmp_path / "nowhere"))


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"not finite at step \d+, rank 0"):
        train.run(make_job(train={"lr": 1e30}), make_context(tmp_path / "job"))
    assert not list((tmp_path / "job").iterdir())


# --------------------------------------------------------------------------------------------- checkpoints


def test_a_broken_checkpoint_is_reported_and_the_one_before_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        (tmp_path / f".checkpoint-{step:08d}.ckpt.1.tmp").write_text("left by a killed process")
        checkpoint.save(tmp_path, step, {"key": "k", "x": torch.arange(1000), "step": step})
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["checkpoint-00000002.ckpt", "checkpoint-00000003.ckpt"]
    newest = tmp_path / names[1]
    content = newest.read_bytes()
    state = checkpoint.load_latest(tmp_path, "k")
    assert state is not None and state["step"] == 3 and torch.equal(state["x"], torch.arange(1000))
    assert not caplog.records

    def flipped(at: int) -> bytes:
        return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]

    header = content.index(b"\n")
    assert content[:header].startswith(b"laurepro-checkpoint-1 key=k step=3 sha256=")
    damages = [content[:-1], content[: len(content) // 2], content[:20], b""]
    damages += [flipped(at) for at in (0, content.index(b"key=k") + 4, header, header + 100, len(content) - 1)]
    for damaged in damages:
        newest.write_bytes(damaged)
        caplog.clear()
        state = checkpoint.load_latest(tmp_path, "k")
        assert state is not None and state["step"] == 2
        [message] = [r for r in caplog.records if r.levelno == logging.WARNING]
        assert str(newest) in message.getMessage()


def test_a_checkpoint_that_the_disk_cannot_give_is_broken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Reading /proc/self/mem from its start is an EIO, as of a failing disk."""
    checkpoint.save(tmp_path, 1, {"key": "k", "step": 1})
    newest = tmp_path / "checkpoint-00000002.ckpt"
    newest.symlink_to("/proc/self/mem")
    if not newest.exists():
        pytest.skip("no /proc")
    state = checkpoint.load_latest(tmp_path, "k")
    assert state is not None and state["step"] == 1
    assert f"{newest} is broken (cannot be read: Input/output error); checkpoint-00000001.ckpt is used" in caplog.text
    (tmp_path / "weights.pt").symlink_to("/proc/self/mem")
    with pytest.raises(LaureproError, match=r"weights\.pt: is broken \(cannot be read: Input/output error\)"):
        checkpoint.load_weights(tmp_path)


def test_checkpoint_of_another_key(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path, "mine") is None
    checkpoint.save(tmp_path, 1, {"key": "theirs"})
    with pytest.raises(LaureproError, match=r"theirs.*mine"):
        checkpoint.load_latest(tmp_path, "mine")


def test_broken_weights(tmp_path: Path) -> None:
    weights = {"b": torch.randn(50, 20), "a": torch.tensor(3), "c": torch.zeros(0)}
    digest = checkpoint.save_weights(tmp_path, weights)
    loaded = checkpoint.load_weights(tmp_path)
    assert digest == checkpoint.weights_sha256(loaded) and loaded.keys() == weights.keys()
    file = tmp_path / "weights.pt"
    content = file.read_bytes()
    data = content.index(weights["b"].numpy().tobytes()) + 100
    for damaged in (content[:-50], content[:data] + bytes([content[data] ^ 1]) + content[data + 1 :], b""):
        file.write_bytes(damaged)
        with pytest.raises(LaureproError, match="broken"):
            checkpoint.load_weights(tmp_path)


def test_weights_sha256_sees_names_types_shapes_and_bytes_but_not_memory_layout() -> None:
    x = torch.arange(24, dtype=torch.float32).view(1, 2, 3, 4)
    digest = checkpoint.weights_sha256({"a": x, "b": torch.ones(2)})
    assert digest == checkpoint.weights_sha256({"b": torch.ones(2), "a": x.to(memory_format=torch.channels_last)})
    for other in (x + 1, x.view(1, 2, 4, 3), x.view(torch.int32)):
        assert digest != checkpoint.weights_sha256({"a": other, "b": torch.ones(2)})
    assert digest != checkpoint.weights_sha256({"a": x, "c": torch.ones(2)})


def test_normalise() -> None:
    batch = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    found = normalise(batch)
    assert found.is_contiguous(memory_format=torch.channels_last) and found.dtype == torch.float32
    expected = (batch.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    torch.testing.assert_close(found, expected.permute(0, 3, 1, 2).float())


# --------------------------------------------------------------------------------------- several processes


def together_job(stage: str = "train", mode: str = "slide", **changes: dict[str, Any]) -> spec.Job:
    """A job whose numbers depend on the number of processes by rounding only: no dropout, and no offsets.

    Offsets make the gradient jump where a sample crosses into the next cell, and the offset weight makes the loss
    jump where both losses are equal, which a last bit can decide. Evaluation does not differ even by rounding: whole
    blocks of images go to a rank, and 40 images are several. The rate is small, for these few noisy steps blow
    rounding up: at 0.02 a change of the first weights by 1e-6 is one of the eighth loss by 1e-4.
    """
    network = {"dropout": 0.0, "upsampler": {"kind": "bilinear"}}
    evaluation = {"mode": mode, "base_size": 80, "crop_size": 64}
    data = {"options": {"train_images": 18, "val_images": 40}}
    parts = {"model": network, "loss": {"kind": "cross_entropy"}, "eval": evaluation, "data": data}
    return make_job(stage, 3, **spec.merge({**parts, "train": {"lr": 0.004}}, changes))


def sampled_job() -> spec.Job:
    """One step of a row with offsets, whose mean is over valid pixels of the sampling grid."""
    return make_job(model={"dropout": 0.0}, loss={"offset_weight": 0.0}, train={"iterations": 1})


def micro_job() -> spec.Job:
    """Batches of eight in two micro-batches; `together_job` has the reasons for the rest."""
    return together_job(train={"batch_size": 8, "accumulate": 2, "iterations": 3})


def batch_norm_case(rank: int | None) -> dict[str, Tensor]:
    """Two steps of 1d and 2d normalisation; 5 samples, 2 of them for rank 0 and 3 for rank 1; None: all."""
    generator = torch.Generator().manual_seed(0)
    x2 = torch.randn(5, 3, 4, 6, generator=generator, dtype=torch.float64) + 100
    x1, w2 = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((5, 4), (5, 3, 4, 6)))
    network = nn.ModuleDict({"a": nn.BatchNorm2d(3, momentum=0.3), "b": nn.BatchNorm1d(4, momentum=None)}).double()
    network["a"].weight.data += torch.arange(3)
    names = list(network.state_dict())
    network = distributed.synchronise_batch_norm(network)  # type: ignore[assignment]
    assert list(network.state_dict()) == names
    share = slice(None) if rank is None else slice(0, 2) if rank == 0 else slice(2, 5)
    inputs = [x[share].clone().requires_grad_() for x in (x2, x1)]
    for _ in range(2):
        outputs = [network["a"](inputs[0]), network["b"](inputs[1])]
        ((outputs[0] * w2[share]).sum() + outputs[1].pow(3).sum()).backward()
    network.eval()
    gradients = {n: distributed.all_reduce_sum(p.grad) for n, p in network.named_parameters() if p.grad is not None}
    evaluated = network["a"](x2).detach()
    values = {"y2": outputs[0], "y1": outputs[1], "g2": inputs[0].grad, "g1": inputs[1].grad}
    return {
        **{n: v.detach() for n, v in values.items()},
        **gradients,
        **network.state_dict(),
        "evaluated": evaluated,
    }


def two_processes(rank: int, port: int, folder: Path) -> None:
    """What each of the two processes does; everything is saved for the test to compare."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.initialise()
    assert (distributed.rank(), distributed.world_size()) == (rank, 2)
    assert [distributed.any_rank(flag) for flag in (False, rank == 1, True)] == [False, True, True]
    out: dict[str, Any] = {"batch_norm": batch_norm_case(rank)}
    with pytest.raises(LaureproError, match="cannot be divided over 2"):
        train.run(make_job(train={"batch_size": 3}), make_context(folder / "odd"))
    with pytest.raises(Diverged, match="not finite at step 4, rank 1"):
        agree(math.nan if rank == 1 else 1.0, False, False, 4)
    told: list[float] = []
    context = make_context(folder / "two", stop=after(5 if rank == 1 else 10**6))
    with pytest.raises(Stopped):  # rank 1 alone is told to stop, and both do
        train.run(together_job(), context)
    assert (folder / "two" / "checkpoint-00000005.ckpt").is_file()
    context = make_context(folder / "two")._replace(progress=lambda values: told.append(float(values["loss"])))
    out["train"] = tuple(train.run(together_job(), context))
    with pytest.raises(Stopped):  # to be resumed by one process
        train.run(together_job(), make_context(folder / "shrunk", stop=after(2)))
    assert len(told) == (STEPS - 5 if rank == 0 else 0)
    out["straight"] = tuple(train.run(together_job(), make_context(folder / "straight")))
    STEPS_IN_FLIGHT["cpu"] = 1  # as GPUs, whose losses are read while the next step is under way
    with pytest.raises(Stopped):
        train.run(together_job(), make_context(folder / "behind", stop=after(3 if rank == 1 else 10**6)))
    assert (folder / "behind" / "checkpoint-00000004.ckpt").is_file()
    out["behind"] = tuple(train.run(together_job(), make_context(folder / "behind")))
    train.CHECKPOINT_SECONDS = 0.0  # a checkpoint after every step, as late as the losses are read
    out["timed"] = tuple(train.run(together_job(), make_context(folder / "timed")))
    train.CHECKPOINT_SECONDS = 600.0
    STEPS_IN_FLIGHT["cpu"] = 0
    out["sampled"] = tuple(train.run(sampled_job(), make_context(folder / "sampled")))
    with pytest.raises(LaureproError, match="the 4 images of each of 2 processes cannot be split"):
        train.run(make_job(train={"batch_size": 8, "accumulate": 8}), make_context(folder / "odd"))
    out["micro"] = tuple(train.run(micro_job(), make_context(folder / "micro")))
    context = make_context(folder / f"evaluate{rank}", weights=folder / "one")
    out["evaluate"] = tuple(evaluate.run(together_job("evaluate"), context))
    out["whole"] = tuple(evaluate.run(together_job("evaluate", "whole"), context))
    for name in ("halves", "joined"):  # the second is to be resumed by one process
        context = make_context(folder / name, weights=folder / "one", stop=after(9 if rank == 1 else 10**6))
        with pytest.raises(Stopped):
            evaluate.run(together_job("evaluate"), context._replace(legs=Legs()))
        assert sorted(file.name for file in (folder / name).iterdir()) == ["counts-0.json", "counts-1.json"]
    legs = Legs()
    context = make_context(folder / "halves", weights=folder / "one")._replace(legs=legs)
    out["halves"] = tuple(evaluate.run(together_job("evaluate"), context))
    if rank == 0:  # it clears the folder after the last sum, when the other may be here already
        assert not list((folder / "halves").iterdir()) and len(legs.after(40, "cpu", 1, 2)) == 2
    torch.save(out, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.timeout(120)
def test_two_processes_do_what_one_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = train.run(together_job(), make_context(tmp_path / "one"))
    context = make_context(tmp_path / "evaluate", weights=tmp_path / "one")
    evaluated = evaluate.run(together_job("evaluate"), context)
    whole_images = evaluate.run(together_job("evaluate", "whole"), context)
    _, images = open_split(together_job().experiment.data, tmp_path / "data", "train")
    batches = [Batches(images, together_job().experiment.data, 0, 4, r, 2).read(0, STEPS, 1) for r in (0, 1)]
    ignored = [[int((labels == -1).sum()) for _, labels in share] for share in batches]
    assert all(a != b for a, b in zip(*ignored, strict=True))  # else an unweighted mean would pass, too

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"import pathlib, test_stages; test_stages.two_processes({{}}, {port}, pathlib.Path({str(tmp_path)!r}))"
    paths = os.pathsep.join((str(Path(__file__).parent), str(ROOT)))
    both = [fork_python(code.format(rank), cwd=tmp_path, PYTHONPATH=paths) for rank in range(2)]
    for ran in [process.finish(100) for process in both]:
        assert ran.code == 0, ran.err
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]

    caplog.set_level(logging.WARNING)
    legs = Legs()
    train.run(together_job(), make_context(tmp_path / "shrunk")._replace(legs=legs))
    assert "resumes after 2 under other conditions: " in caplog.text and "world_size 2 -> 1" in caplog.text
    first, second = legs.after(STEPS, "cpu", 1, 1)
    assert (first.world_size, first.step, second.world_size, second.step) == (2, 2, 1, STEPS)
    assert first.seconds > 0 and first.environment.device == "cpu" and first.environment.threads == 1

    whole = batch_norm_case(None)
    for name, expected in whole.items():
        parts = [rank["batch_norm"][name] for rank in ranks]
        found = torch.cat(parts) if name in ("y1", "y2", "g1", "g2") else parts[0]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")

    two = [Result(*rank["train"]) for rank in ranks]
    assert two[0].weights_sha256 == two[1].weights_sha256 and two[0].curve == two[1].curve
    assert [step for step, _ in two[0].curve] == [step for step, _ in one.curve]
    np.testing.assert_allclose([v for _, v in two[0].curve], [v for _, v in one.curve], rtol=0, atol=1e-5)
    assert Result(*ranks[0]["straight"]) == two[0]  # stopped and resumed or not
    assert Result(*ranks[0]["behind"]) == two[0]  # and with losses read late
    assert Result(*ranks[1]["timed"]) == two[0]  # and with checkpoints by time
    assert [f.name for f in sorted((tmp_path / "timed").glob("*.ckpt"))] == [
        f"checkpoint-{step:08d}.ckpt" for step in (STEPS - 4, STEPS - 2)
    ]
    sampled = train.run(sampled_job(), make_context(tmp_path / "sampled1"))
    assert Result(*ranks[1]["sampled"]).curve[0][1] == pytest.approx(sampled.curve[0][1], abs=1e-5)
    train.run(micro_job(), make_context(tmp_path / "micro1"))
    assert Result(*ranks[0]["micro"]).weights_sha256 == Result(*ranks[1]["micro"]).weights_sha256
    for there, here in (("two", "one"), ("micro", "micro1")):
        weights, expected_weights = (checkpoint.load_weights(tmp_path / name) for name in (there, here))
        for name, tensor in expected_weights.items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)
    for rank in ranks:
        result = Result(*rank["evaluate"])
        assert result.confusion == evaluated.confusion
        assert result.boundary_confusion == evaluated.boundary_confusion
        assert result.metrics == evaluated.metrics
        assert result.images == evaluated.images is not None  # in the order of the split, each once
        assert Result(*rank["whole"]).confusion == whole_images.confusion
        assert Result(*rank["halves"]) == result  # stopped and resumed or not
    steps: list[Any] = []
    context = make_context(tmp_path / "joined", weights=tmp_path / "one")
    context = context._replace(legs=Legs(), progress=lambda values: steps.append(values["step"]))
    assert evaluate.run(together_job("evaluate"), context) == evaluated
    assert steps[0] > 8 and steps[-1] == 40  # what two processes had counted is not counted again
    assert "world_size 2 -> 1" in caplog.records[-1].message


def dozen_job(stage: str = "train") -> spec.Job:
    """`together_job` with batches that two, three and four processes can share."""
    return together_job(stage, train={"batch_size": 12, "iterations": 4})


def several_processes(rank: int, world: int, port: int, folder: Path) -> None:
    """What each of `world` processes does."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.initialise()
    trained = train.run(dozen_job(), make_context(folder / f"by{world}"))
    context = make_context(folder / f"evaluate-{world}-{rank}", weights=folder / "one")
    evaluated = evaluate.run(dozen_job("evaluate"), context)
    torch.save({"train": tuple(trained), "evaluate": tuple(evaluated)}, folder / f"{world}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.acceptance
@pytest.mark.timeout(600)
def test_two_three_and_four_processes_do_what_one_does(tmp_path: Path) -> None:
    one = train.run(dozen_job(), make_context(tmp_path / "one"))
    evaluated = evaluate.run(dozen_job("evaluate"), make_context(tmp_path / "evaluate", weights=tmp_path / "one"))
    for world in (2, 3, 4):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(several_processes, (world, port, tmp_path), nprocs=world)
        ranks = [torch.load(tmp_path / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]
        for rank in ranks:
            trained = Result(*rank["train"])
            np.testing.assert_allclose([v for _, v in trained.curve], [v for _, v in one.curve], rtol=0, atol=1e-5)
            assert trained.weights_sha256 == Result(*ranks[0]["train"]).weights_sha256
            assert Result(*rank["evaluate"]).confusion == evaluated.confusion
