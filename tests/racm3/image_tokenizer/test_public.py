"""Public tokenizers against a reference: the originals' names and operations, one by one.

The reference reads a state dict as the original modules would (taming-transformers
`diffusionmodules/model.py` and `vqvae/quantize.py`, LlamaGen `vq_model.py`, Chameleon `vqgan.py`).
It has no modules, so that a name, a shape or an operation that is wrong in ours cannot be wrong in
both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from racm3.image_tokenizer import (
    PRESETS,
    ImageTokenizer,
    PublicVQ,
    PublicVQSpec,
    infer_spec,
    public_vq_of,
    read_state_dict,
)
from racm3.image_tokenizer.public import public_state
from racm3.image_tokenizer.public_layout import public_name

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Original:
    """A published configuration in the original's own words (taming's `ddconfig`)."""

    layout: str
    resolution: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    z_channels: int = 256
    embed_dim: int = 256
    n_embed: int = 1024

    def attends(self, level: int) -> bool:
        if self.layout == "llamagen":
            return level == len(self.ch_mult) - 1
        return self.resolution // 2**level in self.attn_resolutions


ORIGINALS = {
    "taming-f16-1024": Original(layout="taming"),
    "taming-f16-16384": Original(layout="taming", n_embed=16384),
    "taming-f8-256": Original(
        layout="taming",
        ch_mult=(1, 2, 2, 4),
        attn_resolutions=(32,),
        z_channels=4,
        embed_dim=4,
        n_embed=256,
    ),
    "taming-f8-16384": Original(
        layout="taming",
        ch_mult=(1, 2, 2, 4),
        attn_resolutions=(32,),
        z_channels=4,
        embed_dim=4,
        n_embed=16384,
    ),
    "taming-gumbel-f8-8192": Original(
        layout="taming-gumbel", ch_mult=(1, 1, 2, 4), attn_resolutions=(32,), n_embed=8192
    ),
    "llamagen-vq8": Original(layout="llamagen", ch_mult=(1, 2, 2, 4), embed_dim=8, n_embed=16384),
    "llamagen-vq16": Original(layout="llamagen", embed_dim=8, n_embed=16384),
    "chameleon-f16-8192": Original(
        layout="taming", resolution=512, attn_resolutions=(), n_embed=8192
    ),
}
_TINY = Original(
    layout="taming", resolution=16, ch=32, ch_mult=(1, 2, 2), num_res_blocks=1,
    attn_resolutions=(4,), z_channels=6, embed_dim=5, n_embed=24,
)  # fmt: skip
TINY = {
    "taming": _TINY,
    "attention on two levels": replace(_TINY, attn_resolutions=(8, 4), num_res_blocks=2),
    "chameleon": replace(_TINY, attn_resolutions=()),
    "gumbel": replace(_TINY, layout="taming-gumbel", embed_dim=6),
    "llamagen": replace(_TINY, layout="llamagen"),
}


# --- the reference ----------------------------------------------------------------------------


Named = Iterator[tuple[str, str, tuple[int, ...]]]


def names(o: Original) -> Named:
    """(what it is, name, shape) of every module with weights, written from the sources."""
    widths = [o.ch * m for m in o.ch_mult]
    yield "conv", "encoder.conv_in", (o.ch, 3, 3, 3)
    for level, (width, wider) in enumerate(zip([o.ch, *widths], widths, strict=False)):
        yield from level_shapes(o, "encoder", level, width, wider)
    yield from mid_shapes(o, "encoder", wider)
    yield "norm", "encoder.norm_out", (wider,)
    yield "conv", "encoder.conv_out", (o.z_channels, wider, 3, 3)
    yield "conv", "quant_conv", (o.embed_dim, o.z_channels, 1, 1)
    if o.layout == "taming-gumbel":
        yield "conv", "quantize.proj", (o.n_embed, o.z_channels, 1, 1)
    embedding = "embed" if o.layout == "taming-gumbel" else "embedding"
    yield "book", f"quantize.{embedding}", (o.n_embed, o.embed_dim)
    yield "conv", "post_quant_conv", (o.z_channels, o.embed_dim, 1, 1)
    yield "conv", "decoder.conv_in", (wider, o.z_channels, 3, 3)
    yield from mid_shapes(o, "decoder", wider)
    for level, width in enumerate(widths):
        yield from level_shapes(o, "decoder", level, widths[min(level + 1, len(widths) - 1)], width)
    yield "norm", "decoder.norm_out", (widths[0],)
    yield "conv", "decoder.conv_out", (3, widths[0], 3, 3)


def level_shapes(o: Original, side: str, level: int, width: int, wider: int) -> Named:
    root, block = level_names(o, side, level)
    for i in range(o.num_res_blocks + (side == "decoder")):
        yield from resnet_shapes(f"{root}.{block}.{i}", width if i == 0 else wider, wider)
        if o.attends(level):
            yield from attention_shapes(f"{root}.attn.{i}", wider)
    if side == "encoder" and level != len(o.ch_mult) - 1:
        yield "conv", f"{root}.downsample.conv", (wider, wider, 3, 3)
    if side == "decoder" and level != 0:
        yield "conv", f"{root}.upsample.conv", (wider, wider, 3, 3)


def mid_shapes(o: Original, side: str, c: int) -> Named:
    first, second, third = middle_names(o, side)
    yield from resnet_shapes(first, c, c)
    yield from attention_shapes(second, c)
    yield from resnet_shapes(third, c, c)


def resnet_shapes(name: str, cin: int, cout: int) -> Named:
    yield "norm", f"{name}.norm1", (cin,)
    yield "conv", f"{name}.conv1", (cout, cin, 3, 3)
    yield "norm", f"{name}.norm2", (cout,)
    yield "conv", f"{name}.conv2", (cout, cout, 3, 3)
    if cin != cout:
        yield "conv", f"{name}.nin_shortcut", (cout, cin, 1, 1)


def attention_shapes(name: str, c: int) -> Named:
    yield "norm", f"{name}.norm", (c,)
    for part in ("q", "k", "v", "proj_out"):
        yield "conv", f"{name}.{part}", (c, c, 1, 1)


def middle_names(o: Original, side: str) -> list[str]:
    parts = "0 1 2" if o.layout == "llamagen" else "block_1 attn_1 block_2"
    return [f"{side}.mid.{part}" for part in parts.split()]


def level_names(o: Original, side: str, level: int) -> tuple[str, str]:
    """taming counts the decoder's levels from the finest, LlamaGen in the order of use."""
    if o.layout == "llamagen":
        index = level if side == "encoder" else len(o.ch_mult) - 1 - level
        return f"{side}.conv_blocks.{index}", "res"
    return f"{side}.{'down' if side == 'encoder' else 'up'}.{level}", "block"


