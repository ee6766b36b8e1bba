"""Prompts: from files in many formats to the rows that a side selects, and to the plan's canonical copy of them.

As the data meets the files here: `files` finds them, `formats` reads them (`delimited` and `json_lines` in `blocks`),
`where` and `draw` choose rows, `query` puts this together, `snapshot` writes it down.
"""

from pipeline.prompts.query import Prompts, fingerprint, select
from pipeline.prompts.snapshot import Snapshot, write_snapshot

__all__ = ["Prompts", "Snapshot", "fingerprint", "select", "write_snapshot"]
