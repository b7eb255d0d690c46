import pytest
import torch

from racm3.generator.cache import Cache
from racm3.generator.config import GeneratorConfig
from racm3.generator.transformer import Generator
from racm3.vocabulary import Vocabulary

VOCABULARY = Vocabulary(20, 16, 2)


def make(positions="document", seed=0, **changes):
    config = GeneratorConfig(
        layers=2, width=24, heads=3, max_length=24, positions=positions, num_places=30, **changes
    )
    return Generator(config, VOCABULARY, generator=torch.Generator().manual_seed(seed)).eval()


def inputs(rows=3, length=12):
    g = torch.Generator().manual_seed(1)
    draw = lambda high: torch.randint(0, high, (rows, length), generator=g)  # noqa: E731
    return draw(VOCABULARY.size), draw(30), draw(30), draw(3)


@pytest.mark.parametrize("positions", ["document", "rope", "sequence"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("first", [1, 5, 11])
def test_cached_logits_equal_uncached(positions, qk_norm, first):
    model, whole = make(positions, qk_norm=qk_norm), inputs()
    cache = Cache(model.config, rows=3, capacity=12)
    with torch.no_grad():
        expected = model(*whole)
        parts = [model(*(x[:, :first] for x in whole), cache=cache)]
        parts.append(model(*(x[:, first:] for x in whole), cache=cache))
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["document", "rope", "sequence"])
def test_no_token_sees_what_comes_after_it(positions):
    model, whole = make(positions), inputs()
    other = tuple(torch.cat([x[:, :7], (x[:, 7:] + 1) % 3], 1) for x in whole)
    with torch.no_grad():
        assert torch.allclose(model(*whole)[:, :7], model(*other)[:, :7], atol=1e-6)
        assert not torch.allclose(model(*whole)[:, 7:], model(*other)[:, 7:], atol=1e-3)


def test_keep_selects_logits_and_nothing_else():
    model, whole = make(), inputs()
    keep = torch.rand(3, 12, generator=torch.Generator().manual_seed(2)) < 0.4
    with torch.no_grad():
        torch.testing.assert_close(model(*whole, keep=keep), model(*whole)[keep])


def test_activation_checkpointing_changes_no_gradient():
    grads = []
    for switch in (False, True):
        model = make(checkpoint_activations=switch).train()
        model(*inputs()).square().sum().backward()
        grads.append(model.tokens.weight.grad)
    torch.testing.assert_close(*grads)


def test_too_long_a_sequence_is_refused():
    with pytest.raises(ValueError, match="max_length"):
        make("sequence")(torch.zeros(1, 25, dtype=torch.int64))
    with pytest.raises(ValueError, match="places"):
        make()(torch.zeros(1, 5, dtype=torch.int64))


@pytest.mark.gpu
@pytest.mark.parametrize("positions", ["document", "rope", "sequence"])
def test_cuda_gives_the_logits_of_the_cpu(positions):
    model, whole = make(positions), inputs()
    with torch.no_grad():
        expected = model(*whole)
        model = model.cuda()
        moved = [x.cuda() for x in whole]
        cache = Cache(model.config, rows=3, capacity=12, device=torch.device("cuda"))
        parts = [model(*(x[:, :5] for x in moved), cache=cache)]
        parts.append(model(*(x[:, 5:] for x in moved), cache=cache))
        torch.testing.assert_close(model(*moved).cpu(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat(parts, 1).cpu(), expected, atol=1e-4, rtol=1e-4)
