"""Prompts: from files in many formats to the rows that a side selects, and to the plan's canonical copy of them.

The order of the files here is the order of the data: `files` finds them, `formats` reads them, `where` and `draw`
select rows, `query` puts this together, `snapshot` writes it down.
"""

from pipeline.prompts.query import Prompts, SideFacts, fingerprint, select
from pipeline.prompts.snapshot import Snapshot, write_snapshot

__all__ = ["Prompts", "SideFacts", "Snapshot", "fingerprint", "select", "write_snapshot"]
