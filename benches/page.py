"""Puts measured tables into docs/performance.md."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def publish(script, head, lines, keep=0):
    """Replaces what stands between the two marks of `script` by a table of `lines`, cells in a list each. With `keep`, rows
    that are there already stay in their places, and lines with the same first `keep` cells take them."""
    mark = f"<!-- rows by {script} -->"
    page = ROOT / "docs/performance.md"
    before, _, rest = page.read_text().partition(mark)
    table, found, after = rest.partition(mark)
    if not found:
        raise SystemExit(f"{page} lacks two lines '{mark}': there is no place for the table")
    if keep:
        there = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.strip().splitlines()[2:]]
        merged = {tuple(line[:keep]): line for line in there} | {tuple(line[:keep]): line for line in lines}
        lines = list(merged.values())
    table = [row(head), row(["---"] * len(head)), *map(row, lines)]
    page.write_text("\n".join([before + mark, "", *table, "", mark + after]))


def row(cells):
    return f"| {' | '.join(str(cell) for cell in cells)} |"
