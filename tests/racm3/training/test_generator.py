from dataclasses import replace

import numpy as np
import pytest
import torch

from racm3.document import DocumentTokens
from racm3.generator.config import GeneratorConfig
from racm3.generator.transformer import Generator
from racm3.metrics.bootstrap import resample
from racm3.metrics.perplexity import example_nll, perplexity_score
from racm3.objective.loss import weighted_loss
from racm3.objective.spans import SpanMixConfig
from racm3.sequence.layout import Layout
from racm3.training.examples import Example, QueryContexts
from racm3.training.fit import FitConfig, fit
from racm3.training.generator import GeneratorTask, Validation, kept
from racm3.training.stream import StreamConfig, draw_batch
from racm3.vocabulary import Vocabulary

LAYOUT = Layout(vocabulary=Vocabulary(20, 16, 2), image_tokens=9, max_text_tokens=6)
STREAM = StreamConfig(
    batch_size=8, max_text_tokens=6, max_length=120, spans=SpanMixConfig(max_masks=2)
)


def examples(n=12):
    r = np.random.default_rng(0)
    docs = [
        DocumentTokens(
            text=tuple(r.integers(0, 20, 3).tolist()), image=tuple(r.integers(0, 16, 9).tolist())
        )
        for _ in range(n)
    ]
    return [
        Example(
            example_id=f"e{i}",
            document_id=f"d{i}",
            main=doc,
            queries=tuple(
                QueryContexts(query=q, draw=0, document_ids=("x", "y"), contexts=(doc, docs[i - 1]))
                for q in ("text", "image")
            ),
        )
        for i, doc in enumerate(docs)
    ]


def make(positions="document"):
    config = GeneratorConfig(
        layers=2, width=36, heads=3, positions=positions, num_places=LAYOUT.places.size
    )
    return Generator(config, LAYOUT.vocabulary, generator=torch.Generator().manual_seed(0))


def test_leaving_out_weightless_labels_changes_no_loss():
    model = make()
    batch, _ = draw_batch(examples(), layout=LAYOUT, config=STREAM, seed=0, step=3)
    inputs = (batch.input_ids, batch.places, batch.next_places, batch.slots)
    keep, labels = kept(batch)
    whole = weighted_loss(model(*inputs), batch)
    part = weighted_loss(model(*inputs, keep=keep)[None], labels)
    torch.testing.assert_close(part.loss, whole.loss)
    assert part.means() == pytest.approx(whole.means(), rel=1e-5)


def test_parts_of_the_loss_are_logged_over_the_steps_and_positions_in_which_they_occur():
    means = {}
    for width in (None, 12):
        task = GeneratorTask(
            make(), examples(), layout=LAYOUT, config=STREAM, seed=0, bucket_width=width
        )
        steps = [task.loss(step, rank=0, world_size=1)[1] for step in range(6)]
        assert len({tuple(step) for step in steps}) == 1
        assert any(step["context_image"] == (0.0, 0.0) for step in steps)
        config = FitConfig(steps=6, learning_rate=1e-9, log_every=6)
        means[width] = fit(task, config).log[-1].metrics
    pairs = [step["context_image"] for step in steps]
    nll, labels = map(sum, zip(*pairs, strict=True))
    assert means[12]["context_image"] == pytest.approx(nll / labels, rel=1e-4)
    together = {name: value for name, value in means[12].items() if "_at_" not in name}
    assert together == pytest.approx(means[None], rel=1e-5)
    starts = {int(n.rpartition("_")[2]) for n in means[12] if n.startswith("main_image_at_")}
    assert starts >= {0, 12, 24}
    split = [step[f"main_image_at_{at}"] for step in steps for at in range(0, 120, 12)]
    whole = [step["main_image"] for step in steps]
    assert np.sum(split, axis=0) == pytest.approx(np.sum(whole, axis=0), rel=1e-4)


