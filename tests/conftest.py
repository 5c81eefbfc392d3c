"""Fixtures that several test files use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data sets; tests that need it are skipped where it is absent."""
    beside_the_checkout = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CAPTIONER_TEST_DATA", beside_the_checkout))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set CAPTIONER_TEST_DATA to their folder")
    return folder
