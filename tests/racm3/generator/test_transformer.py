import shutil

import numpy as np
import pytest
import torch

from racm3.generator.cache import Cache
from racm3.generator.config import GeneratorConfig
from racm3.generator.transformer import Generator
from racm3.sequence.batch import Batch, Row
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


def sample(length, random):
    """A row of noise."""
    return Row(
        ids=random.integers(1, VOCABULARY.size, length),
        weights=random.random(length, dtype=np.float32),
        is_main=random.random(length) < 0.5,
        modality=random.integers(0, 3, length).astype(np.int8),
        places=random.integers(0, 30, length),
        next_places=random.integers(0, 30, length),
        slots=random.integers(0, 3, length),
    )


def read(model, batch):
    """Logits of every token, by the index of its sample and its place in it."""
    logits = model(
        batch.input_ids, batch.places, batch.next_places, batch.slots, samples=batch.samples
    )
    return logits[batch.labels > 0]


def by_sample(rows, batch):
    """For each token in the order of `rows`, its index among the tokens of the batch."""
    first = {tuple(row.ids[:-1].tolist()): 0 for row in rows}
    assert len(first) == len(rows), "samples must be told apart by their ids"
    flat, held = batch.input_ids.flatten().tolist(), (batch.labels > 0).flatten()
    count, found = held.cumsum(0).tolist(), []
    for ids in first:
        start = next(i for i in range(len(flat)) if tuple(flat[i : i + len(ids)]) == ids)
        found += [count[start + i] - 1 for i in range(len(ids))]
    return torch.tensor(found)


@pytest.mark.parametrize("positions", ["document", "rope", "sequence"])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_packed_logits_and_gradients_are_those_of_samples_alone(positions, qk_norm):
    model = make(positions, qk_norm=qk_norm).train()
    for seed in range(100):
        random = np.random.default_rng(seed)
        rows = [sample(int(n), random) for n in random.integers(9, 24, random.integers(1, 8))]
        room = int(random.integers(23, 90))
        seen = []
        for batch in (
            Batch.of_rows(rows, pad_id=0),
            Batch.packed(rows, length=room, pad_id=0),
        ):
            order = by_sample(rows, batch)
            logits, weights = read(model, batch)[order], batch.weights[batch.labels > 0][order]
            model.zero_grad()
            (logits.logsumexp(-1) * weights).sum().backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
            seen.append((logits.detach(), weights, gradient))
        (alone, weight, gradient), (packed, weight_too, gradient_too) = seen
        assert torch.equal(weight, weight_too)
        torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient_too, gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", ["document", "rope", "sequence"])
def test_a_changed_token_changes_its_own_sample_alone(positions):
    model = make(positions)
    for seed in range(20):
        random = np.random.default_rng(seed)
        rows = [sample(int(n), random) for n in random.integers(9, 24, 6)]
        batch = Batch.packed(rows, length=60, pad_id=0)
        token = int(random.integers(len(rows[2].ids) - 1))
        where = by_sample(rows, batch).split([len(row.ids) - 1 for row in rows])
        position = (batch.labels > 0).flatten().nonzero()[int(where[2][token])]
        ids = batch.input_ids.flatten().clone()
        ids[position] = (ids[position] + 1) % VOCABULARY.size
        with torch.no_grad():
            before = read(model, batch)
            inputs = (ids.view_as(batch.labels), batch.places, batch.next_places, batch.slots)
            after = model(*inputs, samples=batch.samples)[batch.labels > 0]
        for number, places in enumerate(where):
            own = number == 2
            assert torch.equal(before[places], after[places]) == (not own)
            if own:
                assert torch.equal(before[places[:token]], after[places[:token]])


def test_contexts_beyond_the_last_slot_share_it():
    few, many = make(num_slots=2), make(num_slots=5)
    with torch.no_grad():
        state = few.state_dict()
        rows = state["slots.weight"][[0, 1, 1, 1, 1]]
        many.load_state_dict(state | {"slots.weight": rows})
    read = inputs()
    slots = torch.arange(read[0].shape[1]).expand_as(read[0]) % 5
    for batch in (read, (*read[:3], slots)):
        torch.testing.assert_close(few(*batch), many(*batch))
    assert not torch.allclose(few(*read[:3], slots), few(*read[:3], slots * 0))


def test_packed_rows_and_a_cache_are_refused_together():
    model = make()
    batch = Batch.packed([sample(9, np.random.default_rng(0))], length=30, pad_id=0)
    inputs = (batch.input_ids, batch.places, batch.next_places, batch.slots)
    with pytest.raises(ValueError, match="no packed rows"):
        model(*inputs, samples=batch.samples, cache=Cache(model.config, rows=1, capacity=30))


def test_packed_rows_may_be_longer_than_the_longest_sample():
    random = np.random.default_rng(0)
    rows = [sample(20, random) for _ in range(4)]
    batch = Batch.packed(rows, length=100, pad_id=0)
    assert batch.input_ids.shape == (1, 76)
    model = make("sequence")
    assert torch.isfinite(read(model, batch)).all()
    long = Batch.packed([sample(26, random)], length=100, pad_id=0)
    with pytest.raises(ValueError, match="25 tokens is longer than max_length 24"):
        read(model, long)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_give_the_same_numbers_under_the_same_names():
    random = np.random.default_rng(0)
    rows = [sample(int(n), random) for n in (20, 9, 14)]
    plain, compiled = make("rope").train(), make("rope", checkpoint_activations=True).train()
    compiled.compile_blocks()
    assert list(plain.state_dict()) == list(compiled.state_dict())
    assert [name for name, _ in plain.named_modules()] == [n for n, _ in compiled.named_modules()]
    for batch in (Batch.of_rows(rows, pad_id=0), Batch.packed(rows, length=60, pad_id=0)):
        seen = []
        for model in (plain, compiled):
            model.zero_grad()
            logits = read(model, batch)
            logits.square().mean().backward()
            seen.append((logits.detach(), model.blocks[0].attention.qkv.weight.grad))
        for one, other in zip(*seen, strict=True):
            torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)


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


@pytest.mark.gpu
@pytest.mark.parametrize("positions", ["document", "rope", "sequence"])
def test_cuda_reads_packed_rows_as_the_cpu_does(positions):
    random = np.random.default_rng(0)
    batch = Batch.packed([sample(int(n), random) for n in (20, 9, 14, 11)], length=40, pad_id=0)
    seen = []
    for device in ("cpu", "cuda"):
        model = make(positions).to(device).train()
        logits = read(model, batch.to(device))
        logits.logsumexp(-1).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        seen.append((logits.detach().cpu(), gradient.cpu()))
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(other, one, atol=1e-4, rtol=1e-4)
