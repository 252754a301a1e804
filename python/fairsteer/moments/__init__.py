"""Weight, mean and covariance of every subgroup (class x group): one pass, mergeable."""

from fairsteer.moments._density import log_densities
from fairsteer.moments._moments import SubgroupMoments

__all__ = ["SubgroupMoments", "log_densities"]
