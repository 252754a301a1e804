"""
Tables and trees
================

Columns of a table hold counts, codes and flags. A map that shifts or scales them by
group sends them to values that one group alone has, and a tree reads the group from the
digits. Monotone maps stay on values that occur, and are what the default takes for a
table.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.ensemble import RandomForestClassifier

from fairsteer import FairSteeringTransformer
from fairsteer.datasets import make_biased_groups
from fairsteer.metrics import equal_opportunity_difference, group_leakage

rows, y, group = make_biased_groups(
    6000, 3, groups=["A", "B"], shift=2, spread=1.4, random_state=0
)
# points, of which there are least and most
X = np.clip(np.round(4 * rows + 30), 20, 44)
train, test = slice(3000), slice(3000, None)

# %%
# Each dot is a value of the first feature that occurs. *Trees read*: how much of the
# group a forest can tell from the rows of one class, from 0 (nothing) to 1 (all).

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), sharey=True)
for ax, map_type in zip(axes, (None, "affine", "auto"), strict=True):
    U = X
    if map_type is not None:
        steer = FairSteeringTransformer(map_type=map_type).fit(
            X[train], y[train], sensitive_features=group[train]
        )
        U = steer.transform(X, sensitive_features=group)
    trees = RandomForestClassifier(40, min_samples_leaf=10, random_state=0).fit(
        U[train], y[train]
    )
    predicted = trees.predict(U[test])
    gap = equal_opportunity_difference(
        y[test], predicted, sensitive_features=group[test]
    )
    model = RandomForestClassifier(40, min_samples_leaf=10, random_state=0)
    leak = group_leakage(
        U[test], y[test], sensitive_features=group[test], estimator=model, cv=2
    ).largest.value
    for height, (name, colour) in enumerate((("A", "C0"), ("B", "C1"))):
        values = np.unique(U[group == name, 0])
        shown = values[(values > 28) & (values < 36)]
        ax.plot(shown, np.full(len(shown), height), "o", color=colour, ms=5)
    title = "before" if map_type is None else f"{map_type} map"
    if map_type == "auto":
        title = f"auto, which is {steer.map_type_}"
    accuracy = np.mean(predicted == y[test])
    ax.set_title(
        f"{title}\naccuracy {accuracy:.3f}, gap {gap:.3f}\ntrees read {leak:.2f}"
    )
    ax.set(
        yticks=[0, 1],
        yticklabels=["A", "B"],
        ylim=(-0.6, 1.6),
        xlabel="first feature",
        xlim=(28, 36),
    )
plt.show()
