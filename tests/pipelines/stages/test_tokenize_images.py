from __future__ import annotations

import numpy as np

from pipelines.models import load_image_tokenizer
from pipelines.records import image_stack
from pipelines.runtime.reader import Selection
from racm3.training.image_tokenizer import images_to_tensor


def test_every_kept_document_has_the_codes_of_its_image(
    shared, documents, image_tokenizer, image_tokens
):
    tokenizer = load_image_tokenizer(shared.reader.files(Selection.of(image_tokenizer)))
    rows = {row["document_id"]: row for row in shared.rows(image_tokens)}
    kept = [row for row in shared.rows(documents) if row["outcome"] == "kept"]
    assert image_tokens.rows_in == image_tokens.rows_out == len(rows) == len(kept) == 66
    images = image_stack([row["image"] for row in kept], 16)
    codes = np.array([rows[row["document_id"]]["codes"] for row in kept])
    assert (tokenizer.encode(images_to_tensor(images)).numpy() == codes).mean() > 0.99
    assert {(row["grid_height"], row["grid_width"]) for row in rows.values()} == {(2, 2)}


def test_shards_keep_their_tags(documents, image_tokens):
    assert [shard.tags for shard in image_tokens.shards] == [s.tags for s in documents.shards]
