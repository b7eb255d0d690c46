"""Contexts that show one side of their document, through layout, masking, places and batches."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from racm3.document import DocumentTokens
from racm3.objective.masking import mask, to_row, unmask
from racm3.objective.spans import SpanMixConfig, draw_spans
from racm3.sequence.batch import Batch, Modality
from racm3.sequence.layout import Layout, lay_out
from racm3.sequence.places import PlaceCursor
from racm3.vocabulary import Vocabulary

V = Vocabulary(12, 7, num_sentinels=16)
LAYOUT = Layout(vocabulary=V, image_tokens=4, max_text_tokens=5)
MODALITIES = ("both", "text", "image")
SPANS = SpanMixConfig(none=0.1, uniform_spans=0.6, break_limited=False, poisson_rate=2.0)


def document(rng):
    return DocumentTokens(
        text=tuple(rng.integers(0, 12, rng.integers(0, 8)).tolist()),
        image=tuple(rng.integers(0, 7, 4).tolist()),
    )


def contexts(rng, count):
    return [document(rng).showing(MODALITIES[rng.integers(3)]) for _ in range(count)]


def test_a_context_shows_its_side_and_keeps_its_separators():
    one = DocumentTokens(text=(1, 2), image=(0, 3, 4, 5))
    assert one.showing("both") == one
    assert one.showing("text") == DocumentTokens(text=(1, 2), image=())
    assert one.showing("image") == DocumentTokens(text=(), image=(0, 3, 4, 5))
    sequence = lay_out(one, [one.showing("text"), one.showing("image")], LAYOUT)
    text, image = [V.to_text_id(t) for t in one.text], [V.to_image_id(c) for c in one.image]
    end, brk = V.document_end_id, V.break_id
    assert sequence.ids.tolist() == [
        end, *text, brk, brk, brk, *image, brk, *text, brk, *image, end
    ]  # fmt: skip
    assert [s.stop - s.start for s in sequence.segments] == [2, 0, 0, 4, 2, 4]


def test_only_a_context_may_lack_its_image_and_all_of_it():
    one = DocumentTokens(text=(1,), image=(0, 1, 2, 3))
    with pytest.raises(ValueError, match="document 1 of a sequence has 0 image codes"):
        lay_out(one.showing("text"), [one], LAYOUT)
    with pytest.raises(ValueError, match="document 0 of a sequence has 3 image codes"):
        lay_out(one, [DocumentTokens(text=(), image=(0, 1, 2))], LAYOUT)


def test_laws_hold_for_a_thousand_random_mixtures():
    rng = np.random.default_rng(7)
    masked_samples = 0
    for _ in range(1000):
        fed, main = contexts(rng, int(rng.integers(0, 4))), document(rng)
        sequence = lay_out(main, fed, LAYOUT)
        assert len(sequence.ids) == 1 + sum(LAYOUT.document_length(d) for d in (*fed, main))
        leading = not fed  # the first </s> counts to the first document
        assert sequence.is_main.sum() == leading + LAYOUT.document_length(main)
        for segment, (tokens, modality) in zip(
            sequence.segments,
            [(t, m) for d in (*fed, main) for t, m in ((d.text[:5], "text"), (d.image, "image"))],
            strict=True,
        ):
            assert segment.stop - segment.start == len(tokens)
            assert segment.modality is Modality[modality.upper()]
        spans = draw_spans(sequence, SPANS, rng).spans
        masked_samples += bool(spans)
        masked = mask(sequence, spans, V)
        assert unmask(masked.ids, V).tolist() == sequence.ids.tolist()
        row = to_row(sequence, masked, LAYOUT, alpha=0.5)
        assert row.places.max() < LAYOUT.places.size
        assert row.next_places.max() < LAYOUT.places.size
        # the main document's tokens stand where they stand without contexts
        alone = to_row(lay_out(main, [], LAYOUT), mask(lay_out(main, [], LAYOUT), (), V),
                       LAYOUT, alpha=0.5)  # fmt: skip
        plain = to_row(sequence, mask(sequence, (), V), LAYOUT, alpha=0.5)
        own = len(alone.ids) - 1
        assert plain.places[-own:].tolist() == alone.places[1:].tolist()
        assert plain.next_places[-own:].tolist() == alone.next_places[1:].tolist()
        assert plain.slots[plain.is_main].tolist() == [0] * (leading + own)
        # each context has a slot of its own, whatever it shows
        in_contexts = plain.slots[~plain.is_main]
        lengths = [LAYOUT.document_length(d) for d in fed]
        if fed:
            assert in_contexts[1:].tolist() == np.repeat(range(1, len(fed) + 1), lengths).tolist()
    assert masked_samples > 500


def test_reading_in_pieces_is_reading_whole():
    rng = np.random.default_rng(3)
    for _ in range(200):
        fed = contexts(rng, 2)
        sequence = lay_out(document(rng), fed, LAYOUT)
        masked = mask(sequence, draw_spans(sequence, SPANS, rng).spans, V)
        cursors = [
            PlaceCursor(LAYOUT.places, V, num_contexts=2, resumes=masked.resumes) for _ in range(2)
        ]
        whole = cursors[0].feed(masked.ids)
        cut = int(rng.integers(1, len(masked.ids)))
        parts = [cursors[1].feed(masked.ids[:cut]), cursors[1].feed(masked.ids[cut:])]
        for column in range(3):
            joined = np.concatenate([part[column] for part in parts])
            assert joined.tolist() == whole[column].tolist()


def test_rows_of_all_modalities_share_a_batch():
    rng = np.random.default_rng(5)
    rows = []
    for modality in MODALITIES:
        sequence = lay_out(document(rng), [document(rng).showing(modality)], LAYOUT)
        rows.append(to_row(sequence, mask(sequence, (), V), LAYOUT, alpha=0.1))
    batch = Batch.of_rows(rows, pad_id=V.pad_id)
    assert {tuple(getattr(batch, f.name).shape) for f in fields(batch)} == {
        (3, max(len(row.ids) for row in rows) - 1)
    }
    assert torch.equal(batch.is_main.sum(1) > 0, torch.ones(3, dtype=torch.bool))
