"""Fixtures that several test files use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data sets; skip the test where there is none."""
    beside_the_checkout = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CAPTIONER_TEST_DATA", beside_the_checkout))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set CAPTIONER_TEST_DATA to their folder")
    return folder


@pytest.fixture
def paint() -> Callable[..., None]:
    """Return a function (folder, *names) that writes small images, no two alike."""

    def write_images(folder: Path, *names: str) -> None:
        for number, name in enumerate(names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)

    return write_images
