from __future__ import annotations

import torch

from racm3.image_tokenizer import IMAGE_TOKENIZERS, VQGAN, ImageTokenizer, VQGANConfig, save_vqgan


def test_every_registered_kind_loads_an_image_tokenizer(tmp_path):
    config = VQGANConfig(codebook_size=4, widths=(8,))
    save_vqgan(VQGAN(config, generator=torch.Generator().manual_seed(0)), tmp_path)
    for load in IMAGE_TOKENIZERS.values():
        assert isinstance(load(tmp_path), ImageTokenizer)


def test_what_cannot_decode_is_no_image_tokenizer():
    assert not isinstance(torch.nn.Identity(), ImageTokenizer)
