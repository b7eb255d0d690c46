from __future__ import annotations

import torch

from racm3.image_tokenizer import ImageTokenizer


def test_what_cannot_decode_is_no_image_tokenizer():
    assert not isinstance(torch.nn.Identity(), ImageTokenizer)
