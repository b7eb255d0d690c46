"""What retrieval cost in a run, in FLOPs: fitting the encoder, embedding, and searching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.results.rows import Row
from storage_schemas.manifest import Manifest

__all__ = ["RETRIEVER", "retriever_rows"]

RETRIEVER = "retriever"
"""Stands where a generator's name stands."""


def retriever_rows(made: Mapping[str, Manifest]) -> list[Row]:
    """Rows like those of the table `scores`; what is not known has none.

    Args:
        made: artifacts of one split by stage: `train_encoder`, `embed_documents`, `build_memory`
            (the memory that training asks) and `retrieve_contexts` (for training).
    """
    found = []
    encoder, embedded = made.get("train_encoder"), made.get("embed_documents")
    if encoder is not None:
        fitted = float(encoder.facts["training_flops"])
        steps = int(encoder.facts["steps"])
        said = "fitting the encoder, by formula"
        found.append(_row("encoder_flops", fitted, steps, said))
        if embedded is not None:
            pair = fitted / (3.0 * steps * encoder.config["training"]["batch_size"])
            draws = 1 + int(embedded.config["draws"])
            said = "forward passes of both towers, each document whole and in each draw"
            flops = pair * embedded.rows_out * draws
            found.append(_row("embedding_flops", flops, embedded.rows_out, said))
    memory, contexts = made.get("build_memory"), made.get("retrieve_contexts")
    if memory is not None and contexts is not None:
        width = int(memory.facts["dim"])
        flops = 2.0 * width * memory.rows_out * contexts.rows_out
        said = "inner products of every query of training with every vector of the memory"
        found.append(_row("search_flops", flops, contexts.rows_out, said))
    return found


def _row(metric: str, value: float, n: int, protocol: str) -> Row:
    empty: dict[str, Any] = {"task": "", "set": "", "group": "", "k": 0, "memory": ""}
    ends = {"low": None, "high": None, "reference": None}
    return (
        empty
        | ends
        | {
            "metric": metric,
            "model": RETRIEVER,
            "value": value,
            "n": n,
            "unit": "FLOP",
            "better": "lower",
            "protocol": protocol,
        }
    )
