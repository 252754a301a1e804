"""Bias in, bias out: what a bias in one group's rows costs, and what each method recovers of it."""
