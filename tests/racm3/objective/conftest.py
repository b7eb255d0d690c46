from __future__ import annotations

import pytest

from racm3.document import DocumentTokens
from racm3.sequence.layout import Layout, lay_out
from racm3.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def layout():
    return Layout(
        vocabulary=Vocabulary(50, 20, num_sentinels=16), image_tokens=16, max_text_tokens=12
    )


@pytest.fixture(scope="session")
def make_sequence(layout):
    """Builds a sequence of captions of the given lengths; the last is the main document's."""

    def make(*lengths):
        documents = [
            DocumentTokens(
                text=tuple((7 * d + t) % 50 for t in range(length)),
                image=tuple((5 * d + c) % 20 for c in range(16)),
            )
            for d, length in enumerate(lengths)
        ]
        return lay_out(documents[-1], documents[:-1], layout)

    return make
