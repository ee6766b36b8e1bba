"""Rehearsal: units of the source through the model one by one, unmoved, to find the prompts that end workers.

Of many units that go through the model together it cannot be told which one ended their worker. Alone each is run,
suspected and bisected as those of any side are, see `pipeline.scheduling`.
"""

from typing import final

from pipeline.extract import Extractor
from schemas.plan import Plan, Unit
from schemas.receipt import Receipt
from schemas.treatment import Probe, Treatment


@final
class Rehearser:
    """A worker that runs units as an extractor does, and keeps nothing of them.

    Args:
        plan: The plan.
        uri: Where the run lies.
    """

    def __init__(self, plan: Plan, uri: str) -> None:
        self._extractor = Extractor(plan, uri)

    def ready(self) -> int:
        """Loads the model, and returns the process id of the worker."""
        return self._extractor.ready()

    def extract(self, unit: Unit, treatment: Treatment) -> Receipt:
        """Runs one unit. That it comes back is the answer; its receipt is committed nowhere."""
        return self._extractor.rehearse(unit, treatment)

    def probe(self, probe: Probe) -> None:
        """Runs one micro-batch with some prompts alone."""
        self._extractor.probe(probe)
