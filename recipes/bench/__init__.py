"""Experiments at a size for a CPU (benchmarks/pretraining.py runs them)."""
