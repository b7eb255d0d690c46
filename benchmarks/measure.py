"""What the benchmarks share: rounds that take turns, a table for people, a line of JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Rate", "clock_of", "machine", "ratio", "say", "show", "take_turns"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """Tokens a second of one contender, a round each."""

    name: str
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Over the rounds."""
        return statistics.median(self.rounds)


def take_turns(contenders: Mapping[str, Callable[[int], int]], *, rounds: int) -> list[Rate]:
    """Runs every contender once a round, each round in another order, after one round of warming.

    Other work on the machine then slows all of them, not one.

    Args:
        contenders: Each does the work of a round and returns how many tokens it was; round 0, which
            warms, is not measured.
        rounds: That are measured.
    """
    names, clock = list(contenders), clock_of(torch.get_num_threads())
    rates: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        start = turn % len(names)
        for name in [*names[start:], *names[:start]]:
            began = clock()
            tokens = contenders[name](turn)
            rate = tokens / (clock() - began)
            if turn:
                rates[name].append(rate)
            say(f"round {turn} of {rounds}{'' if turn else ' (warming)'}: {name} {rate:,.0f}/s")
    return [Rate(name=name, rounds=tuple(found)) for name, found in rates.items()]


def clock_of(threads: int) -> Callable[[], float]:
    """Processor time of this process with one thread, which others cannot take; else the wall's."""
    return time.process_time if threads == 1 else time.perf_counter


def ratio(ours: Rate, theirs: Rate) -> tuple[float, float, float]:
    """Median, least and greatest over the rounds of our rate by theirs in the same round."""
    by_round = [a / b for a, b in zip(ours.rounds, theirs.rounds, strict=True)]
    return statistics.median(by_round), min(by_round), max(by_round)


def machine(threads: int) -> dict[str, Any]:
    """Where it was measured."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "seconds": "of the processor" if threads == 1 else "of the wall",
        "load": round(os.getloadavg()[0], 1),
    }


def show(title: str, rates: Sequence[Rate], base: Rate, facts: Mapping[str, Any]) -> None:
    """Prints one table, and the same as a line of JSON."""
    print(f"\n{title}")
    for name, value in facts.items():
        print(f"  {name}: {value}")
    width = max(len(rate.name) for rate in rates)
    print(f"  {'':{width}}  {'tokens/s':>10}  {'ratio':>6}  least to greatest of the rounds")
    rows = []
    for rate in rates:
        middle, low, high = ratio(rate, base)
        print(
            f"  {rate.name:{width}}  {rate.median:10,.0f}  {middle:6.2f}  {low:.2f} to {high:.2f}"
        )
        rows.append(
            {"name": rate.name, "tokens_per_second": rate.median, "ratio": middle,
             "ratio_low": low, "ratio_high": high}
        )  # fmt: skip
    print(json.dumps({"title": title, "base": base.name, "rows": rows, **facts}, default=str))


def say(note: str) -> None:
    """Progress, apart from the result."""
    print(f"{time.strftime('%H:%M:%S')} {note}", file=sys.stderr, flush=True)
