"""The run folder: under which key each thing of a run lies in its storage."""

from dataclasses import dataclass
from typing import final

from pipeline.storage import AbstractStorage
from schemas.plan import LawName, SideName, Unit

#: The plan: a run exists when this file does.
PLAN = "plan.json"

#: The spec, byte for byte as it was given, and its checksum as ``sha256sum`` writes it.
SPEC, SPEC_CHECKSUM = "spec.yaml", "spec.yaml.sha256"

#: The Zarr arrays of pooled activations, and of sketches.
ACTIVATIONS, SKETCHES = "activations.zarr", "sketches.zarr"

#: The artifacts, each named by its content, and the file that says which one counts.
STEERS, CURRENT = "steers", "CURRENT"

#: What a person opens: a link to the artifact that counts. A folder on a disk has it.
STEER = "steer"

#: What a finished run was made of, as the file system told it.
INPUTS = "inputs.json"

#: How long each stage took, and on how many workers.
TIMINGS = "timings.json"

#: The report for a person, and its checksum.
REPORT, REPORT_CHECKSUM = "report.html", "report.html.sha256"

#: The maps of a sequential fit, a file a site, from when they are fitted.
SEQUENTIAL = "sequential"

#: The steer that a sequential fit starts from: a copy.
FORMER = "former"

#: Folders of files that come and go.
LEASE, CRUMBS, RUNNING = "lease", "crumbs", "running"


@final
@dataclass(frozen=True)
class RunFolder:
    """The places of a run.

    Args:
        storage: Where the run lies.
    """

    storage: AbstractStorage

    @property
    def uri(self) -> str:
        """What a person calls the run."""
        return self.storage.uri

    def prompts(self, side: SideName) -> str:
        """The canonical copy of one side's prompts, a row group a unit."""
        return f"prompts/{side}.parquet"

    def frame(self, law: LawName) -> str:
        """The frame in which the samples of a law are counted."""
        return f"frames/{law}.json"

    def receipts(self, side: SideName) -> str:
        """The folder of a side's receipts."""
        return f"receipts/{side}"

    def receipt(self, unit: Unit) -> str:
        """The receipt of a unit."""
        return f"{self.receipts(unit.side)}/{unit.index:08d}.json"

    def crumb(self, unit: Unit) -> str:
        """What a worker is about to do with a unit."""
        return f"{CRUMBS}/{unit.side}/{unit.index:08d}.json"

    def folds(self, law: LawName) -> str:
        """The folder of the merged sketches of a law."""
        return f"folds/{law}"

    def running(self, reducer: int) -> str:
        """What a reducer last said of its running laws."""
        return f"{RUNNING}/{reducer:05d}.json"

    def steer(self, name: str) -> str:
        """The folder of an artifact."""
        return f"{STEERS}/{name}"
