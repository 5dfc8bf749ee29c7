"""Numerical kernels, each behind one function that picks the fastest path for what it is given."""