def shapes_of(original: Original) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for kind, name, shape in names(original):
        found[f"{name}.weight"] = shape
        if kind != "book":
            found[f"{name}.bias"] = shape[:1]
    return found


def random_state(original: Original, seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes_of(original).items():
        values = torch.randn(shape, generator=generator)
        scale = {1: 0.1, 2: 0.4, 4: values[0].numel() ** -0.5}[len(shape)]
        state[name] = scale * values
        if "norm" in name and name.endswith("weight"):
            state[name] += 1.0
    return state


def conv(s: State, name: str, x: Tensor, padding: int = 0, stride: int = 1) -> Tensor:
    return F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"], stride=stride, padding=padding)


def norm(s: State, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, 32, s[f"{name}.weight"], s[f"{name}.bias"], eps=1e-6)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def resnet(s: State, name: str, x: Tensor) -> Tensor:
    h = conv(s, f"{name}.conv1", swish(norm(s, f"{name}.norm1", x)), 1)
    h = conv(s, f"{name}.conv2", swish(norm(s, f"{name}.norm2", h)), 1)
    return h + (conv(s, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in s else x)


def attend(s: State, name: str, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    normed = norm(s, f"{name}.norm", x)
    q, k, v = (conv(s, f"{name}.{part}", normed).reshape(b, c, h * w) for part in "qkv")
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * c**-0.5, dim=2)
    read = torch.einsum("bij,bcj->bci", weights, v).reshape(b, c, h, w)
    return x + conv(s, f"{name}.proj_out", read)


def middle(s: State, o: Original, side: str, h: Tensor) -> Tensor:
    first, second, third = middle_names(o, side)
    return resnet(s, third, attend(s, second, resnet(s, first, h)))


def level_of(s: State, o: Original, side: str, level: int, h: Tensor) -> Tensor:
    root, block = level_names(o, side, level)
    for i in range(o.num_res_blocks + (side == "decoder")):
        h = resnet(s, f"{root}.{block}.{i}", h)
        if o.attends(level):
            h = attend(s, f"{root}.attn.{i}", h)
    return h


def reference_encode(s: State, o: Original, images: Tensor) -> Tensor:
    h = conv(s, "encoder.conv_in", images * 2 - 1, 1)
    for level in range(len(o.ch_mult)):
        h = level_of(s, o, "encoder", level, h)
        if level != len(o.ch_mult) - 1:
            name = f"{level_names(o, 'encoder', level)[0]}.downsample.conv"
            h = conv(s, name, F.pad(h, (0, 1, 0, 1)), stride=2)
    h = swish(norm(s, "encoder.norm_out", middle(s, o, "encoder", h)))
    z = conv(s, "quant_conv", conv(s, "encoder.conv_out", h, 1))
    if o.layout == "taming-gumbel":
        return conv(s, "quantize.proj", z).argmax(1).flatten(1)
    z = z.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cdist(scaled(o, z), reference_book(s, o)).argmin(2)


def reference_decode(s: State, o: Original, codes: Tensor) -> Tensor:
    side = o.resolution // 2 ** (len(o.ch_mult) - 1)
    z = reference_book(s, o)[codes].reshape(len(codes), side, side, -1).permute(0, 3, 1, 2)
    h = middle(s, o, "decoder", conv(s, "decoder.conv_in", conv(s, "post_quant_conv", z), 1))
    for level in reversed(range(len(o.ch_mult))):
        h = level_of(s, o, "decoder", level, h)
        if level != 0:
            name = f"{level_names(o, 'decoder', level)[0]}.upsample.conv"
            h = conv(s, name, F.interpolate(h, scale_factor=2.0, mode="nearest"), 1)
    out = conv(s, "decoder.conv_out", swish(norm(s, "decoder.norm_out", h)), 1)
    return (out.clamp(-1, 1) + 1) / 2


def scaled(o: Original, vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1) if o.layout == "llamagen" else vectors


def reference_book(s: State, o: Original) -> Tensor:
    name = "quantize.embed.weight" if o.layout == "taming-gumbel" else "quantize.embedding.weight"
    return scaled(o, s[name])


# --- the tests --------------------------------------------------------------------------------


def shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def images_of(original: Original, count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    sides = original.resolution // 4, original.resolution
    coarse, fine = (torch.rand(count, 3, side, side, generator=generator) for side in sides)
    return 0.8 * F.interpolate(coarse, size=original.resolution) + 0.2 * fine


@pytest.fixture(params=TINY)
def original(request: pytest.FixtureRequest) -> Original:
    return TINY[request.param]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_have_the_names_and_shapes_of_the_originals(preset: str):
    spec, expected = PRESETS[preset], shapes_of(ORIGINALS[preset])
    with torch.device("meta"):
        state = PublicVQ(spec).state_dict()
    assert {public_name(n, spec): tuple(v.shape) for n, v in state.items()} == expected
    assert infer_spec(expected, image_size=spec.image_size) == spec
    assert ORIGINALS.keys() == PRESETS.keys()


def test_sizes_that_were_published():
    """LlamaGen's own table says 72M and 70M parameters; grids are as everyone reports them."""
    for preset, millions in (("llamagen-vq16", 72), ("llamagen-vq8", 70)):
        with torch.device("meta"):
            state = PublicVQ(PRESETS[preset]).state_dict()
        assert round(sum(value.numel() for value in state.values()) / 1e6) == millions
    grids = {name: spec.grid for name, spec in PRESETS.items()}
    assert grids["taming-gumbel-f8-8192"] == grids["taming-f8-16384"] == (32, 32)
    assert grids["llamagen-vq16"] == grids["taming-f16-1024"] == (16, 16)
    assert grids["chameleon-f16-8192"] == (32, 32)


@pytest.mark.parametrize("form", ["safetensors", "lightning"])
def test_a_loaded_checkpoint_does_what_the_original_does(original: Original, form: str, tmp_path):
    state, images = random_state(original), images_of(original)
    path = tmp_path / ("vq.safetensors" if form == "safetensors" else "last.ckpt")
    if form == "safetensors":
        save_file(state, path)
    else:
        critic = {"loss.discriminator.main.0.weight": torch.zeros(2)}
        torch.save({"epoch": 3, "state_dict": state | critic}, path)
    found = read_state_dict(path)
    spec = infer_spec(shapes(found), image_size=original.resolution)
    tokenizer = public_vq_of(spec, found)
    assert isinstance(tokenizer, ImageTokenizer)
    expected = reference_encode(state, original, images)
    codes = tokenizer.encode(images)
    assert codes.dtype == torch.int64
    assert len(expected.unique()) > 5
    assert torch.equal(codes, expected)
    drawn = torch.randint(original.n_embed, codes.shape, generator=torch.Generator().manual_seed(2))
    for some in (codes, drawn):
        made = tokenizer.decode(some)
        torch.testing.assert_close(
            made, reference_decode(state, original, some), rtol=1e-5, atol=1e-5
        )
        assert float(made.std()) > 0.1
    assert torch.equal(tokenizer.code_vectors, reference_book(state, original))


def test_laws_of_image_tokenizers(original: Original):
    tokenizer = loaded(original)
    images = images_of(original)
    codes = tokenizer.encode(images)
    assert torch.equal(codes, tokenizer.encode(images))
    assert torch.equal(codes, torch.cat([tokenizer.encode(image[None]) for image in images]))
    torch.testing.assert_close(
        tokenizer.decode(codes)[2:3], tokenizer.decode(codes[2:3]), rtol=1e-4, atol=1e-5
    )
    assert tokenizer.decode(codes).shape == images.shape
    assert not any(p.requires_grad for p in tokenizer.parameters())
    with pytest.raises(ValueError, match=r"encode\(\) takes images \[B, 3, 16, 16\]"):
        tokenizer.encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="some are not"):
        tokenizer.decode(codes + original.n_embed)


def loaded(original: Original, **changes: object) -> PublicVQ:
    state = random_state(original)
    spec = infer_spec(shapes(state), image_size=original.resolution)
    return public_vq_of(replace(spec, **changes), state)


def test_another_image_size_is_another_grid():
    tokenizer = loaded(TINY["taming"], image_size=24)
    assert tokenizer.grid == (6, 6)
    assert tokenizer.encode(torch.rand(2, 3, 24, 24)).shape == (2, 36)


def test_what_it_was_loaded_from_is_what_it_gives_back(original: Original):
    state = random_state(original)
    again = public_state(loaded(original))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], value) for name, value in state.items())


