"""The commands of the benchmarks: what is wrong is one line on stderr, and exit code 1."""

import pytest

from benchmarks.captioning_study.__main__ import main as study
from benchmarks.gradients.__main__ import main as gradients
from benchmarks.memory.__main__ import main as memory
from benchmarks.throughput.__main__ import main as throughput

DETACH = ["detach", "--data", "x", "--out", "x"]


@pytest.mark.parametrize(
    ("main", "options", "said"),
    [
        (study, [], "STUDY"),
        (study, ["sideways"], "sideways"),
        (study, ["detach", "--out", "x"], "--data"),
        (study, [*DETACH, "--probs", "1.5"], "--probs"),
        (study, [*DETACH, "--rates", "0"], "--rates"),
        (study, [*DETACH, "--seeds", "one"], "--seeds"),
        (study, [*DETACH, "--decoders", "show"], "--decoders"),
        (study, [*DETACH, "--plot", "x.txt"], "--plot"),
        (study, ["ingredients", "--data", "x", "--out", "x", "--only", "salt"], "salt"),
        (study, ["detach", "--data", "no/such/data", "--out", "x/../."], "no features at"),
        (memory, ["run"], "no command 'run'; choose from train, report, transfer, gradients"),
        (memory, ["report", "--out=nowhere"], "no trial in nowhere is finished yet"),
        (memory, ["train", "--methods=[lstmm]"], "no method 'lstmm'"),
        (memory, ["train", "--seeds=[]"], "seeds is empty"),
        (memory, ["report", "--solved=99"], "solved is 99.0; it must be above 0 and at most 1"),
        (memory, ["train", "--steps=0"], "steps is 0; it must be >= 1"),
        (memory, ["train", "--stop_at=2"], "stop_at is 2.0; it must be in [0, 1]"),
        (memory, ["train", "--clip=0"], "they must be above 0"),
        (memory, ["train", "--lenght=3"], "did you mean --length?"),
        (memory, ["report", "--plot=a.txt"], "'a.txt'"),
        (gradients, [], "CHECKPOINT"),
        (gradients, ["somewhere"], "--data"),
        (gradients, ["nowhere/at/all", "--data", "x"], "no checkpoint at nowhere"),
        (gradients, ["random", "--scales", "0"], "--scales"),
        (gradients, ["random", "--probs", "0"], "--probs"),
        (gradients, ["random", "--data", "x"], "--data"),
        (gradients, ["random", "--plot", "x.txt"], "--plot"),
        (gradients, ["random", "--csv", "x.txt"], "'x.txt' is not a .csv file"),
        (gradients, ["train", "--data=x", "--out=y", "--every=0"], "every is 0; it must be >= 1"),
        (throughput, ["--only", "core-nothing"], "core-nothing"),
        (throughput, ["--rounds", "0"], "--rounds"),
        (throughput, ["--json", "/no/such/folder/f.json"], "/no/such/folder"),
        (throughput, ["--plot", "figures.txt"], "figures.txt"),
        (throughput, ["--sideways"], "--sideways"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_1(main, options, said, error_of, tmp_path):
    options = [str(tmp_path) if option == "x/../." else option for option in options]
    assert said in error_of(main, options)
