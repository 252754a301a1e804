"""The nearest ideal distribution of given moments, and the maps that lead to it."""

from fairsteer.ideal._certificate import CellGaussians, Certificate
from fairsteer.ideal._ideal import (
    IdealDistribution,
    Intervention,
    MapType,
    nearest_ideal,
    reference_code,
)
from fairsteer.ideal._posterior import IdealPosterior, Mode, PosteriorCertificate, nearest_ideal_posterior

__all__ = [
    "CellGaussians",
    "Certificate",
    "IdealDistribution",
    "IdealPosterior",
    "Intervention",
    "MapType",
    "Mode",
    "PosteriorCertificate",
    "nearest_ideal",
    "nearest_ideal_posterior",
    "reference_code",
]
