"""The tasks: copying, adding, and images read one pixel at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from captioner.errors import ConfigError, DataError

SYMBOLS, BLANK, DELIMITER = 8, 0, 9  # of the copying task: the symbols are 1 to 8


@dataclass(frozen=True)
class Batch:
    """Sequences of one length and their targets."""

    inputs: Tensor  # (T, B, I)
    targets: Tensor  # (T, B) classes if each step has an answer, else (B,)

    def to(self, device: torch.device) -> Batch:
        """Copy to a device."""
        return Batch(self.inputs.to(device), self.targets.to(device))


class Task(ABC):
    """A source of sequences, with a loss and an accuracy.

    `steps` is the length T of a sequence, `inputs` the size I of a step, `outputs` the size of an
    answer; only the answers of the last `answered` steps count.
    """

    steps: int
    inputs: int
    outputs: int
    answered: int
    validation: Batch
    test: Batch | None = None
    device = torch.device("cpu")

    def to(self, device: torch.device) -> Task:
        """Move all data to a device; sampling does not change."""
        for name, value in vars(self).items():
            if isinstance(value, Batch | Tensor):
                setattr(self, name, value.to(device))
        self.device = device
        return self

    @abstractmethod
    def batch(self, size: int, step: int, generator: torch.Generator) -> Batch:
        """Return `size` training sequences for a step, counted from 0."""

    @abstractmethod
    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """Return the training loss of answers (answered, B, outputs)."""

    @abstractmethod
    def accuracy(self, answers: Tensor, targets: Tensor) -> float:
        """Return the share of right answers."""


class Copying(Task):
    """Remember ten symbols over T steps (Hochreiter & Schmidhuber 1997; Arjovsky et al. 2016).

    As in the h-detach authors' code: one number per step; ten symbols of 1 to 8, T - 1 blanks (0),
    the delimiter 9, ten blanks. The targets are T + 10 blanks, then the symbols. Cross-entropy over
    all T + 20 steps, accuracy over the last ten. 100,000 sequences to train, 5,000 to validate.
    `copied` sets another number of symbols; there are T + 2 `copied` steps.
    """

    inputs, outputs = 1, SYMBOLS + 1

    def __init__(
        self, length: int, seed: int, *, copied: int = 10, train: int = 100_000,
        validation: int = 5_000,
    ):  # fmt: skip
        if length < 1:
            raise ConfigError(f"length is {length}; the copying task needs at least 1")
        self.length, self.copied = length, copied
        self.steps = self.answered = length + 2 * copied
        generator = torch.Generator().manual_seed(seed)
        self._train, seen = (
            torch.randint(1, SYMBOLS + 1, (copied, size), generator=generator)
            for size in (train, validation)
        )
        self.validation = copying_batch(seen, length)

    def batch(self, size: int, step: int, generator: torch.Generator) -> Batch:
        """Sample sequences with replacement, as the authors do."""
        chosen = torch.randint(self._train.shape[1], (size,), generator=generator)
        return copying_batch(self._train[:, chosen.to(self.device)], self.length)

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy over all steps, in nats."""
        return F.cross_entropy(answers.flatten(0, 1), targets.flatten())

    def accuracy(self, answers: Tensor, targets: Tensor) -> float:
        """Return the share of the symbols copied right."""
        right = answers[-self.copied :].argmax(-1) == targets[-self.copied :]
        return right.float().mean().item()


def copying_batch(symbols: Tensor, length: int) -> Batch:
    """Return the sequences that present these symbols (`copied`, B), and their targets."""
    copied, size = symbols.shape
    steps = length + 2 * copied
    inputs = torch.full((steps, size, 1), float(BLANK), device=symbols.device)
    inputs[:copied, :, 0] = symbols.float()
    inputs[length + copied - 1] = DELIMITER
    targets = symbols.new_full((steps, size), BLANK)
    targets[-copied:] = symbols
    return Batch(inputs, targets)


