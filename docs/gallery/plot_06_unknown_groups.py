"""
When the group is not known
===========================

Steering needs the group of a row. Where it is missing, ``unknown_group="infer"`` moves
a row by the maps of all groups, weighted by how likely each group is for it. That works
as far as the features tell the group, and not further: measure it.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression

from fairsteer import FairSteeringTransformer
from fairsteer.datasets import make_biased_groups
from fairsteer.metrics import equal_opportunity_difference

shifts = [0.5, 1, 1.5, 2, 3, 4, 6]
gaps = {"nothing": [], "groups inferred": [], "groups known": []}
told = []
for shift in shifts:
    X, y, group = make_biased_groups(
        8000, 4, groups=["A", "B"], shift=shift, random_state=0
    )
    train, test = slice(4000), slice(4000, None)
    steer = FairSteeringTransformer(unknown_group="infer").fit(
        X[train], y[train], sensitive_features=group[train]
    )
    told.append(
        (
            steer.predict_group_proba(X[test]).argmax(axis=1) == (group[test] == "B")
        ).mean()
    )
    ways = {
        "nothing": (X[train], X[test]),
        "groups inferred": (steer.transform(X[train]), steer.transform(X[test])),
        "groups known": tuple(
            steer.transform(X[part], sensitive_features=group[part])
            for part in (train, test)
        ),
    }
    for name, (fitted, new) in ways.items():
        predicted = LogisticRegression().fit(fitted, y[train]).predict(new)
        gaps[name].append(
            equal_opportunity_difference(
                y[test], predicted, sensitive_features=group[test]
            )
        )

figure, ax = plt.subplots(figsize=(6.4, 4))
for (name, values), marker in zip(gaps.items(), "osD", strict=True):
    ax.plot(shifts, values, marker + "-", label=name)
for shift, share in zip(shifts, told, strict=True):
    ax.annotate(f"{share:.0%}", (shift, -0.045), ha="center", fontsize=8, color="0.35")
ax.set(
    xlabel="distance of the groups (below the points: rows whose group is told right)",
    ylabel="equal-opportunity gap",
)
ax.set(ylim=(-0.06, None), yticks=np.arange(0, 0.16, 0.05))
figure.legend(loc="outside lower center", ncols=3)
plt.show()

# %%
# Training rows and new rows must be treated alike: both are steered with inferred
# groups here, although the groups of the training rows are known.
