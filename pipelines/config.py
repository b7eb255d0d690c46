"""`RunConfig`: every stage's config in one frozen record; it *is* the parameter of the flows."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from pipelines.errors import UsageError
from pipelines.gate import GateRow
from pipelines.runtime.stage import StageConfig
from pipelines.sources.emoji_splits import SOURCES, EmojiSplitConfig
from pipelines.stages.assemble_examples import Config as AssembleExamplesConfig
from pipelines.stages.build_memory import Config as BuildMemoryConfig
from pipelines.stages.curate_documents import Config as CurateDocumentsConfig
from pipelines.stages.download_images import Config as DownloadImagesConfig
from pipelines.stages.embed_documents import Config as EmbedDocumentsConfig
from pipelines.stages.generate import Config as GenerateConfig
from pipelines.stages.ingest_metadata import Config as IngestMetadataConfig
from pipelines.stages.normalize_images import Config as NormalizeImagesConfig
from pipelines.stages.retrieve_contexts import Config as RetrieveContextsConfig
from pipelines.stages.score_generations import Config as ScoreGenerationsConfig
from pipelines.stages.tokenize_images import Config as TokenizeImagesConfig
from pipelines.stages.train_encoder import Config as TrainEncoderConfig
from pipelines.stages.train_generator import Config as TrainGeneratorConfig
from pipelines.stages.train_image_tokenizer import Config as TrainImageTokenizerConfig
from pipelines.stages.train_text_tokenizer import Config as TrainTextTokenizerConfig
from pipelines.stages.write_report import Config as WriteReportConfig

__all__ = ["MemoryConfig", "RunConfig", "SourceConfig", "deep_merge", "validated"]

Role = Literal["train", "memory", "validation", "evaluation"]


class SourceConfig(StageConfig):
    """Parquet files with links and captions that play one role."""

    name: str = Field(description="names the source in every table")
    paths: tuple[str, ...] = Field(
        description="files or globs, read in this order; none: yet to be given, before a run"
    )
    role: Role = Field(description="what its documents are used for")
    set: str | None = Field(None, description="name of the evaluation set")
    as_of: str | None = Field(
        None, description="day (YYYY-MM-DD) of the fetch; none: the day of adding"
    )

    @model_validator(mode="after")
    def _evaluation_names_its_set(self) -> SourceConfig:
        if (self.role == "evaluation") != (self.set is not None):
            raise ValueError("role evaluation needs a `set`, and no other role may have one")
        return self


class MemoryConfig(StageConfig):
    """One memory: whose documents it holds, and which evaluation sets ask it."""

    roles: tuple[Literal["train", "memory"], ...] = ("train",)
    evaluates: tuple[str, ...] | None = Field(
        None, description="evaluation sets scored against it; none: all"
    )
    share: float | None = Field(
        None, gt=0, le=1, description="of their documents, as `memory.share`; none: that"
    )
    ranking: Literal["relevance", "random"] | None = Field(
        None, description="how it answers, as `retrieve.ranking`; none: that"
    )


class RunConfig(StageConfig):
    """A complete run.

    TOML has no word for none: `corpus = false` and `encoder = false` stand for it, and `false` in
    place of a memory or a generator takes it out of the recipe that the file extends.
    """

    namespace: str = Field(description="of the source ledger and the references")
    corpus: EmojiSplitConfig | None = Field(
        None, description="the demo corpus, made on this machine; none: `sources`"
    )
    sources: tuple[SourceConfig, ...] = ()
    fit_sources: tuple[str, ...] | None = Field(
        None, description="train sources that encoder and tokenizers are fitted on; none: all"
    )
    fit_files: int | None = Field(
        None, description="of each of them only the first n files: later ones refit nothing"
    )
    max_poisoned: int = Field(0, description="shards that may fail without failing their stage")
    min_success: float = Field(
        0.5, description="least share of links that must download; below it nothing is published"
    )
    ingest: IngestMetadataConfig = IngestMetadataConfig()
    download: DownloadImagesConfig = DownloadImagesConfig()
    normalize: NormalizeImagesConfig = NormalizeImagesConfig()
    curate: CurateDocumentsConfig = CurateDocumentsConfig()
    text_tokenizer: TrainTextTokenizerConfig = TrainTextTokenizerConfig()
    encoder: TrainEncoderConfig | None = Field(
        None, description="fitted here; none: `embed.pretrained` names a public one"
    )
    scorer: TrainEncoderConfig
    image_tokenizer: TrainImageTokenizerConfig
    embed: EmbedDocumentsConfig = EmbedDocumentsConfig()
    tokenize: TokenizeImagesConfig = TokenizeImagesConfig()
    memory: BuildMemoryConfig = BuildMemoryConfig()
    memories: dict[str, MemoryConfig] = Field(
        default_factory=lambda: {"restricted": MemoryConfig()},
        description="the first is the one that training and validation ask",
    )
    retrieve: RetrieveContextsConfig = RetrieveContextsConfig()
    max_text_tokens: int = Field(32, description="captions are cut to so many tokens")
    generators: dict[str, TrainGeneratorConfig] = Field(
        description="by name; those with `stream.max_k` = 0 read no contexts"
    )
    generate: GenerateConfig = GenerateConfig()
    score: ScoreGenerationsConfig = ScoreGenerationsConfig()
    report: WriteReportConfig = WriteReportConfig()
    gate: tuple[GateRow, ...] = Field(
        (),
        description="rows of the score table that must not get worse, or the references of "
        "generators and their scores stay; none: every reference follows",
    )
    assemble: AssembleExamplesConfig = AssembleExamplesConfig()

    @field_validator("corpus", "encoder", mode="before")
    @classmethod
    def _false_is_none(cls, value: Any) -> Any:
        return None if value is False else value

    @field_validator("memories", "generators", mode="before")
    @classmethod
    def _false_is_left_out(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: one for name, one in value.items() if one is not False}

    @model_validator(mode="after")
    def _reads_something(self) -> RunConfig:
        if self.corpus is None and not self.sources:
            raise ValueError("a run needs `sources` (Parquet files), or a `corpus`")
        if not self.memories or not self.generators:
            raise ValueError("a run needs one of `memories` and one of `generators` at least")
        return self

    @model_validator(mode="after")
    def _columns_and_splits_have_a_source(self) -> RunConfig:
        names = {source.name for source in self.sources}
        for key, named in (("columns", self.ingest.columns), ("split", self.ingest.split)):
            for name in sorted(set(named) - names):
                raise ValueError(f"ingest.{key}.{name}: no source is called {name}")
        for source in self.sources:
            if source.name in self.ingest.split and source.role != "train":
                raise ValueError(
                    f"ingest.split.{source.name}: only role train is split, not {source.role}"
                )
        return self

    @model_validator(mode="after")
    def _roles_are_there(self) -> RunConfig:
        given = {source.role for source in self.sources}
        given |= {kind.role for kind in SOURCES.values()} if self.corpus is not None else set()
        given |= {part[0] for split in self.ingest.split.values() for part in split.parts}
        for role in ("train", "validation", "evaluation"):
            if role not in given:
                raise ValueError(
                    f"no source has role {role}: add one, or hold some of a train source out "
                    "(ingest.split.NAME = {validation = 0.02, evaluation = 0.02})"
                )
        return self

    @model_validator(mode="after")
    def _encoder_is_ours_or_public(self) -> RunConfig:
        if (self.encoder is None) == (self.embed.pretrained is None):
            raise ValueError("give either `encoder`, to be fitted here, or `embed.pretrained`")
        return self

    @model_validator(mode="after")
    def _memories_are_asked_by_sets(self) -> RunConfig:
        for name, memory in self.memories.items():
            for asked in memory.evaluates or ():
                if asked not in self.sets:
                    raise ValueError(
                        f"memories.{name}.evaluates: there is no evaluation set {asked}; sets are "
                        f"{', '.join(self.sets)} (memories.{name} = false leaves the memory out)"
                    )
        return self

    @model_validator(mode="after")
    def _gate_is_measured(self) -> RunConfig:
        for row in self.gate:
            for key, name, known in (
                ("set", row.set, self.sets),
                ("memory", row.memory or None, tuple(self.memories)),
                ("model", row.model, tuple(self.generators)),
            ):
                if name is not None and name not in known:
                    raise ValueError(
                        f"gate: {key} {name} is none of this run's ({', '.join(known)}); change "
                        "the row, or take the gate away with gate = []"
                    )
        return self

    @model_validator(mode="after")
    def _lengths_agree(self) -> RunConfig:
        for name, generator in self.generators.items():
            if generator.stream.max_text_tokens != self.max_text_tokens:
                raise ValueError(
                    f"generators.{name}.stream.max_text_tokens must equal max_text_tokens "
                    f"({self.max_text_tokens})"
                )
        return self

    @model_validator(mode="after")
    def _no_more_contexts_than_trained(self) -> RunConfig:
        asked = {"score.k": self.score.k, "score.ks": max(self.score.ks, default=0)}
        asked |= {"generate.k": self.generate.k} if self.generate.tasks else {}
        for name, generator in self.generators.items():
            most = generator.stream.max_k
            for key, k in asked.items():
                if 0 < most < k:
                    raise ValueError(
                        f"{key}: {k} contexts are more than generators.{name} is trained with "
                        f"(stream.max_k {most}); lower the one, or raise the other"
                    )
        return self

    @model_validator(mode="after")
    def _starts_are_there(self) -> RunConfig:
        for name in self.generators:
            self.starts(name)
        return self

    @model_validator(mode="after")
    def _pixels_agree(self) -> RunConfig:
        side, read = self.normalize.image_size, self.image_tokenizer.image_size
        if side is not None and side != read:
            raise ValueError(
                f"normalize.image_size {side} must equal the image tokenizer's {read} pixels: "
                "what it writes is compared with the documents pixel by pixel"
            )
        return self

    def starts(self, name: str) -> tuple[str, ...]:
        """The generators that one starts from, one through the other, nearest first.

        Raises:
            ValueError: when one of them is missing, or they go round in a circle.
        """
        chain = [name]
        while (start := self.generators[chain[-1]].start_from) is not None:
            where = f"generators.{chain[-1]}.start_from"
            if start not in self.generators:
                known = ", ".join(self.generators)
                raise ValueError(f"{where}: there is no generator {start}; there are {known}")
            if start in chain:
                raise ValueError(f"{where}: {' <- '.join((start, *chain[::-1]))} is a circle")
            chain.append(start)
        return tuple(chain[1:])

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of the evaluation sets, sorted; a source that is split names its own."""
        found = {source.set for source in self.sources}
        found |= {name for name, split in self.ingest.split.items() if split.evaluation}
        if self.corpus is not None:
            found |= {kind.evaluation_set for kind in SOURCES.values()}
        return tuple(sorted(name for name in found if name is not None))

    @property
    def training_memory(self) -> str:
        """Name of the memory that training asks."""
        return next(iter(self.memories))


