"""Puts measured tables into docs/performance.md."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def publish(script, head, lines):
    """Replaces what stands between the two marks of `script` by a table of `lines`, cells in a list each."""
    mark = f"<!-- rows by {script} -->"
    page = ROOT / "docs/performance.md"
    before, _, rest = page.read_text().partition(mark)
    _, found, after = rest.partition(mark)
    if not found:
        raise SystemExit(f"{page} lacks two lines '{mark}': there is no place for the table")
    table = [row(head), row(["---"] * len(head)), *map(row, lines)]
    page.write_text("\n".join([before + mark, "", *table, "", mark + after]))


def row(cells):
    return f"| {' | '.join(str(cell) for cell in cells)} |"
