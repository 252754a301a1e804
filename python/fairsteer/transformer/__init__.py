"""The scikit-learn transformer: features of sensitive groups to the nearest ideal distribution."""

from fairsteer.transformer._steering import FairSteeringTransformer

__all__ = ["FairSteeringTransformer"]
