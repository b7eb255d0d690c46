"""`RunConfig`: every stage's config in one frozen record; it *is* the parameter of the flows."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from pipelines.errors import UsageError
from pipelines.runtime.stage import StageConfig
from pipelines.sources.emoji_splits import EmojiSplitConfig
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
    paths: tuple[str, ...] = Field(description="files or globs, read in this order")
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


class RunConfig(StageConfig):
    """A complete run."""

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
    generate: GenerateConfig = GenerateConfig(model="", memory=None)
    score: ScoreGenerationsConfig = ScoreGenerationsConfig()
    report: WriteReportConfig = WriteReportConfig()
    assemble: AssembleExamplesConfig = AssembleExamplesConfig()

    @model_validator(mode="after")
    def _reads_something(self) -> RunConfig:
        if self.corpus is None and not self.sources:
            raise ValueError("a run needs `sources` (Parquet files), or a `corpus`")
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
        path = ".".join(str(part) for part in first["loc"])
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UsageError(f"{name}: {path}: {_remedy(first)}{more}") from error


def _remedy(error: Any) -> str:
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
