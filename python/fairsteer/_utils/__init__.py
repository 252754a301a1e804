"""What several rooms share; knows nothing of fairness."""
