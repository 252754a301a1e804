"""
Embeddings
==========

Embeddings are continuous and have hundreds of dimensions: the affine map of the nearest
ideal distribution is made for them, and ``map_type="auto"`` takes it. Here 256
dimensions stand for those of sentences that describe people of three jobs.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from fairsteer import FairSteeringTransformer
from fairsteer.datasets import make_biased_groups
from fairsteer.metrics import equal_opportunity_difference, group_leakage

X, job, gender = make_biased_groups(
    6000,
    256,
    classes=["nurse", "surgeon", "teacher"],
    groups=["female", "male"],
    class_sep=4,
    shift=6,
    rotation=25,
    random_state=0,
)
X = X.astype(np.float32)
train, test = slice(3000), slice(3000, None)
steer = FairSteeringTransformer().fit(
    X[train], job[train], sensitive_features=gender[train]
)
U = steer.transform(X, sensitive_features=gender)
print(steer.map_type_, U.dtype)

# %%
# The first two principal components: the groups are apart before, and lie upon one
# another after. *Leakage*, what a linear model can still read of the group *within a
# job*, says how unfair any linear model on these rows could be.

figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.8))
for ax, rows, title in zip(axes, (X, U), ("before", "after"), strict=True):
    flat = PCA(2, random_state=0).fit_transform(rows)[test]
    for label, colour in zip(np.unique(job), ("C0", "C1", "C2"), strict=True):
        for name, marker in (("female", "o"), ("male", "+")):
            own = (job[test] == label) & (gender[test] == name)
            ax.plot(
                *flat[own][:120].T,
                marker,
                color=colour,
                ms=4,
                alpha=0.7,
                label=f"{label}, {name}",
            )
    model = LogisticRegression(max_iter=300).fit(rows[train], job[train])
    predicted = model.predict(rows[test])
    gap = equal_opportunity_difference(
        job[test], predicted, sensitive_features=gender[test]
    )
    leak = group_leakage(
        rows[test], job[test], sensitive_features=gender[test], cv=2
    ).largest.value
    accuracy = np.mean(predicted == job[test])
    ax.set_title(
        f"{title}: accuracy {accuracy:.3f},\ngap {gap:.3f}, leakage {leak:.2f}"
    )
    ax.set(xticks=[], yticks=[], aspect="equal")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()
