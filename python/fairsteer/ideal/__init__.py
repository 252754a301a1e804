"""The nearest ideal distribution of given moments, and the maps that lead to it."""

from fairsteer.ideal._certificate import CellGaussians, Certificate
from fairsteer.ideal._ideal import (
    IdealDistribution,
    Intervention,
    MapType,
    nearest_ideal,
    reference_code,
)

__all__ = [
    "CellGaussians",
    "Certificate",
    "IdealDistribution",
    "Intervention",
    "MapType",
    "nearest_ideal",
    "reference_code",
]