def deep_merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `changes` put over it; tables are merged, lists are replaced."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = deep_merge(below, value)
        else:
            merged[key] = value
    return merged


def validated(values: Mapping[str, Any], *, name: str) -> RunConfig:
    """Checks a run's values as a whole.

    Raises:
        UsageError: one sentence that names the first key that is wrong, and the nearest known one.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = "".join(f"{part}." for part in first["loc"])[:-1]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        said = f"{path}: {_remedy(first)}" if path else _remedy(first)
        raise UsageError(f"{name}: {said}{more}") from error


def _remedy(error: Any) -> str:
    if error["type"] == "value_error":  # a sentence of ours
        return str(error["ctx"]["error"]).rstrip(".")
    if error["type"] == "missing":
        return "is missing; give it, or extend a recipe that has it"
    if error["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{error['msg'][0].lower()}{error['msg'][1:]}, not {error['input']!r}"[:300]
    key = str(error["loc"][-1])
    known = _known_keys(RunConfig, error["loc"][:-1])
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known))}"
    return f"there is no such key; {hint}"


def _known_keys(model: Any, path: tuple[Any, ...]) -> list[str]:
    """Keys that stand at a path of the config, through models, dataclasses, unions and tables."""
    found = [model]
    for part in path:
        nested = []
        for one in found:
            fields = getattr(one, "model_fields", None)
            if fields is not None and part in fields:
                nested.append(fields[part].annotation)
            elif part in getattr(one, "__dataclass_fields__", {}):
                nested.append(typing.get_type_hints(one)[part])
            else:
                nested.append(one)
        found = [leaf for one in nested for leaf in (typing.get_args(one) or (one,))]
        found = [leaf for one in found for leaf in (typing.get_args(one) or (one,))]
    keys: list[str] = []
    for one in found:
        keys += list(getattr(one, "model_fields", {})) + list(
            getattr(one, "__dataclass_fields__", {})
        )
    return keys
