"""Benchmarks of fairsteer, and the pure-NumPy reference that they and the tests compare it with.

``python -m benchmarks`` prints one table; ``benchmarks.reference`` is the reference.
"""
