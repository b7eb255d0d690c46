from __future__ import annotations

import numpy as np
import pytest

from racm3.retriever import document_generator, drop_patches, dropped_image_queries

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (20, 28, 3), dtype=np.uint8)
MEAN = np.rint(IMAGE.mean(axis=(0, 1))).astype(np.uint8)


def patches(image, edge):
    height, width = image.shape[:2]
    return [
        image[y : y + edge, x : x + edge]
        for y in range(0, height, edge)
        for x in range(0, width, edge)
    ]


@pytest.mark.parametrize("edge", [1, 3, 8, 20, 64])
def test_each_patch_is_whole_or_of_the_mean_colour(edge):
    rng = np.random.default_rng(1)
    for rate in (0.1, 0.5, 0.95):
        for _ in range(20):
            got = drop_patches(IMAGE, edge, rate, rng)
            assert got.shape == IMAGE.shape
            assert got.dtype == np.uint8
            whole = [
                np.array_equal(now, before)
                for now, before in zip(patches(got, edge), patches(IMAGE, edge), strict=True)
            ]
            gone = [(now == MEAN).all() for now in patches(got, edge)]
            assert all(a or b for a, b in zip(whole, gone, strict=True))
            assert any(whole)


def test_as_many_go_as_the_rate_says_and_none_at_zero():
    rng = np.random.default_rng(2)
    assert drop_patches(IMAGE, 4, 0.0, rng) is IMAGE
    big = RNG.integers(0, 256, (400, 400, 3), dtype=np.uint8)
    got = drop_patches(big, 8, 0.2, rng)
    changed = np.mean(
        [not np.array_equal(a, b) for a, b in zip(patches(got, 8), patches(big, 8), strict=True)]
    )
    assert changed == pytest.approx(0.2, abs=0.025)


def test_draws_do_not_depend_on_their_number_nor_on_the_text_draws():
    def drawn(count, *purpose):
        rng = document_generator(5, "doc", *purpose)
        return list(dropped_image_queries(IMAGE, draws=count, rng=rng, patch=4, rate=0.3))

    few, many = drawn(2, 1), drawn(6, 1)
    assert all(np.array_equal(a, b) for a, b in zip(few, many, strict=False))
    assert len({image.tobytes() for image in many}) == 6
    assert not np.array_equal(drawn(1)[0], many[0])
    # a document's text draws keep their generator, whatever purposes there are
    key = np.random.SeedSequence([5, *b"doc"])
    expected = np.random.Generator(np.random.Philox(key)).random(4)
    assert document_generator(5, "doc").random(4).tolist() == expected.tolist()


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="rate"):
        dropped_image_queries(IMAGE, draws=1, rng=RNG, patch=4, rate=1.0)
    with pytest.raises(ValueError, match="0 pixels"):
        dropped_image_queries(IMAGE, draws=1, rng=RNG, patch=0)
