"""
Auditing someone else's model
=============================

Predictions and groups are all that it takes to say how large a gap is, and how sure
that is. Nothing is steered here.
"""

import matplotlib.pyplot as plt
import numpy as np

from fairsteer.datasets import make_biased_groups
from fairsteer.report import measured_gaps


def somebody_elses_model(X):
    """What it does inside does not matter."""
    return (X.sum(axis=1) > 1.2).astype(int)


# %%
# The same model judged on more and more rows, with exact intervals. Below 200 rows an
# interval from "none" to "large" is all that can be said; who reports the number alone
# reports noise.

X, y, group = make_biased_groups(
    12_800, 3, groups=["A", "B"], shift=0.8, random_state=0
)
predicted = somebody_elses_model(X)
sizes = 100 * 2 ** np.arange(8)
found = [
    measured_gaps(y[:n], predicted[:n], sensitive_features=group[:n]).equal_opportunity
    for n in sizes
]

figure, ax = plt.subplots(figsize=(6.4, 3.4))
values = np.array([one.value for one in found])
ax.fill_between(
    sizes,
    [one.lower for one in found],
    [one.upper for one in found],
    alpha=0.2,
    lw=0,
    label="95 % interval",
)
ax.plot(sizes, values, "o-", label="measured")
ax.axhline(values[-1], color="0.5", linestyle=":", lw=1)
ax.set(xscale="log", xlabel="rows", ylabel="equal-opportunity gap", ylim=(0, 0.6))
ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
ax.minorticks_off()
ax.legend()
plt.show()

# %%
# ``fairsteer.report.steering_report`` says the same of a fitted model before and after
# steering, and writes a page for readers who do not program: see :doc:`/report`.
