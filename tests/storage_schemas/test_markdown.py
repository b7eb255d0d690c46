from __future__ import annotations

from pathlib import Path

import pytest

from storage_schemas.markdown import main, render
from storage_schemas.tables import KINDS, TABLES


def test_every_column_of_every_table_has_its_line() -> None:
    page = render()
    for table in TABLES.values():
        section = page.split(f"\n## {table.kind}\n")[1].split("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("| `")]
        assert [row.split("`")[1] for row in rows] == [column.name for column in table.columns]
        assert all(row.replace("\\|", "").count("|") == 7 for row in rows)
    for kind in KINDS:
        assert f"| `{kind}` |" in page


def test_a_written_page_is_fresh_and_an_edited_one_is_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "schemas.md"
    assert main([str(page), "--check"]) == 1
    assert main([str(page)]) == 0
    assert main([str(page), "--check"]) == 0
    page.write_text(page.read_text() + " ")
    assert main([str(page), "--check"]) == 1
    assert "make docs" in capsys.readouterr().err


def test_usage_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
