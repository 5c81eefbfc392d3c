"""Photographs as a data set's reader: augmented, through the frozen part of a CNN, ahead of use."""

from __future__ import annotations

import math
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from captioner.data.dataset import CaptionDataset, Reader
from captioner.data.images import open_image
from captioner.errors import DataError
from captioner.model.encoder import Encoder

Item = TypeVar("Item")

_CROP = 0.2  # at most this share of a side is cut away
_LIGHT = 0.2  # brightness and contrast change by at most this share
_BATCHES_AHEAD = 2
_PICTURES_AT_ONCE = 16
_KEPT_BYTES = 4 << 30


class Photographs:
    """Reads the images of a data set for an encoder that learns or sees them augmented.

    `folder` holds them, or one folder for each data folder of the data set. What the encoder sees
    of each image is read once and kept, where all of it takes less than 4 GiB.
    Raises DataError, one line, for an image that cannot be read.
    """

    def __init__(self, folder: Path | Sequence[Path], dataset: CaptionDataset, encoder: Encoder):
        self._folders = [folder] if isinstance(folder, Path) else list(folder)
        self._dataset, self._encoder = dataset, encoder
        for number, own in enumerate(self._folders):
            first = own / dataset.examples[dataset.folder_of.index(number)].image
            if not first.is_file():
                raise DataError(
                    f"no photograph at {first}; give the folder that holds the photographs as "
                    "--images"
                )
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        shape = (len(dataset), 3, encoder.image_size, encoder.image_size)
        self._kept: Tensor | None = None  # (N, 3, S, S)
        if math.prod(shape) <= _KEPT_BYTES:
            self._kept = torch.empty(shape, dtype=torch.uint8, device=encoder.mean.device)
        self._known = [False] * len(dataset)

    def augmented(self, seed: int) -> Reader:
        """A reader of what the frozen part of the encoder makes of augmented images.

        Each image is cut by at most a fifth of its width and height, made lighter or darker, and
        mirrored where asked; its colours stay, because captions name them. The same seed changes an
        image in the same way, whatever is read before it. Where nothing of the encoder learns, the
        reader gives its features.
        """

        @torch.no_grad()
        def read(indices: Sequence[int], mirrored: Sequence[bool]) -> Tensor:
            pixels = augment(
                self._pixels(indices),
                [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in indices],
                mirrored,
            )
            frozen = self._encoder.frozen_part(pixels)
            learns = self._encoder.trained_blocks > 0
            return frozen if learns else self._encoder.trained_part(frozen)

        return read

    def encoded(self, encoder: Encoder | None = None, *, progress: bool = False) -> Reader:
        """A reader of the features that the encoder gives now; all are made at once, in float16.

        `encoder` takes the place of the object's own.
        """
        encoder = encoder or self._encoder
        made, total = [], len(self._dataset)
        bar = tqdm(total=total, unit="img", desc="encoding", disable=not progress, leave=False)
        with torch.inference_mode(), bar:
            for start in range(0, total, _PICTURES_AT_ONCE):
                some = range(start, min(start + _PICTURES_AT_ONCE, total))
                made.append(encoder(self._pixels(some)).half().cpu())
                bar.update(len(some))
        features = torch.cat(made)  # (N, L, D)
        return lambda indices, _mirrored: features[list(indices)].float()

    def _pixels(self, indices: Sequence[int]) -> Tensor:
        """What the encoder sees of some images, uint8 (n, 3, S, S) on its device."""
        unknown = [index for index in indices if not self._known[index]]
        read = list(self._pool.map(self._read, unknown))
        device = self._encoder.mean.device
        if self._kept is None:
            return torch.stack(read).to(device)
        for index, pixels in zip(unknown, read, strict=True):
            self._kept[index] = pixels.to(device)
            self._known[index] = True
        return self._kept[torch.tensor(indices, device=device)]

    def _read(self, index: int) -> Tensor:
        folder = self._folders[self._dataset.folder_of[index]]
        return self._encoder.preprocess(open_image(folder / self._dataset.examples[index].image))


def augment(
    pixels: Tensor, generators: Sequence[torch.Generator], mirrored: Sequence[bool]
) -> Tensor:
    """Crop, light and mirror images: pixels (B, 3, S, S) in 0..255, each by its own generator."""
    numbers = torch.stack([torch.rand(6, generator=g) for g in generators])  # on the CPU: the same
    size = 1 - _CROP * numbers[:, :2]  # shares of the width and the height that are left
    centre = (1 - size) * (2 * numbers[:, 2:4] - 1)
    scale = size * torch.tensor([[-1.0, 1.0] if flip else [1.0, 1.0] for flip in mirrored])
    theta = torch.cat([torch.diag_embed(scale), centre.unsqueeze(2)], 2).to(pixels.device)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    cut = F.grid_sample(
        pixels.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    light = (1 + _LIGHT * (2 * numbers[:, 4:] - 1)).to(pixels.device).view(-1, 2, 1, 1, 1)
    brightness, contrast = light.unbind(1)
    cut = cut * brightness
    mean = cut.mean((1, 2, 3), keepdim=True)
    return ((cut - mean) * contrast + mean).clamp_(0, 255)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, the next ones made in a thread while one is in use; errors come through."""
    waiting: queue.Queue[tuple[Item | None, Exception | None]] = queue.Queue(_BATCHES_AHEAD)
    stop = threading.Event()

    def put(item: Item | None, error: Exception | None) -> None:
        while not stop.is_set():
            try:
                return waiting.put((item, error), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item, None)
                if stop.is_set():
                    return
            put(None, None)
        except Exception as error:  # raised where the item is waited for
            put(None, error)

    thread = threading.Thread(target=work, name="photographs", daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stop.set()
        thread.join()
