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


PYCOCOEVALCAP = [
    ("a red flag with a red star", ["a red flag with a star", "flag of a red country"], 3.62483533),
    (
        "two people in a field hold two hands",
        ["two people hold hands", "people holding hands in a field", "two persons hand in hand"],
        1.67332643,
    ),
    ("sun behind cloud", ["the sun behind a large cloud"], 2.45094098),
    ("cat face with wry smile", ["a cat with a wry smile", "cat face with wry smile"], 6.48472782),
    ("a flag", ["flag of the moon", "a white flag with a moon"], 0.89688104),
    ("hand", ["smiling face with sun glasses"], 0.0),
]
"""Caption, references, and what `pycocoevalcap.cider.cider.Cider` of pycocoevalcap 1.2 gave."""


def test_values_are_those_of_pycocoevalcap():
    captions, references, truth = zip(*PYCOCOEVALCAP, strict=True)
    assert cider_values(captions, references) == pytest.approx(list(truth), abs=1e-8)
    corpus = cider(captions, references)
    assert corpus.value == pytest.approx(100.0 * 2.521785267475936, rel=1e-12)


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
