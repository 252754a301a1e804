"""
One feature, before and after
=============================

Two groups of applicants are equally qualified, and the same share of each is suitable.
One test has been calibrated on the first group alone: in the second it reads lower, and
its scores are closer together. A threshold that is right for the first group then
overlooks the suitable ones of the second.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import gaussian_kde

from fairsteer import FairSteeringTransformer
from fairsteer.datasets import make_biased_groups

X, suitable, group = make_biased_groups(
    4000, 1, groups=["A", "B"], class_sep=2.5, shift=-1.5, spread=0.7, random_state=0
)

# %%
# Steering finds the nearest distribution on which both groups look alike *within each
# class*, and one map a group that leads there. It needs the group of a row, and not its
# class.

steer = FairSteeringTransformer().fit(X, suitable, sensitive_features=group)
U = steer.transform(X, sensitive_features=group)

# %%
# Left: as measured. Right: steered. The dotted line is the threshold that makes the
# fewest errors over all rows; the numbers say how many of the suitable ones of each
# group are above it.


def best_threshold(x):
    candidates = np.quantile(x, np.linspace(0.05, 0.95, 181))
    return candidates[np.argmax([((x > one) == suitable).mean() for one in candidates])]


figure, axes = plt.subplots(1, 2, sharey=True, figsize=(7.5, 3.2))
for ax, rows, title in zip(axes, (X[:, 0], U[:, 0]), ("before", "after"), strict=True):
    grid = np.linspace(rows.min(), rows.max(), 200)
    threshold = best_threshold(rows)
    for name, colour in (("A", "C0"), ("B", "C1")):
        for label, style in ((0, "--"), (1, "-")):
            own = rows[(group == name) & (suitable == label)]
            words = f"{name}, {'suitable' if label else 'not suitable'}"
            ax.plot(grid, gaussian_kde(own)(grid), style, color=colour, label=words)
    found = [
        (rows[(group == name) & (suitable == 1)] > threshold).mean()
        for name in ("A", "B")
    ]
    ax.axvline(threshold, color="0.4", linestyle=":")
    ax.set_title(f"{title}: recognised {found[0]:.0%} of A, {found[1]:.0%} of B")
    ax.set(xlabel="test score", yticks=[])
axes[0].spines["left"].set_visible(False)
axes[1].spines["left"].set_visible(False)
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %%
# The map of each group is a slope and a shift:

for name, (slope, shift) in (
    steer.set_params(map_type="affine")
    .fit(X, suitable, sensitive_features=group)
    .maps_.items()
):
    print(f"{name}: {slope.item():.2f} x {shift.item():+.2f}")
