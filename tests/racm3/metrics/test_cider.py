from __future__ import annotations

import math

import pytest

from racm3.metrics.cider import cider, cider_values, words_of

REFERENCES = [["a red flag"], ["a blue flag"]]


def test_words_are_lower_case_without_punctuation():
    assert words_of("A Red-Flag, isn't  IT? Ünïcödé №1!") == [
        *("a", "red", "flag", "isn", "t", "it", "ünïcödé", "1"),
    ]  # fmt: skip


def test_plain_cider_by_hand():
    # "a" and "flag" occur in both images: idf 0. "red": log 2. Bigrams "a red", "red flag": log 2.
    # Caption "a red car": 1-grams red, car (both log 2): cosine 1/sqrt(2);
    # 2-grams {a red, red car} against {a red, red flag}: 1/2; 3-grams differ; no 4-grams.
    made = cider_values(["a red car", "blue"], REFERENCES, variant="cider")
    assert made[0] == pytest.approx(10.0 * (1.0 / math.sqrt(2.0) + 0.5) / 4.0)
    assert made[1] == pytest.approx(10.0 * 1.0 / 4.0)  # its 1-gram agrees, longer ones are missing


def test_cider_d_clips_repeats_and_damps_other_lengths():
    # 1-grams: red x3 clipped to 1: log2^2 / (3 log2 * log2) = 1/3; 2-grams: {red red x2}: 0.
    made = cider_values(["red red red", "a blue flag"], REFERENCES)
    assert made[0] == pytest.approx(10.0 * (1.0 / 3.0) / 4.0)
    assert made[1] == pytest.approx(10.0 * 3.0 / 4.0)
    longer = cider_values(["red", "a blue flag"], REFERENCES)[0]
    assert longer == pytest.approx(10.0 / 4.0 * math.exp(-((1 - 3) ** 2) / (2 * 6.0**2)))


def test_several_references_are_averaged():
    references = [["red", "green"], ["blue"]]
    assert cider_values(["red", "blue"], references)[0] == pytest.approx(10.0 * 0.5 / 4.0)


def test_copies_score_highest():
    captions = ["one small brown dog sleeps", "two ships under the moon", "a flag of green stars"]
    references = [[text] for text in captions]
    best = cider(captions, references)
    assert best.value == pytest.approx(1000.0)
    assert cider(captions[1:] + captions[:1], references).value < 50.0
    assert (best.name, best.n) == ("cider", 3)


def test_missing_references_are_refused():
    with pytest.raises(ValueError, match="one set of references"):
        cider(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="no reference caption"):
        cider(["a"], [[]])
