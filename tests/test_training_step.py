"""The options of a training step: what each does to numbers, to batch normalisation, to what autograd keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROW
from test_stages import after, make_context, make_job
from torch import Tensor, nn

from laurepro import plan, spec
from laurepro.errors import LaureproError
from laurepro.network import model
from laurepro.network.model import normalise
from laurepro.stages import Stopped, train
from laurepro.training import losses
from laurepro.training import step as training_step
from laurepro.training.step import Stepper

CPU = torch.device("cpu")
CLASSES = 8
OPTIONS: dict[str, dict[str, Any]] = {
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "accumulate": {"accumulate": 2},
    "checkpoint": {"checkpoint_activations": True},
    "fused": {"fused_optimizer": True},
}
ROWS: dict[str, dict[str, Any]] = {
    "lau": {},
    "bilinear": {"model": {"upsampler": {"kind": "bilinear"}}, "loss": {"kind": "cross_entropy"}},
}

pytestmark = pytest.mark.usefixtures("torch_settings")


def batch(n: int = 4, size: int = 32) -> tuple[Tensor, Tensor]:
    """Images and labels; each label map has another share of ignored pixels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=generator)
    target = torch.randint(0, CLASSES, (n, size, size), generator=generator)
    for i in range(n):
        target[i, : size * i // n] = -1
    return images, target


def stepper(job: spec.Job, seed: int = 0) -> Stepper:
    torch.manual_seed(seed)
    e = job.experiment
    return training_step.set_up(model.build(e.model, e.op, CLASSES), e.train, e.loss, CPU)


def gradients(stepper: Stepper, seed: int = 5) -> tuple[Tensor, dict[str, Tensor]]:
    """Of one batch: the loss, and each parameter's gradient."""
    torch.manual_seed(seed)  # dropout
    loss = training_step.accumulate_gradients(stepper, *batch())
    return loss, {n: p.grad for n, p in stepper.network.named_parameters() if p.grad is not None}


def without_batch_statistics(stepper: Stepper) -> Stepper:
    """Batch normalisation by its running averages: an image's output no longer depends on the others."""
    for module in stepper.network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()
    return stepper


# --------------------------------------------------------------------------------------------------- fields


def test_defaults_change_no_key_and_every_option_does() -> None:
    table, row = plan.select([ROW], spec.scale("smoke"))[0]

    def key(**train: Any) -> str:
        experiment = spec.resolve(table, row, spec.scale("smoke"), {"train": train} if train else None)
        return spec.Job(stage="train", scale="smoke", seed=0, experiment=experiment).key

    defaults = {
        "precision": "float32",
        "tf32": True,
        "compile": "none",
        "fused_optimizer": False,
        "accumulate": 1,
        "checkpoint_activations": False,
    }
    assert key(**defaults) == key()
    others = [*OPTIONS.values(), {"tf32": False}, {"compile": "default"}, {"compile": "reduce-overhead"}]
    assert len({key(), *(key(**option) for option in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"precision": "half"}, "train.precision"),
        ({"accumulate": 3}, "batch_size 16 cannot be split into accumulate 3"),
        ({"accumulate": True}, "expected a number"),
        ({"compile": "default", "checkpoint_activations": True}, "checkpoint_activations is for compile none"),
        ({"compile": "reduce-overhead", "accumulate": 2}, "reduce-overhead is for accumulate 1"),
    ],
)
def test_what_does_not_go_together_is_refused_when_it_is_read(train: dict[str, Any], message: str) -> None:
    table, row = plan.select([ROW], spec.scale("smoke"))[0]
    with pytest.raises(LaureproError, match=message):
        spec.resolve(table, row, spec.scale("smoke"), {"train": train})


def test_a_weighted_mean_needs_the_whole_batch() -> None:
    weighted = {"normalize": "weight", "offset_weight": 0.3}
    make_job(loss=weighted)
    with pytest.raises(LaureproError, match="normalize weight needs 1, got 2"):
        make_job(loss=weighted, train={"accumulate": 2})


