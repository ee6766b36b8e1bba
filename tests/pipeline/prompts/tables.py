"""Writes tables of prompts in every format, without the code under test."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq

SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv")

#: Texts that trip readers up: blanks, look-alikes of numbers and nulls, quotes, separators, newlines, scripts, emoji.
HARD_TEXTS = (
    "", " ", "42", "1.0", "007", "NA", "null", "None", "nan", "true", "2020-01-01", "2020-01-01T00:00:00Z",
    'say "hi"', '"', "a,b", "a\tb", "line\nline", "\n", "tail\n", "\\", "\\n", "it's", "# no comment", "{}", "[1]",
    "Grüße", "日本語のテキスト", "مرحبا بالعالم", "👩‍👩‍👧‍👦 family", "🇨🇭", "e\u0301",
    "\ufffd", "\x7f", "\u2028", "\ufeffmark",
)  # fmt: skip


def write_table(path, rows, row_group_size=3):
    """Writes rows, dictionaries with the same keys, in the format of the path's suffix."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path
