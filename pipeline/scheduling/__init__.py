"""Who runs which unit when, and what happens when a worker is lost. Pure: no Ray, no clock, no file of its own."""

from pipeline.scheduling.crew import AbstractCrew, Event, Extract, Failed, Finished, Lost, Ready, Settle, Task
from pipeline.scheduling.pace import Policy
from pipeline.scheduling.records import AbstractRecords
from pipeline.scheduling.scheduler import Scheduler

__all__ = [
    "AbstractCrew",
    "AbstractRecords",
    "Event",
    "Extract",
    "Failed",
    "Finished",
    "Lost",
    "Policy",
    "Ready",
    "Scheduler",
    "Settle",
    "Task",
]
