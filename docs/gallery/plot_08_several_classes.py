"""
Several classes
===============

With more than two classes every class has a rate of its own in every group, and a gap.
:class:`~fairsteer.plotting.TPRDisplay` draws all of them with their intervals, the
largest gap on top.
"""

import matplotlib.pyplot as plt
from sklearn.linear_model import LogisticRegression

from fairsteer import FairSteeringTransformer
from fairsteer.datasets import make_biased_groups
from fairsteer.metrics import tpr_gap_rms
from fairsteer.plotting import TPRDisplay

X, y, group = make_biased_groups(
    8000,
    5,
    classes=["cook", "editor", "lawyer", "nurse", "pilot"],
    groups=["f", "m", "x"],
    class_sep=2.5,
    shift=2,
    rotation=35,
    random_state=0,
)
train, test = slice(4000), slice(4000, None)
steer = FairSteeringTransformer().fit(
    X[train], y[train], sensitive_features=group[train]
)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True)
for ax, title, rows in (
    (axes[0], "before", X),
    (axes[1], "after", steer.transform(X, sensitive_features=group)),
):
    predicted = LogisticRegression().fit(rows[train], y[train]).predict(rows[test])
    TPRDisplay.from_predictions(
        y[test], predicted, sensitive_features=group[test], ax=ax
    )
    gap = tpr_gap_rms(y[test], predicted, sensitive_features=group[test])
    ax.set_title(f"{title}: root mean square gap {gap:.3f}", pad=26)
plt.show()
