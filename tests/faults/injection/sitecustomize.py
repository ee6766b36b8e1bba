"""Imported by Python at its start when this folder is on its path: arms the faults that the environment names."""

from armed import arm_from_environment  # type: ignore[import-not-found]  # it lies beside this file

arm_from_environment()
