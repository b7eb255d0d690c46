import pytest

from racm3.training.tallies import added, as_tallies, means


def test_a_mean_is_over_the_things_summed_and_not_over_steps():
    steps = [{"loss": 2.0, "context": (6.0, 3.0)}, {"loss": 4.0, "context": (0.0, 0.0)}]
    total = {}
    for step in steps:
        total = added(total, as_tallies(step))
    assert means(total) == {"loss": 3.0, "context": 2.0}


def test_a_step_counts_as_one_in_however_many_parts_it_is_read():
    whole = as_tallies({"loss": 2.0, "context": (6.0, 3.0)})
    parts = [{"loss": 1.0, "context": (2.0, 1.0)}, {"loss": 3.0, "context": (4.0, 2.0)}]
    assert added(*(as_tallies(part, share=0.5) for part in parts)) == whole


def test_what_never_occurred_has_no_mean():
    assert means(added({}, as_tallies({"never": (0.0, 0.0), "zero": 0.0}))) == {"zero": 0.0}


def test_tallies_add_up_in_any_grouping(cases):
    for rng in cases:
        parts = [
            {str(n): (float(v), float(rng.integers(5))) for n, v in enumerate(rng.normal(size=3))}
            for _ in range(4)
        ]
        a, b, c, d = parts
        left, right = added(added(added(a, b), c), d), added(added(a, b), added(c, d))
        assert means(left) == pytest.approx(means(right))
        assert left.keys() == right.keys() == {"0", "1", "2"}
