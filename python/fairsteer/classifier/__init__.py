"""The scikit-learn classifiers: of the ideal distribution, and with a steering chosen by cross-validation."""

from fairsteer.classifier._classifier import IdealDistributionClassifier
from fairsteer.classifier._search import IdealDistributionClassifierCV

__all__ = ["IdealDistributionClassifier", "IdealDistributionClassifierCV"]
