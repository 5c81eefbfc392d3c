"""Fixtures of the tests of training."""

from collections.abc import Callable

import pytest


@pytest.fixture
def stop_after() -> Callable[..., dict]:
    """Return a function (*steps) that makes the arguments of `train` to stop after these steps."""

    def arguments(*steps: int) -> dict:
        done = 0

        def after_step(run, _batch):
            nonlocal done
            done = run.progress.step

        return {"after_step": after_step, "stop": lambda: done in steps}

    return arguments
