from __future__ import annotations

import pytest
import torch

from racm3.vocabulary import Vocabulary


def test_ranges_partition_the_ids():
    v = Vocabulary(300, 17, num_sentinels=5)
    specials = [v.pad_id, v.document_end_id, v.break_id, v.eoss_id]
    ids = [*specials, *v.sentinel_range, *v.text_range, *v.image_range]
    assert ids == list(range(v.size))
    assert len(v.text_range) == 300
    assert len(v.image_range) == 17


def test_shifts_are_inverse_for_ints_and_tensors():
    v = Vocabulary(300, 17)
    codes = torch.arange(17)
    assert torch.equal(v.from_image_id(v.to_image_id(codes)), codes)
    assert v.to_image_id(16) == v.size - 1
    assert v.from_text_id(v.to_text_id(299)) == 299
    assert v.to_text_id(299) + 1 == v.to_image_id(0)


def test_special_ids_do_not_depend_on_the_sizes():
    small, large = Vocabulary(256, 2), Vocabulary(50_000, 8192)
    assert small.sentinel_range == large.sentinel_range
    assert [small.special_name(i) for i in range(5)] == [
        "<pad>",
        "</s>",
        "<break>",
        "<eoss>",
        "<sentinel:0>",
    ]


def test_what_does_not_exist_is_refused():
    v = Vocabulary(256, 2, num_sentinels=3)
    assert v.sentinel_id(2) in v.sentinel_range
    with pytest.raises(ValueError, match="has 3"):
        v.sentinel_id(3)
    with pytest.raises(ValueError, match="not a special"):
        v.special_name(v.text_range.start)
    with pytest.raises(ValueError, match="image_size"):
        Vocabulary(256, 0)
