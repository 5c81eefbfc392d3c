"""Photographs as a data set's reader: augmented, through the frozen part of a CNN, ahead of use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from captioner.data import CaptionDataset, Reader
from captioner.encoder import Encoder
from captioner.errors import DataError
from captioner.images import open_image

Item = TypeVar("Item")

_CROP = 0.2  # at most this share of a side is cut away
_LIGHT = 0.2  # brightness and contrast change by at most this share
_BATCHES_AHEAD = 2
_PICTURES_AT_ONCE = 16


class Photographs:
    """Reads the photographs of a data set for an encoder that learns.

    Raises DataError, one line, for a photograph that cannot be read.
    """

    def __init__(self, folder: Path, dataset: CaptionDataset, encoder: Encoder):
        self._folder, self._dataset, self._encoder = folder, dataset, encoder
        first = folder / dataset.examples[0].image
        if not first.is_file():
            raise DataError(
                f"no photograph at {first}; give the folder that holds the photographs as --images"
            )

    def augmented(self, seed: int) -> Reader:
        """A reader of what the frozen part of the encoder makes of augmented pictures.

        Each picture is cut by at most a fifth of its width and height, made lighter or darker, and
        mirrored where asked; its colours stay, because captions name them. The same seed changes a
        picture in the same way, whatever is read before it.
        """

        @torch.no_grad()
        def read(indices: Sequence[int], mirrored: Sequence[bool]) -> Tensor:
            pixels = []
            for index, mirror in zip(indices, mirrored, strict=True):
                generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
                cut = self._encoder.preprocess(_cropped(self._picture(index), generator))
                cut = _lit(cut.float(), generator)
                pixels.append(cut.flip(-1) if mirror else cut)
            batch = torch.stack(pixels).to(self._encoder.mean.device)
            return self._encoder.frozen_part(batch)

        return read

    def encoded(self, *, progress: bool = False) -> Reader:
        """A reader of the features that the encoder gives now; all are made at once, in float16."""
        made, total = [], len(self._dataset)
        bar = tqdm(total=total, unit="img", desc="encoding", disable=not progress, leave=False)
        with torch.inference_mode(), bar:
            for start in range(0, total, _PICTURES_AT_ONCE):
                some = range(start, min(start + _PICTURES_AT_ONCE, total))
                pixels = torch.stack(
                    [self._encoder.preprocess(self._picture(index)) for index in some]
                )
                made.append(self._encoder(pixels.to(self._encoder.mean.device)).half().cpu())
                bar.update(len(some))
        features = torch.cat(made)  # (N, L, D)
        return lambda indices, _mirrored: features[list(indices)].float()

    def _picture(self, index: int) -> Image.Image:
        return open_image(self._folder / self._dataset.examples[index].image)


def _cropped(image: Image.Image, generator: torch.Generator) -> Image.Image:
    shares = torch.rand(4, generator=generator).tolist()
    width, height = (
        round(side * (1 - _CROP * share)) for side, share in zip(image.size, shares, strict=False)
    )
    left, top = round((image.width - width) * shares[2]), round((image.height - height) * shares[3])
    return image.crop((left, top, left + width, top + height))


def _lit(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels (3, S, S) in 0..255 with another brightness and contrast."""
    brightness, contrast = (1 + _LIGHT * (2 * torch.rand(2, generator=generator) - 1)).tolist()
    mean = pixels.mean() * brightness
    lit: Tensor = (pixels * brightness - mean) * contrast + mean
    return lit.clamp_(0, 255)


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
