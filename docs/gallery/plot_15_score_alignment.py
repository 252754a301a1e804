"""
Aligning scores
===============

Where one number per row decides, it is enough to map that number:
:class:`~fairsteer.ScoreAligner` maps the scores of any classifier, by group, so that
rates are equal at every threshold, on rows that it was not trained on.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.ensemble import RandomForestClassifier

from fairsteer import ScoreAligner
from fairsteer.datasets import make_biased_groups

X, y, group = make_biased_groups(
    6000, 4, groups=["A", "B"], shift=2, spread=1.3, random_state=0
)
train, test = slice(3000), slice(3000, None)
forest = RandomForestClassifier(50, min_samples_leaf=10, random_state=0)
aligner = ScoreAligner(forest, cv=3).fit(
    X[train], y[train], sensitive_features=group[train]
)

# %%
# How many of those who have the class are recognised, at every threshold.

scores = {
    "before": aligner.estimator_.predict_proba(X[test])[:, 1],
    "aligned": aligner.predict_proba(X[test], sensitive_features=group[test])[:, 1],
}
thresholds = np.linspace(0, 1, 201)
figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.4), sharey=True)
for ax, (title, score) in zip(axes, scores.items(), strict=True):
    for name, style in (("A", "-"), ("B", "--")):
        own = score[(group[test] == name) & (y[test] == 1)]
        ax.plot(thresholds, (own[:, None] > thresholds).mean(axis=0), style, label=name)
    ax.set(
        title=f"{title}: accuracy {np.mean((score > 0.5) == y[test]):.3f}",
        xlabel="threshold",
    )
axes[0].set_ylabel("true-positive rate")
axes[0].legend()
plt.show()
