from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from racm3.encoder import ClipSpec, EncoderError, EncoderTokenizer, MultimodalEncoder, load_clip
from racm3.encoder.clip import make_clip

CAPTIONS = ["a red cat", "", "flag: Bhutan", "\ud800 \U0001f600 " * 40]


@pytest.fixture(scope="module")
def tokenizer():
    return EncoderTokenizer.train(["a red cat", "a blue dog"], vocab_size=300)


@pytest.fixture(scope="module")
def model_cfg(tokenizer):
    text = {"context_length": 12, "vocab_size": tokenizer.vocab_size, "width": 32}
    return {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 16,
            "width": 32,
            "layers": 1,
            "head_width": 32,
        },
        "text_cfg": {**text, "heads": 1, "layers": 1},
    }


@pytest.fixture(scope="module")
def weights(model_cfg, tmp_path_factory):
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_file(make_clip(model_cfg).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def encoder(model_cfg, weights, tokenizer):
    spec = ClipSpec(model=model_cfg, pretrained=str(weights), tokenizer_json=tokenizer.to_json())
    return load_clip(spec)


def images(count=5):
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (40, 17), (1, 1), (64, 64), (9, 90)][:count]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def test_both_towers_give_unit_vectors_of_one_space(encoder):
    assert isinstance(encoder, MultimodalEncoder)
    for vectors in (encoder.encode_text(CAPTIONS), encoder.encode_images(images())):
        assert vectors.dtype == np.float32
        assert vectors.shape[1] == encoder.dim == 16
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert encoder.encode_text([]).shape == encoder.encode_images([]).shape == (0, 16)


def test_a_batch_equals_its_rows(encoder):
    one_by_one = np.concatenate([encoder.encode_text([caption]) for caption in CAPTIONS])
    np.testing.assert_allclose(encoder.encode_text(CAPTIONS), one_by_one, atol=1e-5)
    rows = np.concatenate([encoder.encode_images([image]) for image in images()])
    np.testing.assert_allclose(encoder.encode_images(images()), rows, atol=1e-5)
    stacked = np.stack([images()[0]] * 2)
    np.testing.assert_allclose(encoder.encode_images(stacked)[1], rows[0], atol=1e-5)


def test_the_same_weights_give_the_same_bytes_from_either_format(
    encoder, model_cfg, weights, tokenizer, tmp_path
):
    torch.manual_seed(3)
    torch.save(make_clip(model_cfg).state_dict(), tmp_path / "clip.pt")
    spec = ClipSpec(
        model=model_cfg,
        pretrained=str(tmp_path / "clip.pt"),
        tokenizer_json=tokenizer.to_json(),
    )
    assert (load_clip(spec).encode_text(CAPTIONS) == encoder.encode_text(CAPTIONS)).all()


def test_a_named_model_reads_a_weights_file(tmp_path):
    import open_clip

    model = open_clip.create_model("ViT-S-32-alt", load_weights=False)
    save_file(model.state_dict(), tmp_path / "named.safetensors")
    spec = ClipSpec(model="ViT-S-32-alt", pretrained=str(tmp_path / "named.safetensors"))
    named = load_clip(spec)
    expected = model.eval().encode_text(open_clip.tokenize(["a cat"]), normalize=True)
    np.testing.assert_allclose(named.encode_text(["a cat"]), expected.detach().numpy(), atol=1e-5)
    assert named.encode_images(images(2)).shape == (2, named.dim)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "ViT-L-41"}, "did you mean"),
        ({"model": "ViT-B-32"}, "needs a weights file or a tag"),
        ({"model": "ViT-B-32", "pretrained": "nonsense"}, "neither a file nor a tag"),
        ({"pretrained": "absent.safetensors"}, "no file"),
        ({"tokenizer_json": None}, "give tokenizer_json"),
        ({"model": {"embed_dim": 3}}, "cannot build"),
    ],
)
def test_a_bad_spec_is_one_sentence(model_cfg, tokenizer, change, sentence):
    spec = {"model": model_cfg, "tokenizer_json": tokenizer.to_json(), **change}
    with pytest.raises(EncoderError, match=sentence):
        load_clip(ClipSpec(**spec))


def test_a_tag_that_cannot_be_downloaded_asks_for_a_file(monkeypatch):
    import open_clip

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", refuse)
    with pytest.raises(EncoderError, match="give the file's path"):
        load_clip(ClipSpec(model="ViT-B-32", pretrained="laion2b_s34b_b79k"))


def test_weights_with_code_or_of_another_shape_are_refused(model_cfg, tokenizer, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "code.pt")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    for name in ("code.pt", "other.pt"):
        spec = ClipSpec(
            model=model_cfg,
            pretrained=str(tmp_path / name),
            tokenizer_json=tokenizer.to_json(),
        )
        with pytest.raises(EncoderError, match="does not fit"):
            load_clip(spec)


def test_only_colour_images_are_taken(encoder):
    with pytest.raises(ValueError, match="uint8"):
        encoder.encode_images([np.zeros((4, 4), np.uint8)])


@pytest.mark.gpu
def test_cuda_gives_the_vectors_of_the_cpu(encoder, model_cfg, weights, tokenizer):
    spec = ClipSpec(model=model_cfg, pretrained=str(weights), tokenizer_json=tokenizer.to_json())
    there = load_clip(spec, device="cuda")
    for one, other in (
        (there.encode_text(CAPTIONS), encoder.encode_text(CAPTIONS)),
        (there.encode_images(images()), encoder.encode_images(images())),
    ):
        assert one.dtype == np.float32
        np.testing.assert_allclose((one * other).sum(1), 1, atol=1e-4)
