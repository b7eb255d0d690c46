"""Learns the text tokenizer from captions."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from pipelines.errors import UsageError
from pipelines.models import TOKENIZER
from pipelines.records import documents_of
from pipelines.runtime.reader import Reader
from pipelines.runtime.stage import FitOutput, FitStage, Inputs, StageConfig, Workspace

__all__ = ["Config", "TrainTextTokenizer"]


class Config(StageConfig):
    """How many tokens are learnt."""

    vocab_size: int = Field(
        2048,
        ge=256,
        description="most tokens, one for each byte among them; few captions give fewer",
    )


class TrainTextTokenizer(FitStage[Config]):
    """`text_tokenizer`: byte-level BPE over the captions of the selected documents."""

    name = "train_text_tokenizer"
    version = 1
    kind = "text_tokenizer"
    config_type = Config

    def fit(
        self, config: Config, inputs: Inputs, reader: Reader, workspace: Workspace
    ) -> FitOutput:
        """Learns merges; the order of the documents does not matter.

        Raises:
            UsageError: when no document is selected.
        """
        from racm3.text_tokenizer import TextTokenizer

        captions = documents_of(reader, inputs["documents"].tables("documents"))
        captions = captions.column("caption").to_pylist()
        if not captions:
            raise UsageError("train_text_tokenizer: no document is selected; check fit_sources")
        tokenizer = TextTokenizer.train(captions, vocab_size=config.vocab_size)
        file = workspace.staging / TOKENIZER
        file.write_text(tokenizer.to_json(), encoding="utf-8")
        lengths = sorted(len(tokenizer.encode(caption)) for caption in captions)
        facts: dict[str, Any] = {
            "vocab_size": tokenizer.vocab_size,
            "tokens_median": lengths[len(lengths) // 2],
            "tokens_most": lengths[-1],
        }
        return FitOutput(
            files={TOKENIZER: file}, rows_in=len(captions), rows_out=len(captions), facts=facts
        )
