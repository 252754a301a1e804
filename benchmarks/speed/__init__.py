"""``python -m benchmarks.speed``: time, memory and error beside every rival and beside the machine's own limits."""
