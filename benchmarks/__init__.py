"""Benchmarks: one file per claim. ``python -m benchmarks`` measures them all and prints one table."""
