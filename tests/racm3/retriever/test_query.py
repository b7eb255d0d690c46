from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from racm3.retriever import document_generator, dropped_queries


@given(st.text(), st.integers(0, 5))
def test_a_draw_keeps_order_and_at_least_one_word(caption, draws):
    got = dropped_queries(caption, draws=draws, rng=document_generator(0, caption))
    assert got == dropped_queries(caption, draws=draws, rng=document_generator(0, caption))
    for query in got:
        words = iter(caption.split())
        assert all(word in words for word in query.split())
        assert query.split() or not caption.split()


def test_draws_do_not_depend_on_their_number_and_drop_a_fifth():
    caption = " ".join(map(str, range(200)))
    few = dropped_queries(caption, draws=2, rng=np.random.default_rng(1))
    many = dropped_queries(caption, draws=20, rng=np.random.default_rng(1))
    assert many[:2] == few
    assert np.mean([len(q.split()) for q in many]) == pytest.approx(160, abs=5)
    with pytest.raises(ValueError, match="rate"):
        dropped_queries("a", draws=1, rng=np.random.default_rng(1), rate=1.0)