class Adding(Task):
    """Add the two marked numbers of T (Hochreiter & Schmidhuber 1997; Le et al. 2015).

    Each step has a number from U(0, 1) and a mark, 1 at one step of each half and 0 elsewhere; the
    target at the end is the sum. Squared error (always answering 1 gives 0.167); an answer is right
    within 0.04.
    """

    inputs, outputs, answered = 2, 1, 1

    def __init__(self, length: int, seed: int, *, validation: int = 5_000):
        if length < 2:
            raise ConfigError(f"length is {length}; the adding task needs at least 2")
        self.steps = length
        self.validation = self.batch(validation, 0, torch.Generator().manual_seed(seed))

    def batch(self, size: int, step: int, generator: torch.Generator) -> Batch:
        """Generate new sequences."""
        half = self.steps // 2
        values = torch.rand(self.steps, size, generator=generator)
        first = torch.randint(half, (size,), generator=generator)
        second = torch.randint(half, self.steps, (size,), generator=generator)
        marks = torch.zeros_like(values)
        column = torch.arange(size)
        marks[first, column] = marks[second, column] = 1
        return Batch(torch.stack([values, marks], -1), (values * marks).sum(0)).to(self.device)

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(answers[-1, :, 0], targets)

    def accuracy(self, answers: Tensor, targets: Tensor) -> float:
        """Return the share of the sums that are right within 0.04."""
        return ((answers[-1, :, 0] - targets).abs() < 0.04).float().mean().item()


class Pixels(Task):
    """Classify a digit from its pixels, one per step: pixel and permuted MNIST (Le et al. 2015).

    Each split has images (N, pixels) in [0, 1] and labels (N,). `permuted` reads the pixels in one
    random order, the same for all images; `seed` sets the order of the training images.
    Cross-entropy at the last step.
    """

    inputs, outputs, answered = 1, 10, 1

    def __init__(
        self,
        train: tuple[Tensor, Tensor],
        validation: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        *,
        permuted: bool,
        seed: int,
    ):
        self.steps = train[0].shape[1]
        order = torch.arange(self.steps)
        if permuted:
            order = torch.randperm(self.steps, generator=torch.Generator().manual_seed(0))
        self.order = order
        self._seed, self._epoch, self._shuffled = seed, -1, torch.empty(0)
        self._train = self._read(*train)
        self.validation, self.test = self._read(*validation), self._read(*test)

    def _read(self, images: Tensor, labels: Tensor) -> Batch:
        return Batch(images[:, self.order].t().unsqueeze(-1).contiguous(), labels)

    def batch(self, size: int, step: int, generator: torch.Generator) -> Batch:
        """Return images in a new order each epoch, as the authors do; drop an incomplete batch."""
        images = len(self._train.targets)
        if size > images:
            raise ConfigError(f"batch is {size}; it must be <= {images}, the training images")
        epoch, place = divmod(step, images // size)
        if epoch != self._epoch:
            order = torch.Generator().manual_seed(1_000_003 * self._seed + epoch)
            shuffled = torch.randperm(images, generator=order)
            self._epoch, self._shuffled = epoch, shuffled.to(self.device)
        chosen = self._shuffled[place * size : (place + 1) * size]
        return Batch(self._train.inputs[:, chosen], self._train.targets[chosen])

    def loss(self, answers: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, in nats."""
        return F.cross_entropy(answers[-1], targets)

    def accuracy(self, answers: Tensor, targets: Tensor) -> float:
        """Return the share of the digits classified right."""
        return (answers[-1].argmax(-1) == targets).float().mean().item()


def digits(*, permuted: bool, seed: int) -> Pixels:
    """Load scikit-learn's 1,797 digits of 8 x 8 pixels: 1,197 to train, 300 each for the others."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("task digits: needs scikit-learn; pip install scikit-learn") from None
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order].float() / 16, labels[order].long()
    splits = zip(images.split([1197, 300, 300]), labels.split([1197, 300, 300]), strict=True)
    return Pixels(*splits, permuted=permuted, seed=seed)


def mnist(folder: Path, *, permuted: bool, seed: int) -> Pixels:
    """Load MNIST, downloaded into `folder` once: 50,000 to train, 10,000 each to validate, test.

    Raises DataError if it is neither there nor can be downloaded.
    """
    from torchvision.datasets import MNIST

    try:
        seen, test = (MNIST(str(folder), train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"MNIST is not in {folder} and cannot be downloaded ({error}); put torchvision's four "
            f"files into {folder / 'MNIST' / 'raw'}, or take `task: digits`"
        ) from None
    images, test_images = (split.data.flatten(1).float() / 255 for split in (seen, test))
    train = (images[:50_000], seen.targets[:50_000])
    validation = (images[50_000:], seen.targets[50_000:])
    return Pixels(train, validation, (test_images, test.targets), permuted=permuted, seed=seed)
