from __future__ import annotations

from dataclasses import replace

import pytest
from score_tables import manifest, put_scores, row

from pipelines.comparison import (
    compare_scores,
    find_side,
    only_on_one_side,
    score_rows,
    scores_of_generator,
)
from pipelines.errors import UsageError
from pipelines.runtime.catalog import move_ref, publish
from pipelines.runtime.context import start_run


@pytest.fixture
def sides(store):
    left = [row(), row("kid", value=0.2, better="lower", low=None, high=None), row("cider")]
    right = [row(value=1.5), row("kid", value=0.1, better="lower"), row("fid")]
    put_scores(store, "a", left)
    put_scores(store, "b", right)
    return find_side(store, "aaaaaa"), find_side(store, "scores/bbbbbb")


def test_rows_are_held_against_each_other_by_key(sides):
    kid, psnr = compare_scores(*sides)
    assert (psnr.difference, psnr.ratio, psnr.apart, psnr.verdict) == (0.5, 1.5, True, "better")
    assert (kid.ratio, kid.apart, kid.verdict) == (0.5, None, "better")
    assert only_on_one_side(*sides) == (1, 1)
    back = compare_scores(*sides[::-1])
    assert [one.verdict for one in back] == ["worse", "worse"]
    assert [one.difference for one in back] == [0.1, -0.5]
    assert {one.verdict for one in compare_scores(sides[0], sides[0])} == {"equal"}


def test_overlapping_intervals_do_not_part(sides):
    near = replace(sides[1], rows=(row(value=1.15),))
    (one,) = compare_scores(sides[0], near)
    assert (one.apart, one.verdict) == (False, "better")
    none = replace(sides[1], rows=(row(value=-1.0),))
    assert compare_scores(sides[0], none)[0].ratio is None


def test_another_condition_is_another_row(sides):
    for changes in ({"k": 1}, {"memory": "x"}, {"group": "flags"}, {"set": "unseen"}):
        other = replace(sides[1], rows=(row(**changes),))
        assert compare_scores(sides[0], other) == []


def test_tables_are_found_by_namespace_run_and_generator(store):
    new = put_scores(
        store,
        "a",
        [row(), row(model="vanilla")],
        generators={"ra": "c" * 64, "vanilla": "d" * 64},
        created_at="2",
    )
    put_scores(store, "b", [row(value=7)], generators={"ra": "c" * 64}, created_at="1")
    for one in "cde":
        publish(store, manifest("generator", one * 64))
    move_ref(store, "emoji", "scores", new)
    run = start_run(store, "emoji", {})
    run.record_artifacts({"score_generations": new.artifact_id})
    for name in ("emoji", run.run_id, run.run_id[:8], "aaaaaaa"):
        side = find_side(store, name)
        assert (side.manifest, len(side.rows), side.model) == (new, 2, None)
    ours, base = find_side(store, "generator/cccccc"), find_side(store, "dddddd")
    assert [one["model"] for one in ours.rows] == ["ra"]
    (pair,) = compare_scores(ours, base)  # whatever they are called
    assert (pair.a["model"], pair.b["model"], pair.verdict) == ("ra", "vanilla", "equal")
    assert [m.artifact_id[0] for m, _ in scores_of_generator(store, "c" * 64)] == ["a", "b"]
    with pytest.raises(UsageError, match="never scored"):
        find_side(store, "eeeeee")


def test_wrong_names_are_refused_with_the_nearest(store):
    made = put_scores(store, "a", [row()])
    publish(store, replace(made, artifact_id="a" * 10 + "b" * 54))
    move_ref(store, "emoji", "scores", made)
    move_ref(store, "smoke", "memory", publish(store, manifest("memory", "f" * 64)))
    run = start_run(store, "emoji", {})
    for name, said in {
        "emojo": "is called emojo; did you mean emoji",
        "smoke": "smoke has no scores yet",
        "aaaaaa": "2 things have an id that starts with aaaaaa",
        "aaaa": "nothing that has scores is called aaaa",
        "ffffff": "nothing that has scores is called ffffff",
        "report/aaaaaa": "nothing that has scores",
        "": "nothing that has scores is called ;",
        run.run_id: "has no scores; name a run that evaluated",
    }.items():
        with pytest.raises(UsageError, match=said):
            find_side(store, name)


def test_tables_of_an_earlier_version_are_not_misread(store):
    old = put_scores(store, "a", [row()], version=1)
    with pytest.raises(UsageError, match="version 1 of the score table, which is now version 2"):
        score_rows(store, old)
