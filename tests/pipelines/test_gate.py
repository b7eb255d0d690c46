"""What moves, and what waits, when generators are retrained and evaluated."""

from __future__ import annotations

import json

import pytest
import score_tables as tables

from flows.recipes import load_run
from pipelines.errors import GateRefused, UsageError
from pipelines.gate import GateRow, move_references, newest, worse_rows
from pipelines.runtime.catalog import publish, read_ref

GATE = (GateRow(metric="ppl", task="image", set="familiar", k=2, memory="m", tolerance=0.05),)
KINDS = ("generator.ra", "scores", "report", "memory")


def ppl(value, model="ra", **changes):
    return tables.row("ppl", model=model, value=value, **({"better": "lower"} | changes))


class Line:
    """A namespace whose generator is trained and evaluated again and again."""

    def __init__(self, store, gate=GATE):
        self.store, self.gate = store, gate

    def retrain(self, letter):
        generator = publish(self.store, tables.manifest("generator", letter * 64))
        made = {"generator.ra": generator, "memory": self.other("memory", letter)}
        move_references(self.store, "n", self.gate, made, made)

    def evaluate(self, letter, rows, generator=None):
        """Scores the newest generator; scores and report have the id of the letter."""
        generator = generator or newest(self.store, "n", "generator.ra", self.gate)
        made = {
            "scores": tables.put_scores(
                self.store, letter, rows, generators={"ra": generator.artifact_id}
            ),
            "report": self.other("report", letter),
        }
        known = made | {"generator.ra": generator}
        move_references(self.store, "n", self.gate, made, known)

    def other(self, kind, letter):
        return publish(self.store, tables.manifest(kind, letter * 64))

    def state(self, *names):
        """First letters of what the references name."""
        found = [read_ref(self.store, "n", name) for name in names or KINDS]
        return "".join("-" if one is None else one.artifact_id[0] for one in found)


@pytest.fixture
def line(store):
    """One generator, trained and scored: perplexity 5."""
    made = Line(store)
    made.retrain("a")
    made.evaluate("a", [ppl(5.0)])
    return made


def test_the_first_generator_passes(store):
    line = Line(store)
    line.retrain("a")
    assert line.state() == "---a"
    assert line.state("candidate.generator.ra") == "a"
    line.evaluate("a", [ppl(500.0)])
    assert line.state() == "aaaa"


@pytest.mark.parametrize("value", [4.0, 5.0, 5.25])
def test_one_that_is_not_worse_takes_its_place(line, value):
    line.retrain("b")
    assert line.state() == "aaab"  # it waits; the memory does not
    line.evaluate("b", [ppl(value)])
    assert line.state() == "bbbb"


def test_a_worse_one_stays_outside_with_its_scores(line):
    line.retrain("b")
    with pytest.raises(GateRefused, match=r"of ra went from 5 to 5\.3, and 5 % worse") as caught:
        line.evaluate("b", [ppl(5.3)])
    assert caught.value.exit_code == 3
    assert "candidate.generator.ra" in str(caught.value)
    assert f"racm3 compare n {'b' * 12}" in str(caught.value)
    assert line.state() == "aaab"
    line.gate = (GATE[0].model_copy(update={"tolerance": 0.1}),)
    line.evaluate("b", [ppl(5.3)])  # a gate that lets it through
    assert line.state() == "bbbb"


def test_the_next_one_is_held_against_the_one_that_passed(line):
    line.retrain("b")
    with pytest.raises(GateRefused):
        line.evaluate("b", [ppl(9.0)])
    line.retrain("c")
    with pytest.raises(GateRefused, match="from 5 to 8"):
        line.evaluate("c", [ppl(8.0)])
    assert line.state() == "aaac"
    line.retrain("d")
    line.evaluate("d", [ppl(5.1)])
    assert line.state() == "dddd"


