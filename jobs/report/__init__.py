"""The report of a run: one HTML page that a person opens from a file, with nothing to fetch."""

from jobs.report.facts import Generation
from jobs.report.write import write_report

__all__ = ["Generation", "write_report"]
