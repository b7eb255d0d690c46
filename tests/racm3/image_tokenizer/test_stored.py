from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from racm3.image_tokenizer import (
    VQGAN,
    ImageTokenizer,
    PublicVQ,
    PublicVQSpec,
    VQGANConfig,
    load_image_tokenizer,
    save_image_tokenizer,
)
from racm3.image_tokenizer.stored import CONFIG_FILE, KINDS, WEIGHTS_FILE


def vqgan() -> VQGAN:
    generator = torch.Generator().manual_seed(0)
    model = VQGAN(VQGANConfig(image_size=16, codebook_size=8, widths=(8, 16)), generator=generator)
    model.codebook.vectors.normal_(generator=generator)
    return model.eval()


def public() -> PublicVQ:
    torch.manual_seed(0)
    model = PublicVQ(
        PublicVQSpec(
            layout="llamagen",
            image_size=16,
            codebook_size=8,
            code_dim=4,
            channels=32,
            multipliers=(1, 1),
            blocks=1,
        )
    )
    model.codebook.normal_()
    return model.eval()


MAKERS = {"vqgan": vqgan, "public": public}


def files(folder: Path) -> tuple[Path, Path]:
    return folder / CONFIG_FILE, folder / WEIGHTS_FILE


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_is_the_same(kind: str, tmp_path):
    tokenizer = MAKERS[kind]()
    written = save_image_tokenizer(tokenizer, tmp_path / "vq")
    assert tuple(written.values()) == files(tmp_path / "vq")
    loaded = load_image_tokenizer(*files(tmp_path / "vq"))
    assert isinstance(loaded, ImageTokenizer)
    assert type(loaded) is type(tokenizer)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    codes = tokenizer.encode(images)
    assert torch.equal(loaded.encode(images), codes)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    assert torch.equal(loaded.code_vectors, tokenizer.code_vectors)
    again = save_image_tokenizer(loaded, tmp_path / "again")
    assert [p.read_bytes() for p in again.values()] == [p.read_bytes() for p in written.values()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "audio"}, "does not say which image tokenizer"),
        ({"colour": 3}, "does not say which image tokenizer"),
        ({"codebook_size": 9}, "fit the VQGAN|of another shape"),
    ],
)
def test_loading_refuses_what_does_not_fit(kind: str, change, message, tmp_path):
    save_image_tokenizer(MAKERS[kind](), tmp_path)
    config, weights = files(tmp_path)
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_image_tokenizer(config, weights)
