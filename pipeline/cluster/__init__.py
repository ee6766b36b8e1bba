"""Workers on Ray. The one package that imports Ray."""

from pipeline.cluster.workers import RayWorkers

__all__ = ["RayWorkers"]
