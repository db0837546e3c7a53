"""Checkpoints and final weights, written atomically and checked when they are read.

A checkpoint `checkpoint-00000100.ckpt` is one line of text (`head -n 1` shows it: key, step, sha256), followed by
the output of `torch.save`. The final weights `weights.pt` are an ordinary torch file,
`{"sha256": ..., "state_dict": ...}`.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laurepro import distributed
from laurepro.atomic import remove_unfinished, replacing
from laurepro.errors import LaureproError

KEPT = 2  # the last one, and the one before in case the last is broken
WEIGHTS = "weights.pt"
_MAGIC = "laurepro-checkpoint-1"
_log = logging.getLogger(__name__)


class Broken(Exception):
    """A file is not what was written."""


def save(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write the state after `step` steps atomically, and remove all but the last two.

    Args:
        folder: The job's folder. Only one process may write there: partly written files are removed.
        step: The number of steps done.
        state: What `torch.load(weights_only=True)` accepts, with the job's key under "key".
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    payload = buffer.getbuffer()
    key = str(state["key"])
    header = f"{_MAGIC} key={key} step={step} sha256={_checksum(key, step, payload)}\n"
    with replacing(folder / f"checkpoint-{step:08d}.ckpt") as stream:
        stream.write(header.encode())
        stream.write(payload)
    remove_unfinished(folder / "checkpoint-*.ckpt")
    for old in _newest_first(folder)[KEPT:]:
        old.unlink(missing_ok=True)


class Checkpoint(NamedTuple):
    """What a file holds: the fields of its first line, and the state."""

    key: str
    step: int
    sha256: str
    state: dict[str, Any]


def load_latest(folder: Path, key: str) -> dict[str, Any] | None:
    """The newest state that rank 0 can read, on every rank alike, its tensors on the CPU, or None. All ranks call it.

    A broken file is reported and skipped by rank 0. The others load the one that it chose, by step and checksum.

    Raises:
        LaureproError: The newest readable one belongs to another key; or, on every rank, a rank cannot read the one
            that rank 0 chose: they would train on from different steps.
    """
    chosen = _latest(folder, key) if distributed.rank() == 0 else None
    choice = bytes(40) if chosen is None else chosen.step.to_bytes(8, "big") + bytes.fromhex(chosen.sha256)
    choice = distributed.bytes_from_rank_0(choice)
    if not any(choice):
        return None
    step, sha256 = int.from_bytes(choice[:8], "big"), choice[8:].hex()
    file = folder / f"checkpoint-{step:08d}.ckpt"
    reason = ""
    if chosen is None:
        try:
            chosen = _read(file)
            reason = "" if chosen.sha256 == sha256 else "it is not the one that rank 0 reads"
        except Broken as error:
            reason = str(error)
    if reason:
        _log.error("%s: %s", file, reason)
    if failed := distributed.ranks_with(bool(reason)):
        detail = f": {reason}" if reason else ""
        raise LaureproError(
            f"{file}: rank 0 resumes from it, and rank {', '.join(map(str, failed))} cannot read it{detail}",
            "every node must see the same files below --runs; remove the file to resume from the one before",
        )
    assert chosen is not None
    return chosen.state


def _latest(folder: Path, key: str) -> Checkpoint | None:
    """The newest checkpoint that can be read, or None."""
    files = _newest_first(folder)
    for older, file in enumerate(files, 1):
        try:
            checkpoint = _read(file)
        except Broken as error:
            instead = (
                f"{files[older].name} is used" if older < len(files) else "there is no other: starting from step 0"
            )
            _log.warning("%s is broken (%s); %s", file, error, instead)
            continue
        if checkpoint.key != key:
            raise LaureproError(
                f"{file}: is a checkpoint of key {checkpoint.key}, expected {key}",
                "it was trained with other settings; remove the folder, or use another --runs",
            )
        return checkpoint
    return None


def save_weights(folder: Path, state_dict: Mapping[str, Tensor]) -> str:
    """Write `weights.pt` atomically. Returns its `weights_sha256`."""
    weights = {name: tensor.detach().cpu() for name, tensor in state_dict.items()}
    digest = weights_sha256(weights)
    buffer = io.BytesIO()
    torch.save({"sha256": digest, "state_dict": weights}, buffer)
    with replacing(folder / WEIGHTS) as stream:
        stream.write(buffer.getbuffer())
    remove_unfinished(folder / WEIGHTS)
    return digest


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Read `weights.pt`, on the CPU, and check its checksum.

    Raises:
        LaureproError: It is missing, or not what was written.
    """
    file = folder / WEIGHTS
    hint = "train that job again: laurepro run ... --force"
    if not file.is_file():
        raise LaureproError(f"{file}: no such file", hint)
    try:
        content = _load(_bytes(file))
        state_dict: dict[str, Tensor] = content["state_dict"]
        if weights_sha256(state_dict) != content["sha256"]:
            raise Broken("its checksum differs")
    except (Broken, KeyError, TypeError, AttributeError) as error:
        raise LaureproError(f"{file}: is broken ({error})", hint) from None
    return state_dict


def weights_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """The sha256 over name, dtype, shape and bytes of each tensor, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checksum(key: str, step: int, payload: memoryview) -> str:
    # The header's fields are covered too: a flipped bit in the key must not look like another job's checkpoint.
    digest = hashlib.sha256(f"{_MAGIC} {key} {step}\n".encode())
    digest.update(payload)
    return digest.hexdigest()


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*.ckpt"), reverse=True)


def _read(file: Path) -> Checkpoint:
    """Read and check one checkpoint. Raises Broken."""
    content = _bytes(file)
    end = content.find(b"\n", 0, 300)
    words = content[: max(end, 0)].decode("ascii", "replace").split(" ")
    fields = dict(word.partition("=")[::2] for word in words[1:])
    if words[0] != _MAGIC or set(fields) != {"key", "step", "sha256"}:
        raise Broken("its first line is damaged or cut short")
    payload = memoryview(content)[end + 1 :]
    if not fields["step"].isdigit() or _checksum(fields["key"], int(fields["step"]), payload) != fields["sha256"]:
        raise Broken("its checksum differs")
    return Checkpoint(fields["key"], int(fields["step"]), fields["sha256"], _load(payload))


def _bytes(file: Path) -> bytes:
    """A file's content. Raises Broken where the disk cannot give it."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise Broken(f"cannot be read: {error.strerror}") from None


def _load(payload: bytes | memoryview) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch raise nearly anything
        raise Broken(str(error).splitlines()[0] if str(error) else type(error).__name__) from None
    return state
