from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from racm3.objective.masking import mask, to_row
from racm3.objective.noise import read_with_noise
from racm3.objective.spans import Span
from racm3.sequence.batch import Modality


@pytest.fixture
def row(layout, make_sequence):
    """Two contexts, and a main document with a masked span of its image."""
    sequence = make_sequence(3, 5, 4)
    image = sequence.main_segments[1]
    spans = (Span(image.start + 4, image.start + 9),)
    return to_row(sequence, mask(sequence, spans, layout.vocabulary), layout, alpha=0.5)


def noisy(row, layout, share, seed=0):
    return read_with_noise(row, share, layout.vocabulary.image_range, np.random.default_rng(seed))


def test_nothing_but_what_is_read_changes(row, layout):
    for field in fields(row):
        if field.name != "read":
            assert getattr(noisy(row, layout, 0.5), field.name) is getattr(row, field.name)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_only_codes_of_the_main_document_are_misread(row, layout, share):
    codes = row.is_main & (row.modality == Modality.IMAGE)
    assert codes.sum() == 16
    changed = np.mean([noisy(row, layout, share, s).inputs != row.ids for s in range(400)], axis=0)
    assert not changed[~codes].any()
    by_chance = 1 / len(layout.vocabulary.image_range)  # a random code may be the true one
    np.testing.assert_allclose(changed[codes], share * (1 - by_chance), atol=0.1)


def test_what_is_read_is_a_code_and_every_code_comes(row, layout):
    codes = row.is_main & (row.modality == Modality.IMAGE)
    read = np.concatenate([noisy(row, layout, 1.0, seed).inputs[codes] for seed in range(40)])
    assert set(read.tolist()) == set(layout.vocabulary.image_range)


def test_equal_generators_misread_alike(row, layout):
    one, other = noisy(row, layout, 0.4, 7), noisy(row, layout, 0.4, 7)
    np.testing.assert_array_equal(one.inputs, other.inputs)
