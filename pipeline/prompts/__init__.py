"""Prompts: from files in many formats to the rows that a side selects, and to the plan's canonical copy of them.

As the data meets the files here: `files` finds them, `formats` reads them (`delimited` and `json_lines` in `blocks`),
`where` and `draw` choose rows, `query` puts this together, `growth` keeps the places of an earlier run, `snapshot`
writes it down; `sampled` says whose activations are kept for audits.
"""

from pipeline.prompts.query import Prompts, select
from pipeline.prompts.sampled import sampled
from pipeline.prompts.snapshot import Snapshot, fingerprint, write_snapshot

__all__ = ["Prompts", "Snapshot", "fingerprint", "sampled", "select", "write_snapshot"]