def test_training_learns_to_copy_and_wrong_contexts_hurt():
    data = examples()
    validation = Validation(examples=data, layout=LAYOUT, pool=[e.main for e in data], seed=1)
    task = GeneratorTask(make(), data, layout=LAYOUT, config=STREAM, seed=0)
    config = FitConfig(steps=60, learning_rate=4e-3, warmup_steps=5, validate_every=30)
    result = fit(task, config, validate=validation)
    last = result.log[-1].metrics
    assert last["image_ppl_k2"] < last["image_ppl_k0"]
    assert last["image_ppl_k2"] < last["image_ppl_wrong"]
    assert result.flops > 0
    measured = example_nll(task.model, data, layout=LAYOUT, task="image", k=2, batch_size=5)
    assert measured.perplexity == pytest.approx(validation(task.model)["image_ppl_k2"], rel=1e-4)
    assert measured.tokens.tolist() == [9.0] * len(data)
    groups = [str(i) for i in range(len(data))]
    drawn = resample(groups, rng=np.random.default_rng(0), resamples=1000)
    score = perplexity_score(measured, task="image", resampling=drawn)
    assert score.low <= score.value <= score.high


@pytest.mark.parametrize("positions", ["document", "rope", "sequence"])
def test_packed_rows_have_the_loss_and_the_gradient_of_samples_alone(positions):
    changes = {"k_per_batch": False, "max_length": 120}
    alone = replace(STREAM, **changes)
    model, data = make(positions), examples()
    for step in range(6):
        seen = []
        for config in (alone, replace(alone, pack_length=150), replace(alone, pack_length=4000)):
            task = GeneratorTask(model, data, layout=LAYOUT, config=config, seed=2)
            loss, numbers = task.loss(step, rank=0, world_size=1)
            model.zero_grad()
            loss.backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
            seen.append((loss.item(), gradient, numbers, task.step_flops(step)))
        (loss, gradient, numbers, flops), *others = seen
        assert "padding" not in numbers
        for other in others:
            assert other[0] == pytest.approx(loss, rel=1e-5)
            torch.testing.assert_close(other[1], gradient, atol=1e-5, rtol=1e-4)
            assert other[2]["main_image"] == pytest.approx(numbers["main_image"], rel=1e-5)
        assert seen[2][3] <= seen[1][3] < flops  # less padding, less to compute
        assert seen[2][2]["padding"] == (0.0, seen[2][2]["tokens"])


def test_packed_training_goes_as_training_on_samples_alone():
    data = examples()
    config = FitConfig(steps=12, learning_rate=1e-3, warmup_steps=3, log_every=1)
    logs = []
    for length in (None, 150):
        stream = replace(STREAM, k_per_batch=False, max_length=120, pack_length=length)
        validation = Validation(examples=data, layout=LAYOUT, pool=[e.main for e in data])
        task = GeneratorTask(make(), data, layout=LAYOUT, config=stream, seed=0)
        logs.append(fit(task, config, validate=validation).log)
    for alone, packed in zip(*logs, strict=True):
        names = alone.metrics.keys() - {"tokens"}
        assert {name: packed.metrics[name] for name in names} == pytest.approx(
            {name: alone.metrics[name] for name in names}, rel=1e-4
        )


@pytest.mark.gpu
@pytest.mark.parametrize("pack_length", [None, 150])
def test_cuda_trains_as_the_cpu_does(pack_length):
    data, config = examples(), FitConfig(steps=12, learning_rate=1e-3, warmup_steps=3, log_every=1)
    validation = Validation(examples=data, layout=LAYOUT, pool=[e.main for e in data], seed=1)
    stream = replace(STREAM, pack_length=pack_length, k_per_batch=pack_length is None)
    logs = []
    for device in ("cpu", "cuda"):
        task = GeneratorTask(make().to(device), data, layout=LAYOUT, config=stream, seed=0)
        logs.append(fit(task, config, validate=validation).log)
    assert [row.split for row in logs[0]] == [row.split for row in logs[1]]
    for here, there in zip(*logs, strict=True):
        assert there.metrics == pytest.approx(here.metrics, rel=2e-3)
        assert there.tokens == here.tokens
