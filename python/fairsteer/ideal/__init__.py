"""The nearest ideal distribution of given moments, and the maps that lead to it."""

from fairsteer.ideal._cells import IdealPosteriorCells
from fairsteer.ideal._certificate import Certificate, SubgroupGaussians
from fairsteer.ideal._ideal import (
    IdealDistribution,
    Intervention,
    MapType,
    nearest_ideal,
    reference_code,
)
from fairsteer.ideal._posterior import IdealPosterior, nearest_ideal_posterior
from fairsteer.ideal._posterior_parts import MOST_CLASSES, IdealOfRows, Mode, PosteriorCertificate

__all__ = [
    "MOST_CLASSES",
    "Certificate",
    "IdealDistribution",
    "IdealOfRows",
    "IdealPosterior",
    "IdealPosteriorCells",
    "Intervention",
    "MapType",
    "Mode",
    "PosteriorCertificate",
    "SubgroupGaussians",
    "nearest_ideal",
    "nearest_ideal_posterior",
    "reference_code",
]
