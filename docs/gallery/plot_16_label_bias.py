"""
When labels are unfair
======================

Rates are made equal *given the labels*. If a stricter bar was applied to one group, so
that its suitable people were labelled suitable only if they were outstanding, then a
classifier that is fair by these labels repeats the bar. Nothing that is computed from
them shows it.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LogisticRegression

from fairsteer import ScoreAligner
from fairsteer.datasets import make_biased_groups

X, suitable, group = make_biased_groups(
    12_000, 3, groups=["A", "B"], shift=1, random_state=0
)
train, test = slice(6000), slice(6000, None)
shares = np.linspace(0, 0.6, 7)
by_labels, by_truth = [], []
for share in shares:
    # The least outstanding of the suitable people of B are labelled unsuitable.
    concerned = (group == "B") & (suitable == 1)
    bar = np.quantile(X[concerned, 0], share)
    labelled = np.where(concerned & (X[:, 0] < bar), 0, suitable)
    model = ScoreAligner(LogisticRegression()).fit(
        X[train], labelled[train], sensitive_features=group[train]
    )
    predicted = model.predict(X[test], sensitive_features=group[test])
    for labels, rates in ((labelled[test], by_labels), (suitable[test], by_truth)):
        rates.append(
            [
                predicted[(group[test] == name) & (labels == 1)].mean()
                for name in ("A", "B")
            ]
        )

figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.4), sharey=True)
for ax, rates, title in zip(
    axes,
    (by_labels, by_truth),
    ("by the labels there are", "by what is true"),
    strict=True,
):
    for j, (name, style) in enumerate((("A", "-o"), ("B", "--s"))):
        ax.plot(shares, np.array(rates)[:, j], style, label=name)
    ax.set(title=title, xlabel="share of suitable B labelled unsuitable", ylim=(0, 1))
axes[0].set_ylabel("suitable people recognised")
axes[0].legend(loc="lower left")
plt.show()

# %%
# What helps is to know which group's labels can be trusted
# (``intervention="affirmative", reference_group="A"``), or better labels: see
# :doc:`/when-not`.