def test_half_precision_becomes_float32():
    state = {name: value.half() for name, value in random_state(_TINY).items()}
    spec = infer_spec(shapes(state), image_size=16)
    assert {p.dtype for p in public_vq_of(spec, state).parameters()} == {torch.float32}


def test_what_does_not_fit_is_named_three_at_a_time():
    state = random_state(_TINY)
    spec = infer_spec(shapes(state), image_size=16)
    state |= {"model_ema.decay": torch.zeros(()), "loss.logvar": torch.zeros(())}
    public_vq_of(spec, state)
    gone = [name for name in state if name.startswith("decoder.mid.")]
    for name in gone:
        del state[name]
    state["quantize.used"] = torch.zeros(3)
    state["quantize.embedding.weight"] = torch.zeros(24, 9)
    with pytest.raises(ValueError, match="factor 4 and 24 codes") as error:
        public_vq_of(spec, state)
    said = str(error.value)
    assert f"{len(gone)} missing ({', '.join(gone[:3])}, ...)" in said
    assert "1 unknown (quantize.used)" in said
    assert "(quantize.embedding.weight is [24, 9] and not [24, 5])" in said


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda name: "decoder" in name, "neither encoder.down.N"),
        (lambda name: name != "quant_conv.weight", "has no 'quant_conv.weight'"),
    ],
)
def test_a_spec_that_cannot_be_inferred_is_refused(keep, message):
    part = {name: shape for name, shape in shapes_of(_TINY).items() if keep(name)}
    with pytest.raises(ValueError, match=message):
        infer_spec(part, image_size=16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "vqgan"}, "must be one of"),
        ({"channels": 40}, "no multiple of 32"),
        ({"image_size": 100}, "multiple of the factor"),
        ({"multipliers": ()}, "multipliers"),
        ({"codebook_size": 0}, "codebook_size"),
        ({"layout": "taming-gumbel", "code_dim": 8}, "must equal latent_channels"),
    ],
)
def test_impossible_specs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(
            PublicVQSpec(layout="taming", image_size=64, codebook_size=4, code_dim=4), **changes
        )


@pytest.mark.gpu
def test_cuda_gives_the_codes_of_the_cpu(original: Original):
    tokenizer, images = loaded(original), images_of(original, count=64)
    codes = tokenizer.encode(images)
    back = tokenizer.decode(codes)
    there = tokenizer.cuda()
    same = (there.encode(images.cuda()).cpu() == codes).float().mean()
    assert float(same) > 0.95  # a latent between two codes may fall to either
    assert there.encode(images).device.type == "cpu"  # that of the argument
    # TF32 is what cuDNN multiplies with
    torch.testing.assert_close(there.decode(codes.cuda()).cpu(), back, rtol=3e-2, atol=3e-2)
