"""Steer features to the nearest distribution on which Bayes classifiers are exactly fair."""

from importlib.metadata import version

from fairsteer._utils.versions import build_info, show_versions
from fairsteer.baselines import CovarianceMatchingTransformer, LeaceTransformer, MeanMatchingTransformer
from fairsteer.classifier import IdealDistributionClassifier
from fairsteer.ideal import Certificate, IdealDistribution, nearest_ideal
from fairsteer.moments import SubgroupMoments
from fairsteer.score_alignment import ScoreAligner
from fairsteer.scoring import best_within_budget, budget_scorer, fairness_scorer, performance_scorer
from fairsteer.transformer import FairSteeringTransformer

__version__ = version("fairsteer")

__all__ = [
    "Certificate",
    "CovarianceMatchingTransformer",
    "FairSteeringTransformer",
    "IdealDistribution",
    "IdealDistributionClassifier",
    "LeaceTransformer",
    "MeanMatchingTransformer",
    "ScoreAligner",
    "SubgroupMoments",
    "__version__",
    "best_within_budget",
    "budget_scorer",
    "build_info",
    "fairness_scorer",
    "nearest_ideal",
    "performance_scorer",
    "show_versions",
]
