"""Augment training images and run the frozen part of the CNN on them, ahead of their use."""

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
from captioner.model.encoder import Encoder

Item = TypeVar("Item")

_CROP = 0.2  # at most this share of a side is cropped
_LIGHT = 0.2  # brightness and contrast change by at most this share
_BATCHES_AHEAD = 2
_ENCODED_AT_ONCE = 16  # images
_CACHE_BYTES = 4 << 30


class AugmentedImages:
    """Reads the images of a data set, augmented or as they are, through an encoder.

    `folders` holds the images of each data folder of the data set. The preprocessed images are
    read once and cached, if all of them take less than 4 GiB.
    Raises DataError for an image that cannot be read.
    """

    def __init__(self, folders: Sequence[Path], dataset: CaptionDataset, encoder: Encoder):
        self._folders, self._dataset, self._encoder = folders, dataset, encoder
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
        shape = (len(dataset), 3, encoder.image_size, encoder.image_size)
        self._cache: Tensor | None = None  # (N, 3, S, S)
        if math.prod(shape) <= _CACHE_BYTES:
            self._cache = torch.empty(shape, dtype=torch.uint8, device=encoder.mean.device)
        self._cached = [False] * len(dataset)

    def augmented(self, seed: int) -> Reader:
        """Return a reader of augmented images, after the frozen part of the encoder.

        Each image is cropped by at most a fifth of its width and height, made lighter or darker,
        and mirrored on request. Its hue stays, because captions name colours. The same seed changes
        an image in the same way, whatever is read before it. The reader returns features if the
        whole encoder is frozen.
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
        """Return a reader of the features of the images as they are, computed now, in float16.

        `encoder` replaces the object's own.
        """
        encoder = encoder or self._encoder
        computed, total = [], len(self._dataset)
        bar = tqdm(total=total, unit="img", desc="encoding", disable=not progress, leave=False)
        with torch.inference_mode(), bar:
            for start in range(0, total, _ENCODED_AT_ONCE):
                some = range(start, min(start + _ENCODED_AT_ONCE, total))
                computed.append(encoder(self._pixels(some)).half().cpu())
                bar.update(len(some))
        features = torch.cat(computed)  # (N, L, D)
        return lambda indices, _mirrored: features[list(indices)].float()

    def _pixels(self, indices: Sequence[int]) -> Tensor:
        """Return preprocessed images, uint8 (n, 3, S, S), on the device of the encoder."""
        unknown = [index for index in indices if not self._cached[index]]
        read = list(self._pool.map(self._read, unknown))
        device = self._encoder.mean.device
        if self._cache is None:
            return torch.stack(read).to(device)
        for index, pixels in zip(unknown, read, strict=True):
            self._cache[index] = pixels.to(device)
            self._cached[index] = True
        return self._cache[torch.tensor(indices, device=device)]

    def _read(self, index: int) -> Tensor:
        folder = self._folders[self._dataset.folder_of[index]]
        return self._encoder.preprocess(open_image(folder / self._dataset.examples[index].image))


def augment(
    pixels: Tensor, generators: Sequence[torch.Generator], mirrored: Sequence[bool]
) -> Tensor:
    """Crop, brighten and mirror images, pixels (B, 3, S, S) in 0..255, each by its generator."""
    # Sampled on the CPU, so that a seed gives the same numbers on every device.
    numbers = torch.stack([torch.rand(6, generator=g) for g in generators])
    size = 1 - _CROP * numbers[:, :2]  # shares of width and height that stay
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
    """Yield the same items, computed ahead in a thread; raise its errors where they belong."""
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
        except Exception as error:  # raised again for the one who waits
            put(None, error)

    thread = threading.Thread(target=work, name="images", daemon=True)
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
