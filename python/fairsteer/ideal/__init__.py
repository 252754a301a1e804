"""The nearest ideal distribution of given moments, and the maps that lead to it."""

from fairsteer.ideal._ideal import (
    Certificate,
    IdealDistribution,
    Intervention,
    MapType,
    nearest_ideal,
    reference_code,
)

__all__ = ["Certificate", "IdealDistribution", "Intervention", "MapType", "nearest_ideal", "reference_code"]
