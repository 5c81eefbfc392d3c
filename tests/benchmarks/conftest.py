"""Fixtures of the benchmarks' tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Run a test on one thread and restore the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def error_of(capsys):
    """A function (main, options) that runs a command that must fail and returns its error line."""

    def run(main, options):
        assert main(options) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ")
        return line

    return run