def test_an_older_generator_that_is_named_is_scored_but_does_not_return(line):
    old = read_ref(line.store, "n", "generator.ra")
    line.retrain("b")
    line.evaluate("b", [ppl(4.0)])
    line.evaluate("a", [ppl(5.0)], generator=old)
    assert line.state("generator.ra", "candidate.generator.ra") == "bb"
    line.retrain("c")  # held against the scores of b, which are not the newest
    with pytest.raises(GateRefused, match=r"from 4 to 4\.5"):
        line.evaluate("c", [ppl(4.5)])


def test_scores_of_an_earlier_layout_hold_nobody_back(store):
    line = Line(store)
    line.retrain("a")
    generator = read_ref(store, "n", "candidate.generator.ra")
    old = tables.put_scores(store, "a", [ppl(1.0)], generators={"ra": "a" * 64}, version=1)
    move_references(store, "n", (), {"scores": old, "generator.ra": generator}, {})
    line.retrain("b")
    line.evaluate("b", [ppl(5.0)])
    assert line.state("generator.ra", "scores") == "bb"


def test_without_a_gate_everything_follows(store):
    line = Line(store, gate=())
    for letter in "ab":
        line.retrain(letter)
        line.evaluate(letter, [ppl(5.0)])
        assert line.state() == 4 * letter
    assert line.state("candidate.generator.ra") == "-"


def test_a_gate_that_comes_and_goes_leaves_no_stale_candidate(line):
    line.gate = ()
    line.retrain("b")
    assert line.state("generator.ra", "candidate.generator.ra") == "bb"
    line.gate = GATE
    assert newest(line.store, "n", "generator.ra", GATE).artifact_id[0] == "b"


@pytest.mark.parametrize(
    ("better", "old", "new", "worse"),
    [
        ("higher", 10.0, 9.6, False),
        ("higher", 10.0, 9.4, True),
        ("higher", -10.0, -10.4, False),
        ("higher", -10.0, -10.6, True),
        ("lower", 0.0, 0.0, False),
        ("lower", 0.0, 1e-9, True),
    ],
)
def test_worse_is_by_a_share_of_the_old_value(better, old, new, worse):
    rows = [[ppl(value, better=better)] for value in (new, old)]
    assert bool(worse_rows(GATE, rows[0], {"ra": rows[1]})) == worse


def test_a_row_for_every_model_or_for_one():
    new = [ppl(9.0), ppl(9.0, "vanilla"), ppl(9.0, "copy")]
    old = {"ra": [ppl(5.0)], "vanilla": [ppl(5.0, "vanilla"), ppl(1.0)]}
    assert len(worse_rows(GATE, new, old)) == 2
    only = (GATE[0].model_copy(update={"model": "vanilla"}),)
    assert len(worse_rows(only, new, old)) == 1
    assert worse_rows(only, new, {"ra": [ppl(5.0)]}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": "pplx"}, "no metric pplx; did you mean ppl"),
        ({"k": 7}, r"no row ppl on familiar \(K=7, m\) of any generator; it has ra on familiar"),
        ({"model": "vanilla"}, "of vanilla; it has ra"),
    ],
)
def test_a_row_that_was_not_measured_is_named(changes, said):
    gate = (GATE[0].model_copy(update=changes),)
    with pytest.raises(UsageError, match=said):
        worse_rows(gate, [ppl(5.0)], {})
    with pytest.raises(UsageError, match="neither way"):
        worse_rows(GATE, [ppl(5.0, better=None)], {})


def test_a_recipe_refuses_a_gate_on_what_it_has_not():
    asked = {
        "metric": "cider",
        "task": "caption",
        "set": "familiar",
        "k": 2,
        "memory": "restricted",
    }
    config = load_run("smoke", changes=[{"gate": [asked]}])
    assert config.gate[0].tolerance == 0
    assert type(config).model_validate(json.loads(config.model_dump_json())) == config
    for changes, said in (
        ({"set": "famliar"}, "gate: set famliar is none of this run's"),
        ({"memory": "all"}, "gate: memory all"),
        ({"model": "x"}, r"gate: model x is none of this run's \(ra, vanilla\)"),
        ({"tolernce": 1}, "did you mean tolerance"),
    ):
        with pytest.raises(UsageError, match=said):
            load_run("smoke", changes=[{"gate": [asked | changes]}])
