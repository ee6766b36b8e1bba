"""The run folder: where each thing of a run lies."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from schemas.plan import LawName, SideName, Unit


@final
@dataclass(frozen=True)
class RunFolder:
    """The places of a run.

    Args:
        root: The folder that ``--run`` names.
    """

    root: Path

    @property
    def lock(self) -> Path:
        """Locked by the driver while it works."""
        return self.root / ".lock"

    @property
    def spec(self) -> Path:
        """The spec, byte for byte as it was given."""
        return self.root / "spec.yaml"

    @property
    def plan(self) -> Path:
        """The plan: a run exists when this file does."""
        return self.root / "plan.json"

    @property
    def activations(self) -> Path:
        """The Zarr store of pooled activations."""
        return self.root / "activations.zarr"

    @property
    def sketches(self) -> Path:
        """The Zarr store of sketches and finished laws."""
        return self.root / "sketches.zarr"

    @property
    def running(self) -> Path:
        """What each reducer last said of its running laws, a file each."""
        return self.root / "running"

    @property
    def steer(self) -> Path:
        """The artifact."""
        return self.root / "steer"

    @property
    def timings(self) -> Path:
        """How long each stage took, and on how many workers."""
        return self.root / "timings.json"

    @property
    def report(self) -> Path:
        """The report for a person."""
        return self.root / "report.html"

    def prompts(self, side: SideName) -> Path:
        """The canonical copy of one side's prompts, a row group a unit."""
        return self.root / "prompts" / f"{side}.parquet"

    def frame(self, law: LawName) -> Path:
        """The frame in which the samples of a law are counted."""
        return self.root / "frames" / f"{law}.safetensors"

    def receipt(self, unit: Unit) -> Path:
        """The receipt of a unit."""
        return self.root / "receipts" / unit.side / f"{unit.index:08d}.json"

    def make(self) -> None:
        """Makes the folders that files are written into."""
        for part in ("prompts", "frames", "running", "receipts/source", "receipts/target"):
            (self.root / part).mkdir(parents=True, exist_ok=True)