def test_what_the_machine_lacks_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "set_up", lambda *_: pytest.fail("work was begun"))
    if not torch.cuda.is_available():
        with pytest.raises(LaureproError, match="reduce-overhead: replays CUDA graphs"):
            train.run(make_job(train={"compile": "reduce-overhead"}), make_context(tmp_path / "graphs"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(LaureproError, match="needs a C\\+\\+ compiler, and no-such-compiler was not found"):
        training_step.check(spec.Train(epochs=1, compile="default"), 1, CPU)


# ---------------------------------------------------------------------------------------------- plain step


@pytest.mark.parametrize("row", ROWS)
def test_the_default_step_is_a_plain_loop_to_the_bit(row: str) -> None:
    job = make_job(**ROWS[row])
    ours, e = stepper(job), job.experiment
    torch.manual_seed(0)
    network = model.build(e.model, e.op, CLASSES).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameter_groups(network, e.train), lr=e.train.lr, momentum=e.train.momentum)
    images, target = batch()
    for seed in range(2):
        torch.manual_seed(seed)
        found = training_step.step(ours, images, target)
        torch.manual_seed(seed)
        loss = losses.segmentation_loss(network(normalise(images)), target, e.loss)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.equal(found, loss.detach())
    for (name, a), b in zip(network.state_dict().items(), ours.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("option", OPTIONS)
def test_resumed_is_bitwise_the_same(option: str, tmp_path: Path) -> None:
    job = make_job(train={**OPTIONS[option], "iterations": 5})
    whole = train.run(job, make_context(tmp_path / "whole"))
    with pytest.raises(Stopped):
        train.run(job, make_context(tmp_path / "parts", stop=after(2)))
    assert train.run(job, make_context(tmp_path / "parts")) == whole
    plain = train.run(make_job(train={"iterations": 5}), make_context(tmp_path / "plain"))
    assert whole.curve[0][1] == pytest.approx(plain.curve[0][1], rel=0.05)


# ----------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_of_the_network_alone(precision: str, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(**spec.merge(ROWS[row], {"train": {"precision": precision}}))
    _, exact = gradients(stepper(make_job(**ROWS[row])))
    ours = stepper(job)
    seen: dict[str, torch.dtype] = {}

    def loss(output: model.Output, *args: Any, **options: Any) -> dict[str, Tensor]:
        parts = [output.logits, output.se_logits, output.aux_logits, *(output.sampling or ())[:2]]
        assert {t.dtype for t in parts if t is not None} == {torch.float32}
        return segmentation_loss(output, *args, **options)

    segmentation_loss = losses.segmentation_loss
    monkeypatch.setattr(losses, "segmentation_loss", loss)
    hook = ours.network.backbone.layer4.register_forward_hook(lambda *a: seen.update(layer4=a[2].dtype))
    value, found = gradients(ours)
    hook.remove()
    assert seen["layer4"] == training_step.DTYPES[precision] and value.dtype == torch.float32
    scale = ours.scaler.get_scale()  # 1 where nothing is scaled
    assert scale == (65536 if precision == "float16" else 1)
    assert {g.dtype for g in found.values()} == {torch.float32}
    a, b = (torch.cat([g[n].flatten() for n in exact]) for g in (exact, found))
    cosine = torch.nn.functional.cosine_similarity(a, b / scale, 0)
    assert cosine > 0.9 and not torch.equal(a, b / scale)


def test_the_encoding_is_in_float32_under_autocast() -> None:
    from laurepro.heads.encnet import Encoding

    torch.manual_seed(0)
    encoding, x = Encoding(8, 4), 10 + torch.randn(2, 8, 5, 5)
    expected = encoding(x.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoding(x.bfloat16()), expected)


def test_a_step_whose_scaled_gradients_overflow_is_left_out(tmp_path: Path) -> None:
    ours = stepper(make_job(train={"precision": "float16"}))
    ours.scaler.load_state_dict({**ours.scaler.state_dict(), "scale": 2.0**120})
    before = [p.detach().clone() for p in ours.network.parameters()]
    loss = training_step.step(ours, *batch())
    assert torch.isfinite(loss) and ours.scaler.get_scale() == 2.0**119
    assert all(torch.equal(a, b) for a, b in zip(before, ours.network.parameters(), strict=True))


# -------------------------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("normalize", ["valid", "all"])
@pytest.mark.parametrize("count", ["global", "rank"])
def test_accumulated_gradients_are_those_of_the_batch(row: str, normalize: str, count: str) -> None:
    """Where an image's output does not depend on the others, however unequally the ignored pixels are spread."""
    changes = spec.merge(ROWS[row], {"model": {"dropout": 0.0}, "loss": {"normalize": normalize, "count": count}})
    value, whole = gradients(without_batch_statistics(stepper(make_job(**changes))))
    for parts in (2, 4):
        job = make_job(**spec.merge(changes, {"train": {"accumulate": parts}}))
        loss, found = gradients(without_batch_statistics(stepper(job)))
        torch.testing.assert_close(loss, value, rtol=1e-5, atol=1e-6)
        for name, gradient in whole.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_accumulation_is_one_update_and_many_of_batch_normalisation() -> None:
    ours = stepper(make_job(train={"accumulate": 4}))
    training_step.step(ours, *batch(8))
    norm = ours.network.backbone.bn1
    assert int(norm.num_batches_tracked) == 4
    state = next(iter(ours.optimizer.state.values()))
    assert state["momentum_buffer"] is not None and ours.network.backbone.layer1[0].bn3.num_batches_tracked == 4
    plain = stepper(make_job())
    training_step.step(plain, *batch(8))
    assert int(plain.network.backbone.bn1.num_batches_tracked) == 1
    assert not torch.equal(plain.network.backbone.bn1.running_var, norm.running_var)


# ------------------------------------------------------------------------------------------- checkpointing


def kept_bytes(stepper: Stepper) -> int:
    """What autograd holds at the end of a forward pass, parameters left out."""
    storages: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in stepper.network.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = training_step.forward(stepper, batch(4, 64)[0])
    del output
    return sum(storages.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_changes_no_bit_and_moves_the_averages_once(precision: str) -> None:
    changes: dict[str, Any] = {"model": {"backbone": {"blocks": (2, 1, 2, 1)}}, "train": {"precision": precision}}
    plain = stepper(make_job(**changes))
    ours = stepper(make_job(**spec.merge(changes, {"train": {"checkpoint_activations": True}})))
    for seed in range(2):
        (a, expected), (b, found) = gradients(plain, seed), gradients(ours, seed)
        assert torch.equal(a, b)
        for name, gradient in expected.items():
            assert torch.equal(found[name], gradient), name
    for (name, a), b in zip(plain.network.state_dict().items(), ours.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert int(ours.network.backbone.layer1[0].bn1.num_batches_tracked) == 2
    assert kept_bytes(ours) < 0.6 * kept_bytes(plain)


# --------------------------------------------------------------------------------------------- compilation


def test_the_network_can_be_traced_for_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through Dynamo and AOTAutograd, without generating code: the same loss and gradients."""
    modes: list[str] = []
    compile_ = torch.compile

    def traced(network: nn.Module, *, mode: str, dynamic: bool) -> Any:
        modes.append(mode)
        return compile_(network, backend="aot_eager", dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", traced)
    changes = {"model": {"dropout": 0.0}}
    loss, expected = gradients(stepper(make_job(**changes)))
    ours = stepper(make_job(**spec.merge(changes, {"train": {"compile": "default"}})))
    value, found = gradients(ours)
    assert modes == ["default"] and ours.forward is not ours.network
    torch.testing.assert_close(value, loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    assert "_orig_mod" not in "".join(ours.network.state_dict())


@pytest.mark.cxx
@pytest.mark.timeout(600)
def test_a_compiled_training_resumes(tmp_path: Path) -> None:
    job = make_job(train={"compile": "default", "iterations": 3})
    whole = train.run(job, make_context(tmp_path / "whole"))
    with pytest.raises(Stopped):
        train.run(job, make_context(tmp_path / "parts", stop=after(1)))
    assert train.run(job, make_context(tmp_path / "parts")) == whole
    plain = train.run(make_job(train={"iterations": 3}), make_context(tmp_path / "plain"))
    assert whole.curve[0][1] == pytest.approx(plain.curve[0][1], rel=0.2)  # another dropout


@pytest.mark.gpu
@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("compile_", ["none", "default", "reduce-overhead"])
def test_options_on_a_gpu(precision: str, compile_: str, tmp_path: Path) -> None:
    changes = {"precision": precision, "compile": compile_, "fused_optimizer": True, "iterations": 4}
    found = train.run(make_job(model={"dropout": 0.0}, train=changes), make_context(tmp_path / "gpu"))
    plain = train.run(make_job(model={"dropout": 0.0}, train={"iterations": 4}), make_context(tmp_path / "plain"))
    assert found.curve[0][1] == pytest.approx(plain.curve[0][1], rel=0.05)


@pytest.mark.gpu
def test_batches_copied_ahead_are_the_batches() -> None:
    rng = np.random.default_rng(0)
    shape = (4, 256, 256)
    batches = [(rng.integers(0, 256, (*shape, 3), np.uint8), rng.integers(-1, 9, shape)) for _ in range(8)]
    copied = batches._copied_ahead(iter(batches), torch.device("cuda", 0))
    for (images, labels), (found, found_labels) in zip(batches, copied, strict=True):
        torch.cuda._sleep(10**7)  # the copy that runs ahead must not overwrite what is still to be read
        assert torch.equal(found.cpu(), torch.from_numpy(images))
        assert torch.equal(found_labels.cpu(), torch.from_numpy(labels))
