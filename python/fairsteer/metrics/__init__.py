"""Gaps between groups, for any number of classes and of groups.

Which one to use
----------------
* `demographic_parity_difference`: do the groups receive each prediction equally often?
* `equal_opportunity_difference`: are rows of the same true class recognised equally often?
* `equalized_odds_difference`: is every kind of error made equally often?
* `tpr_gap_rms`: equal opportunity of many classes, averaged over them instead of the worst.
* `group_metrics`: the table behind these numbers, one entry per group.
* `group_leakage`: how large a gap any model of a family could have on these features.

With two classes the three differences equal those of fairlearn, whose names they carry; fairlearn
has no version for more classes, which is why they are here. To score models by these or any of
fairlearn's, see :mod:`fairsteer.scoring`.

One rule for what cannot be compared
------------------------------------
A rate has a value in a group only if the group has rows (of positive weight) to compute it from. A
group without rows of a class is *left out* of that class's comparison instead of counting as a rate
of 0, and a comparison with fewer than two groups left is skipped. When every comparison is skipped
the result is NaN, never a silent 0. With a single group there is nothing to compare and the result
is 0.
"""

from fairsteer.metrics._gaps import (
    demographic_parity_difference,
    equal_opportunity_difference,
    equalized_odds_difference,
    gaps,
    group_metrics,
    tpr_gap_rms,
)
from fairsteer.metrics._leakage import GroupLeakage, group_leakage
from fairsteer.metrics._rates import Gap

__all__ = [
    "Gap",
    "GroupLeakage",
    "demographic_parity_difference",
    "equal_opportunity_difference",
    "equalized_odds_difference",
    "gaps",
    "group_leakage",
    "group_metrics",
    "tpr_gap_rms",
]
