"""Scores as tables in plain text."""

import numpy as np

from captioner.metrics.scores import Scores
from captioner.metrics.significance import Comparison, Interval
from captioner.report.table import comparison_table, diversity_table, score_table, table


def scores_of(**values):
    return Scores(values, {name: {} for name in values}, dict.fromkeys(values, np.zeros((0, 1))))


def test_the_first_and_last_columns_are_aligned_left_and_the_others_right():
    assert table([("a", "b", "c"), ("long", "wide", "c")]) == "a        b  c\nlong  wide  c"


def test_a_score_has_its_interval():
    found = score_table(scores_of(CIDEr=0.5366), {"CIDEr": Interval(0.5011, 0.5719)})
    assert found.splitlines()[1] == "CIDEr  0.537  0.501 .. 0.572"


def test_a_comparison_names_the_better_system_only_where_the_difference_is_significant():
    scores = [scores_of(CIDEr=0.9, METEOR=0.2), scores_of(CIDEr=1.0, METEOR=0.2)]
    found = {
        "CIDEr": Comparison(-0.1, Interval(-0.15, -0.05), 0.0005),
        "METEOR": Comparison(0.0, Interval(-0.01, 0.01), 0.8),
    }
    _, first, second = comparison_table(["ours", "theirs"], scores, found).splitlines()
    assert " ".join(first.split()) == (
        "CIDEr 0.900 1.000 -0.100 -0.150 .. -0.050 < 0.001 theirs is better"
    )
    assert second.endswith("+0.000  -0.010 .. +0.010    0.800  no real difference")


def test_the_number_of_words_is_the_only_count_in_a_table_of_diversity():
    lines = diversity_table({"distinct-1": 0.5, "words": 1860.0}).splitlines()
    assert lines == ["distinct-1  0.500", "words       1860"]
