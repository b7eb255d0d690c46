"""The generated page is complete, and a stale one is a failure."""

from __future__ import annotations

from storage_schemas.docs import main, render
from storage_schemas.tables import KINDS, TABLES


def test_every_table_and_column_is_in_the_page():
    page = render()
    for table in TABLES.values():
        section = page.split(f"\n## {table.kind}\n")[1].split("\n## ")[0]
        for column in table.columns:
            assert f"| `{column.name}` |" in section
            assert column.meaning in section
    for kind in KINDS:
        assert f"| `{kind}` |" in page


def test_check_tells_a_stale_page_from_a_fresh_one(tmp_path, capsys):
    path = tmp_path / "docs" / "schemas.md"
    assert main(["--check", "--path", str(path)]) == 1
    assert main(["--write", "--path", str(path)]) == 0
    assert main(["--check", "--path", str(path)]) == 0
    path.write_text(path.read_text() + " ")
    assert main(["--check", "--path", str(path)]) == 1
    assert "stale" in capsys.readouterr().err
