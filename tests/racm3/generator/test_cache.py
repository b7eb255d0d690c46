from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from racm3.generator.cache import Cache
from racm3.generator.config import GeneratorConfig
from racm3.generator.transformer import Generator
from racm3.vocabulary import Vocabulary

CONFIG = GeneratorConfig(layers=2, width=8, heads=2)
V = Vocabulary(6, 4, 2)
PLACES = 9


def parts(tokens, seed=0, rows=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, rows, 2, tokens, 4, generator=generator).unbind(0)


def model(positions):
    """Weights large enough for every token to change what follows."""
    config = GeneratorConfig(
        layers=2,
        width=8,
        heads=2,
        ffn=8,
        max_length=12,
        positions=positions,
        num_places=PLACES,
        init_std=1.0,
    )
    return Generator(config, V, generator=torch.Generator().manual_seed(0)).eval()


@torch.inference_mode()
def test_reading_with_a_cache_equals_reading_at_once(cases):
    """At first several tokens, then the rest at once or one by one, as sampling does."""
    models = [model(positions) for positions in ("document", "rope", "sequence")]
    for rng in cases:
        reader = models[rng.integers(3)]
        length = int(rng.integers(2, 13))
        high = (V.size, PLACES, PLACES, 3)
        fed = [torch.from_numpy(rng.integers(0, h, (2, length))) for h in high]
        first = int(rng.integers(1, length))
        edges = [0, *(range(first, length) if rng.random() < 0.5 else [first]), length]
        cache = Cache(reader.config, rows=2, capacity=length)
        parts = [reader(*(x[:, a:b] for x in fed), cache=cache) for a, b in pairwise(edges)]
        assert cache.length == length
        assert torch.allclose(torch.cat(parts, 1), reader(*fed), atol=1e-4)


@torch.inference_mode()
def test_rows_of_different_lengths_read_on_as_each_would_alone(cases):
    """Prompts of any lengths, joined; then several tokens at once or one by one."""
    models = [model(positions) for positions in ("document", "rope", "sequence")]
    high = (V.size, PLACES, PLACES, 3)
    for rng in cases:
        reader = models[rng.integers(3)]
        lengths = rng.integers(1, 8, rng.integers(1, 4)).tolist()
        more = int(rng.integers(1, 5))
        fed = [[torch.from_numpy(rng.integers(0, h, (1, n + more))) for h in high] for n in lengths]
        caches = []
        for row, length in zip(fed, lengths, strict=True):
            caches.append(Cache(reader.config, rows=1, capacity=length))
            reader(*(x[:, :length] for x in row), cache=caches[-1])
        joined = Cache.joined(caches, room=more)
        assert joined.capacity == max(lengths) + more
        order = torch.from_numpy(rng.permutation(len(fed)))
        joined.select(order)
        edges = [0, more] if rng.random() < 0.5 else list(range(more + 1))
        parts = []
        for a, b in pairwise(edges):
            ends = [
                torch.cat([row[i][:, n + a : n + b] for row, n in zip(fed, lengths, strict=True)])
                for i in range(4)
            ]
            parts.append(reader(*(x[order] for x in ends), cache=joined))
        together = torch.cat(parts, 1)
        for place, row in enumerate(order.tolist()):
            alone = reader(*fed[row])[0, lengths[row] :]
            assert torch.allclose(together[place], alone, atol=1e-4)


def test_what_was_put_in_comes_out_in_order():
    cache = Cache(CONFIG, rows=3, capacity=7)
    (k1, v1), (k2, v2) = parts(5), parts(2, seed=1)
    for layer in (0, 1):
        keys, values = cache.extend(layer, k1 + layer, v1)
        assert torch.equal(keys, k1 + layer)
    cache.length = 5
    keys, values = cache.extend(0, k2, v2)
    assert torch.equal(keys, torch.cat([k1, k2], 2))
    assert torch.equal(values, torch.cat([v1, v2], 2))


def test_a_full_cache_refuses_and_keeps_what_it_holds():
    cache = Cache(CONFIG, rows=3, capacity=5)
    key, value = parts(5)
    cache.extend(0, key, value)
    cache.length = 5
    with pytest.raises(ValueError, match="room for 5 tokens, not 6"):
        cache.extend(0, *parts(1))
    cache.length = 4
    assert torch.equal(cache.extend(0, key[:, :, 4:], value[:, :, 4:])[0], key)


def test_rows_are_kept_and_repeated_in_the_order_given():
    cache = Cache(CONFIG, rows=3, capacity=4)
    key, value = parts(3)
    cache.extend(1, key, value)
    cache.length = 3
    order = torch.tensor([2, 0, 0, 2])
    cache.select(order)
    more_key, more_value = parts(1, seed=2, rows=4)
    keys, values = cache.extend(1, more_key, more_value)
    assert torch.equal(keys[:, :, :3], key[order])
    assert torch.equal(values[:, :, :3], value[order])
