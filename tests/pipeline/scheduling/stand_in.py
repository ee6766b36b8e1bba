"""A worker without a model, for a real Ray: it does to itself what it is told."""

import dataclasses
import os
import signal
import time
from typing import Any

from pipeline.errors import StoreError
from schemas.plan import LawName, Unit
from schemas.receipt import Receipt
from schemas.treatment import Probe, Treatment
from tests.pipeline.scheduling.simulation import receipt_of


class StandIn:
    """Says what it ran in the receipt's `model`.

    Args:
        deeds: What an attempt, by unit and number, does to its worker.
        name: What it says.
    """

    def __init__(self, deeds: dict[tuple[int, int], str], name: str) -> None:
        self._deeds, self._name = deeds, name

    def ready(self) -> int:
        """Its process id."""
        self._do(self._deeds.get((-1, 1)))
        return os.getpid()

    def turn(self, deeds: dict[tuple[int, int], str], name: str) -> None:
        """Other deeds."""
        self._deeds, self._name = deeds, name

    def settle_frame(self, law: LawName, treatment: Treatment) -> None:
        """Nothing."""

    def probe(self, probe: Probe) -> None:
        """Nothing."""

    def extract(self, unit: Unit, treatment: Treatment) -> Receipt:
        """A receipt without files."""
        self._do(self._deeds.get((unit.index, treatment.attempt)))
        receipt = receipt_of(unit, treatment.attempt, seconds=0.1)
        return dataclasses.replace(receipt, worker=os.getpid(), model=self._name, splits=())

    def _do(self, deed: str | None) -> Any:
        match deed:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "raise":
                raise StoreError("a", "b")
            case "sleep":
                time.sleep(0.5)
            case "leave":
                os._exit(7)
