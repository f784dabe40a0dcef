import re

import pytest


def test_the_pages_tables_are_those_of_the_json(run):
    run("pages", "--check")


def test_a_table_that_was_changed_by_hand_is_found_and_mended(run, script, tmp_path, monkeypatch):
    pages = script("pages")
    before = (pages.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    page = tmp_path / "results.md"
    page.write_text(re.sub(r"(<!-- table \S+.*? -->\n)", r"\1| one | by hand |\n", before), encoding="utf-8")
    monkeypatch.setattr(pages, "PAGES", (page,))
    with pytest.raises(SystemExit, match=r"results\.md: run python benchmarks/pages\.py"):
        run("pages", "--check")
    run("pages")
    assert page.read_text(encoding="utf-8") == before
