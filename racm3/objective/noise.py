"""Noise in what is read: some codes of the main document are read as others.

A generator is trained on true codes and draws after its own, which may be wrong: one wrong row of
codes, and the next follow it. Where what is read may be wrong, contexts are worth reading. Word
dropout (arXiv:1511.06349) is the same for words; we put in a random code, since a drawn error
looks like any code. Not in RA-CM3 (docs/adr/0008-noise-and-guidance.md).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from racm3.sequence.batch import Modality, Row


def read_with_noise(row: Row, share: float, codes: range, generator: np.random.Generator) -> Row:
    """The row, read with noise; what is to be predicted stays as it is.

    Args:
        row: as masked.
        share: of the main document's codes that are read as random ones, in [0, 1]; contexts,
            captions and separators are read as they are.
        codes: ids of all image codes.
        generator: of places and codes.
    """
    places = row.is_main & (row.modality == Modality.IMAGE)
    places &= generator.random(len(row.ids)) < share
    drawn = generator.integers(codes.start, codes.stop, len(row.ids))
    return replace(row, read=np.where(places, drawn, row.ids))
