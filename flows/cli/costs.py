"""What `racm3 plan` prints: the steps, the hours they would take, what generators need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.cli.output import console, print_table
from pipelines.cost import Estimate, GeneratorCost
from pipelines.plan import PlannedStep

__all__ = ["plan_as_dict", "print_plan"]

_HOUR, _GIB = 3600.0, 2.0**30


def plan_as_dict(
    planned: Sequence[PlannedStep],
    expected: Mapping[str, Estimate],
    costs: Mapping[str, GeneratorCost],
) -> dict[str, Any]:
    """As plain JSON: steps, generators, the sum of what is known and the steps that are not."""
    seconds, unknown = _sum(expected)
    return {
        "steps": [
            {"step": p.label, "flow": p.flow, "state": p.state, "artifact": p.artifact_id}
            | {"seconds": p.seconds, "expected_seconds": None, "basis": None}
            | _told(expected.get(p.label))
            for p in planned
        ],
        "generators": {name: cost.to_dict() for name, cost in costs.items()},
        "expected_seconds": seconds,
        "unknown": unknown,
    }


def print_plan(
    planned: Sequence[PlannedStep],
    expected: Mapping[str, Estimate],
    costs: Mapping[str, GeneratorCost],
) -> None:
    """Prints the steps, then what the generators need, then the sum of the hours."""
    print_table(
        "",
        ("step", "flow", "state", "artifact", "seconds", "expected hours"),
        [
            (
                *(p.label, p.flow, p.state, (p.artifact_id or "-")[:12], p.seconds or "-"),
                _hours(expected.get(p.label)),
            )
            for p in planned
        ],
    )
    print_table(
        "Training, by formula: captions at their longest, GiB a worker",
        (
            *("generator", "parameters", "tokens", "FLOPs", "workers", "weights", "gradients"),
            *("Adam", "logits", "blocks", "checkpointed", "all"),
        ),
        [_generator(name, cost) for name, cost in costs.items()],
    )
    there = sum(p.state == "reused" for p in planned)
    out = console()
    out.print(f"{there} of {len(planned)} steps are there; the rest would be computed")
    for label, one in expected.items():
        if label.startswith("train_generator") and one.seconds is not None:
            out.print(f"{label}: {one.seconds / _HOUR:.3g} h ({one.basis})", markup=False)
    seconds, unknown = _sum(expected)
    if expected:
        known = "unknown" if seconds is None else f"{seconds / _HOUR:.3g} h, one after the other"
        without = f", without the {len(unknown)} steps that say unknown" if seconds else ""
        out.print(f"expected: {known}{without if unknown else ''}")


def _told(one: Estimate | None) -> dict[str, Any]:
    return {} if one is None else {"expected_seconds": one.seconds, "basis": one.basis}


def _hours(one: Estimate | None) -> object:
    if one is None:
        return "-"
    return "unknown" if one.seconds is None else one.seconds / _HOUR


def _generator(name: str, cost: GeneratorCost) -> tuple[object, ...]:
    memory = cost.memory
    parts = (memory.weights, memory.gradients, memory.optimizer, memory.logits)
    blocks = (memory.activations, memory.checkpointed)
    return (
        *(name, f"{cost.parameters:,}", f"{cost.tokens:.3g}", f"{cost.flops:.3g}", cost.workers),
        *(f"{part / _GIB:.3g}" for part in (*parts, *blocks, cost.worker_bytes)),
    )


def _sum(expected: Mapping[str, Estimate]) -> tuple[float | None, list[str]]:
    """Seconds of the steps that are known, None where none is; labels of the others."""
    known = [one.seconds for one in expected.values() if one.seconds is not None]
    unknown = [label for label, one in expected.items() if one.seconds is None]
    return (sum(known) if known else None), unknown
