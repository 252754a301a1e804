"""Scores of any classifier, aligned between groups on rows that it was not trained on."""

from fairsteer.score_alignment._aligner import ScoreAligner
from fairsteer.score_alignment._alignment import Alignment, GapBand

__all__ = ["Alignment", "GapBand", "ScoreAligner"]
