"""Steer features to the nearest distribution on which Bayes classifiers are exactly fair."""

from importlib.metadata import version

from fairsteer._show_versions import build_info, show_versions
from fairsteer.classifier import IdealDistributionClassifier
from fairsteer.ideal import Certificate, IdealDistribution, nearest_ideal
from fairsteer.moments import SubgroupMoments
from fairsteer.score_alignment import ScoreAligner
from fairsteer.transformer import FairSteeringTransformer

__version__ = version("fairsteer")

__all__ = [
    "Certificate",
    "FairSteeringTransformer",
    "IdealDistribution",
    "IdealDistributionClassifier",
    "ScoreAligner",
    "SubgroupMoments",
    "__version__",
    "build_info",
    "nearest_ideal",
    "show_versions",
]
