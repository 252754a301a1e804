"""Scores of any classifier, aligned between groups on rows that it was not trained on."""

from fairsteer.score_alignment._aligner import GapBand, ScoreAligner

__all__ = ["GapBand", "ScoreAligner"]
