from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sources.emoji import EmojiDocument
from pipelines.sources.emoji_splits import (
    LAION_SCHEMA,
    SOURCES,
    EmojiSplitConfig,
    split_documents,
    write_sources,
)


def make_documents(flags: int, others: int, relatives: int = 3) -> list[EmojiDocument]:
    concepts = [(f"f{n:03d}", "flags", 1) for n in range(flags)]
    concepts += [(f"c{n:03d}", None, 1 + n % relatives) for n in range(others)]

    def category(concept: str, relative: int) -> str:
        """One of eight, or of one that is too small; the relatives of c002 are of three."""
        number = int(concept[1:])
        return "few" if number % 50 == 1 else f"k{(number + relative * (number == 2)) % 8}"

    return [
        EmojiDocument(
            code=f"{concept}-{relative}",
            drawing=drawing,
            caption=f"{drawing} {concept} {relative}",
            concept=concept,
            group=group,
            category="country-flag" if group else category(concept, relative),
        )
        for concept, group, count in concepts
        for relative in range(count)
        for drawing in ("openmoji", "twemoji")
    ]


DOCUMENTS = make_documents(flags=60, others=90)
configs = st.builds(
    EmojiSplitConfig,
    seed=st.integers(0, 2**32),
    familiar=st.integers(0, 60),
    validation=st.integers(0, 60),
    unseen_share=st.floats(0, 0.9),
    unseen_flags=st.integers(0, 70),
    concepts=st.none() | st.integers(1, 100),
    flags=st.none() | st.integers(0, 70),
    unseen_categories=st.integers(0, 9),
)


def _concepts(documents: Sequence[EmojiDocument]) -> set[str]:
    return {document.concept for document in documents}


@settings(max_examples=40, deadline=None)
@given(config=configs)
def test_laws_of_the_split(config: EmojiSplitConfig) -> None:
    sources = split_documents(DOCUMENTS, config)
    assert set(sources) == set(SOURCES)
    dealt = [document.url for documents in sources.values() for document in documents]
    assert len(dealt) == len(set(dealt)), "disjoint"
    used = _concepts([d for documents in sources.values() for d in documents])
    assert len(dealt) == sum(d.concept in used for d in DOCUMENTS), "covering"
    if config.concepts is None and config.flags is None:
        assert len(dealt) == len(DOCUMENTS)
    unseen = _concepts(sources["twemoji-unseen"])
    assert unseen == _concepts(sources["openmoji-unseen"])
    for name, documents in sources.items():
        assert all(d.drawing == name.split("-")[0] for d in documents)
        if not name.endswith("-unseen"):
            assert unseen.isdisjoint(_concepts(documents)), "no unseen concept is trained on"
    elsewhere = {d.category for n, some in sources.items() for d in some if "unseen" not in n}
    whole = {d.category for d in sources["twemoji-unseen"] if d.group is None} - elsewhere
    if config.concepts is None:
        assert len(whole) >= min(config.unseen_categories, 8), "so many categories are new"
    twins = {document.code for document in sources["openmoji-train"]}
    for name in ("twemoji-familiar", "twemoji-validation"):
        assert {document.code for document in sources[name]} <= twins, "the twin stays"
    assert len(sources["twemoji-familiar"]) <= config.familiar
    assert len(sources["twemoji-validation"]) <= config.validation


def test_sizes_are_what_the_config_says() -> None:
    sources = split_documents(
        DOCUMENTS, EmojiSplitConfig(familiar=20, validation=10, unseen_share=0.2, unseen_flags=12)
    )
    flags = [d for d in sources["twemoji-unseen"] if d.group == "flags"]
    others = [d for d in sources["twemoji-unseen"] if d.group is None]
    assert len(_concepts(flags)) == 12
    assert len(_concepts(others)) == 18
    assert len(sources["twemoji-familiar"]) == 20
    assert len(sources["twemoji-validation"]) == 10


def test_categories_are_held_out_whole_beside_the_concepts_that_are_drawn() -> None:
    before = split_documents(DOCUMENTS, EmojiSplitConfig())
    after = split_documents(DOCUMENTS, EmojiSplitConfig(unseen_categories=2))
    added = set(after["twemoji-unseen"]) - set(before["twemoji-unseen"])
    assert set(before["twemoji-unseen"]) <= set(after["twemoji-unseen"]), "the others stay"
    trained = {d.category for name in ("twemoji-train", "openmoji-train") for d in after[name]}
    new = {d.category for d in after["twemoji-unseen"]} - trained
    assert len(new) == 2
    assert {d.concept for d in added if d.category not in new} <= {"c002"}
    assert "few" not in new, "too few concepts to tell anything by"
    assert "country-flag" not in new


def test_a_split_depends_on_the_seed_and_on_no_order() -> None:
    config = EmojiSplitConfig(familiar=20, validation=10)
    assert split_documents(DOCUMENTS, config) == split_documents(DOCUMENTS[::-1], config)
    other = config.model_copy(update={"seed": 1})
    assert split_documents(DOCUMENTS, other) != split_documents(DOCUMENTS, config)


def test_a_small_corpus_takes_a_few_concepts() -> None:
    sources = split_documents(DOCUMENTS, EmojiSplitConfig(concepts=10, flags=5, unseen_flags=2))
    documents = [d for group in sources.values() for d in group]
    assert len(_concepts(documents)) == 15
    assert len(_concepts([d for d in documents if d.group == "flags"])) == 5


def test_files_are_laion_shaped_and_equal_when_written_again(tmp_path: Path) -> None:
    config = EmojiSplitConfig(familiar=20, validation=0, rows_per_file=50)
    sources = split_documents(DOCUMENTS, config)
    written = write_sources(sources, tmp_path / "a", rows_per_file=50)
    again = write_sources(sources, tmp_path / "b", rows_per_file=50)
    assert [source.name for source in written] == list(SOURCES)
    for source, twin in zip(written, again, strict=True):
        assert (source.role, source.evaluation_set) == SOURCES[source.name]
        tables = [pq.read_table(path) for path in source.files]
        assert all(table.schema.equals(LAION_SCHEMA) for table in tables)
        assert all(table.num_rows == 50 for table in tables[:-1])
        urls = [url for table in tables for url in table.column("URL").to_pylist()]
        assert sorted(urls) == sorted(document.url for document in sources[source.name])
        assert [p.read_bytes() for p in source.files] == [p.read_bytes() for p in twin.files]
        if source.name == "twemoji-validation":
            assert source.files == ()
    assert len(next(s for s in written if s.name == "openmoji-train").files) > 1
    assert not list((tmp_path / "a").glob("*.tmp"))
