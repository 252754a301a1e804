"""``python -m benchmarks.quality``: accuracy and gaps between groups on real tables, steering beside other methods."""
