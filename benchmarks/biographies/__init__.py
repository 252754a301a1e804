"""``python -m benchmarks.biographies``: occupation from embeddings of biographies, and how well for each gender."""
