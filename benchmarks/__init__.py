"""Benchmarks of fairsteer, and the pure-NumPy reference that they and the tests compare it with.

``python -m benchmarks.speed`` measures time, memory and error; ``benchmarks.reference`` is the reference.
"""
