"""What commands print: tables and trees for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from pipelines.lineage import Node

__all__ = ["console", "print_json", "print_table", "print_trees"]

_UNCUT = 10_000
"""Columns, where lines go to a file or a program."""


def console() -> Console:
    """Standard output, as wide as the terminal; 120 columns where there is none."""
    wide = None if sys.stdout.isatty() else 120
    return Console(width=wide, highlight=False, soft_wrap=False)


def print_json(value: Any) -> None:
    """One JSON document."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; cells are printed as they are, never as markup."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(value)) for value in row))
    console().print(table)


def print_trees(nodes: Sequence[Node]) -> None:
    """Lineage as trees; facts stand below their node, one a line."""
    out = console() if sys.stdout.isatty() else Console(width=_UNCUT, highlight=False)
    for node in nodes:
        tree = Tree(_line(node))
        _grow(tree, node)
        out.print(tree, soft_wrap=True)


def _grow(tree: Tree, node: Node) -> None:
    for name, value in _shown(node.facts).items():
        tree.add(f"[dim]{escape(name)}: {escape(_cell(value))}[/dim]")
    for child in node.leads_to:
        _grow(tree.add(_line(child)), child)


def _line(node: Node) -> str:
    return f"[bold]{escape(node.what)}[/bold] {escape(node.id)}"


def _shown(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


def _cell(value: object) -> str:
    """Text that cannot move the cursor or change colours: captions are written by strangers."""
    if isinstance(value, float):
        text = f"{value:.4g}"
    else:
        text = str(value) if isinstance(value, str) else json.dumps(value, default=str)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
