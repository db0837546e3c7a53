"""Batches of a training: which images a rank reads at a step, read ahead and copied to the device."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from laurepro import spec
from laurepro.datasets import Image, Images, Label
from laurepro.training.augment import draw_corner, draw_flips, training_sample

AHEAD = 2  # batches that are read ahead


KEEP_DECODED = 2**30  # bytes: a smaller data set is decoded once and kept in memory


class Batches:
    """The images of a step and their augmentation: a function of (seed, step) alone.

    Batch b of an epoch is perm[b*B : (b+1)*B], of which rank r of R takes [r::R]; a smaller last batch is dropped.
    """

    def __init__(
        self,
        images: Images,
        data: spec.Data,
        seed: int,
        batch_size: int,
        rank: int,
        world: int,
        on_device: bool = True,
    ) -> None:
        self._on_device = on_device  # if the data set is small enough
        self._images, self._data, self._seed = images, data, seed
        self._batch_size, self._rank, self._world = batch_size, rank, world
        self._order: tuple[int, list[int]] = (-1, [])
        image, _ = images[0]
        # uint8 colours and int16 labels of one image, times all
        self._keep = len(images) * (image.nbytes + image.nbytes // 3 * 2) <= KEEP_DECODED
        self._decoded: dict[int, tuple[Image, npt.NDArray[np.int16]]] = {}

    def epoch(self, step: int) -> int:
        """The epoch of a step, from 0."""
        return step // (len(self._images) // self._batch_size)

    def indices(self, step: int) -> list[int]:
        """The images of this rank at a step."""
        epoch, batch = divmod(step, len(self._images) // self._batch_size)
        if self._order[0] != epoch:
            # The count makes this stream different from that of any image's augmentation.
            rng = np.random.default_rng([self._seed, epoch, len(self._images)])
            self._order = (epoch, rng.permutation(len(self._images)).tolist())
        start = batch * self._batch_size
        return self._order[1][start : start + self._batch_size][self._rank :: self._world]

    def tensors(self, first: int, last: int, workers: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what `read` yields, on the device.

        A small data set whose images have one size and are only flipped and cropped is kept on the GPU, and the same
        crops are cut there.
        """
        whole = self._whole(workers, device) if device.type == "cuda" and self._on_device else None
        if whole is not None:
            yield from (self._cut(*whole, step) for step in range(first, last))
            return
        batches = self.read(first, last, workers)
        # One worker reads a batch only when asked for it: to read the next one first would leave the GPU idle.
        yield from _copied_ahead(batches, device) if device.type == "cuda" and workers > 1 else _copied(batches, device)

    def read(self, first: int, last: int, workers: int) -> Iterator[tuple[Image, Label]]:
        """Yield images uint8 [n, crop, crop, 3] and labels int64 [n, crop, crop] of steps first ... last-1."""
        if workers == 1:
            for step in range(first, last):
                yield _stack([self._sample(self.epoch(step), i) for i in self.indices(step)])
            return
        with ThreadPoolExecutor(workers) as pool:
            pending: deque[list[Future[tuple[Image, Label]]]] = deque()
            for step in range(first, last + AHEAD):
                if step < last:
                    epoch = self.epoch(step)
                    pending.append([pool.submit(self._sample, epoch, i) for i in self.indices(step)])
                if step >= first + AHEAD:
                    yield _stack([future.result() for future in pending.popleft()])

    def _sample(self, epoch: int, index: int) -> tuple[Image, Label]:
        return training_sample(*self._image(index), self._data, self._rng(epoch, index))

    def _rng(self, epoch: int, index: int) -> np.random.Generator:
        """The generator that augments an image in an epoch, on any rank and in any worker."""
        return np.random.default_rng([self._seed, epoch, index])

    def _image(self, index: int) -> tuple[Image, Label]:
        if index in self._decoded:
            image, small = self._decoded[index]
            return image, small.astype(np.int64)
        image, label = self._images[index]
        if self._keep:
            self._decoded[index] = image, label.astype(np.int16)
        return image, label

    def _whole(self, workers: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """All images uint8 [N, H, W, 3] and labels int16 [N, H, W] on the device; None if they do not fit there."""
        augment = self._data.augment
        if not self._keep or augment.short_side is not None or augment.blur:
            return None
        with ThreadPoolExecutor(workers) as pool:
            decoded = list(pool.map(self._image, range(len(self._images))))
        shapes = {label.shape for _, label in decoded}
        if len(shapes) > 1 or min(*shapes.pop()) < self._data.crop_size:
            return None
        images = torch.from_numpy(np.stack([image for image, _ in decoded]))
        labels = torch.from_numpy(np.stack([label.astype(np.int16) for _, label in decoded]))
        self._decoded.clear()
        return images.to(device), labels.to(device)

    def _cut(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step from `_whole`: images uint8 [n, crop, crop, 3], labels int64 [n, crop, crop]."""
        epoch, crop = self.epoch(step), self._data.crop_size
        batch = []
        for index in self.indices(step):
            rng = self._rng(epoch, index)
            hflip, vflip = draw_flips(self._data.augment, rng)
            top, left = draw_corner(labels.shape[1], labels.shape[2], crop, rng)
            axes = [axis for axis, flip in enumerate((vflip, hflip)) if flip]
            window = (slice(top, top + crop), slice(left, left + crop))
            batch.append((images[index].flip(axes)[window], labels[index].flip(axes)[window]))
        return torch.stack([image for image, _ in batch]), torch.stack([label for _, label in batch]).long()


def _copied(batches: Iterator[tuple[Image, Label]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in batches:
        yield torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


def _copied_ahead(batches: Iterator[tuple[Image, Label]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The same; each batch is copied to the GPU from pinned memory, on a separate stream, while another is used."""
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[Tensor, Tensor, torch.cuda.Event] | None = None
    for batch in chain(batches, [None]):
        following = None
        if batch is not None:
            with torch.cuda.stream(copies):
                images, labels = (torch.from_numpy(a).pin_memory().to(device, non_blocking=True) for a in batch)
            following = images, labels, copies.record_event()
        if ahead is not None:
            images, labels, arrived = ahead
            current = torch.cuda.current_stream(device)
            current.wait_event(arrived)
            for tensor in (images, labels):
                tensor.record_stream(current)  # allocated on the other stream: freed only when this one is done
            yield images, labels
        ahead = following


def _stack(samples: list[tuple[Image, Label]]) -> tuple[Image, Label]:
    return np.stack([image for image, _ in samples]), np.stack([label for _, label in samples])


def reading_threads(train: spec.Train) -> int:
    """Threads that read images. One: in the training's own thread, for processes that share few cores."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return train.threads or max(1, min(8, (os.cpu_count() or 1) // local))
