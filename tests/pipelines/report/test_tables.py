from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipelines.report.tables import headlines, number, score_tables
from pipelines.scoring.few_shot import OF_OTHERS


def test_headline_says_change_interval_and_verdict(made: Any) -> None:
    (row,) = headlines(made.report())
    assert row.image is not None
    assert (row.title, row.memory, row.n) == ("familiar", "restricted", 212)
    assert (row.image.text, row.image.interval) == ("−10.3 %", "−15.3 to −5.3 %")
    assert row.image.verdict == "better"
    assert row.accuracy is not None
    assert row.accuracy.verdict == "better"
    assert row.caption is None


@pytest.mark.parametrize(
    ("metric", "value", "verdict"),
    [
        ("perplexity_ratio", 1.1, "worse"),
        ("perplexity_ratio", 1.02, ""),
        ("token_accuracy_ratio", 0.8, "worse"),
        ("token_accuracy_ratio", 1.2, "better"),
    ],
)
def test_a_worse_result_is_called_worse(made: Any, metric: str, value: float, verdict: str) -> None:
    score = made.score(metric, "ra", value, k=2, memory="m")
    (row,) = headlines(replace(made.report(), scores=(score,)))
    cell = row.image if metric == "perplexity_ratio" else row.accuracy
    assert cell is not None
    assert cell.verdict == verdict


def test_only_generators_compete_for_bold(made: Any) -> None:
    rows = (
        made.score("token_accuracy", "ra", 0.2, k=2, memory="m"),
        made.score("token_accuracy", "vanilla", 0.1),
        made.score("token_accuracy", "copy the top document", 0.9, k=1, memory="m", n=200),
    )
    (table,) = score_tables(replace(made.report(), scores=rows))
    (line,) = table.lines
    assert [column[0] for column in table.columns] == [
        "RA-CM3", "vanilla CM3", "copy the top document",
    ]  # fmt: skip
    assert [cell and cell.best for cell in line.cells] == [True, False, False]
    assert [cell and cell.n for cell in line.cells] == [0, 0, 200]


def test_the_note_of_a_line_is_how_its_first_column_was_measured(made: Any) -> None:
    copied = made.score("token_accuracy", "copy the top document", 0.9, k=1, memory="m")
    drawn = made.score("token_accuracy", "ra", 0.2, k=2, memory="m")
    rows = (replace(copied, protocol="of one sample"), replace(drawn, protocol="of four"))
    (table,) = score_tables(replace(made.report(), scores=rows))
    assert table.protocols == ("of four",)


def test_every_score_stands_in_exactly_one_cell(made: Any) -> None:
    report = made.report()
    cells = [c for t in score_tables(report) for line in t.lines for c in line.cells if c]
    paired = {"perplexity_ratio", "token_accuracy_ratio"}
    assert len(cells) == sum(row.metric not in paired for row in report.scores)


def test_slices_stand_in_reading_order(made: Any) -> None:
    places = [("unseen", ""), ("unseen", "rest"), ("unseen", "flags"), ("familiar", "")]
    rows = tuple(made.score("psnr", "ra", 1.0, set=s, group=g) for s, g in places)
    titles = [table.title for table in score_tables(replace(made.report(), scores=rows))]
    assert titles == ["familiar", "unseen: flags", "unseen: the rest", "unseen"]


def test_few_shot_classification_has_tables_of_its_own_by_model_and_k(made: Any) -> None:
    def told(model: str, k: int, group: str = "", metric: str = "few_shot_accuracy") -> Any:
        where = {"task": "classify", "memory": "demonstrations", "set": "unseen", "group": group}
        return made.score(metric, model, 0.5 + k / 20, k=k, **where)

    rows = (
        *(told(model, k) for model in ("vanilla", "ra") for k in (8, 1)),
        told("ra", 1, "new categories"),
        told("ra", 8, metric="few_shot_gain"),
        made.score("psnr", "ra", 1.0, set="unseen"),
    )
    drawn, whole, new = sorted(
        score_tables(replace(made.report(), scores=rows)), key=lambda table: len(table.title)
    )
    assert drawn.title == "unseen"
    assert whole.title == "unseen, classified by labels without meaning"
    assert new.title == "unseen: new categories, classified by labels without meaning"
    assert whole.columns == (
        ("RA-CM3", "1 of each class shown"),
        ("RA-CM3", "8 of each class shown"),
        ("vanilla CM3", "1 of each class shown"),
        ("vanilla CM3", "8 of each class shown"),
    )
    accuracy, gain = whole.lines
    assert [cell and cell.text for cell in accuracy.cells] == ["0.550", "0.900", "0.550", "0.900"]
    assert [cell is not None for cell in gain.cells] == [False, True, False, False]


def test_what_others_demonstrate_is_said_so(made: Any) -> None:
    shown = {"task": "classify", "memory": OF_OTHERS, "set": "unseen"}
    names = ("vanilla", "ra")
    rows = tuple(made.score("few_shot_channel_accuracy", m, 0.6, k=2, **shown) for m in names)
    (table,) = score_tables(replace(made.report(), scores=rows))
    assert table.columns == (
        ("RA-CM3", "2 of each class shown, by others"),
        ("vanilla CM3", "2 of each class shown, by others"),
    )


def test_the_first_rows_are_familiar_whole_and_the_parts_of_other_sets(made: Any) -> None:
    places = [
        ("unseen", ""),
        ("unseen", "flags"),
        ("familiar", ""),
        ("familiar", "flags"),
        ("a", ""),
    ]
    rows = tuple(
        made.score("perplexity_ratio", "ra", 0.9, set=s, group=g, memory="m") for s, g in places
    )
    found = headlines(replace(made.report(), scores=rows))
    assert [row.title for row in found if row.first] == ["familiar", "a", "unseen: flags"]
    assert len(found) == len(places)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.109, "−0.109"),
        (0.0123, "0.0123"),
        (31.2, "31.20"),
        (12345.6, "12,346"),
        (2e9, "2.00e+09"),
        (4.7e-4, "0.0005"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text
