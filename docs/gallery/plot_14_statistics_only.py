"""
From statistics only
====================

Weights, means and covariances of the subgroups are all that steering needs. Three
hospitals share these and no rows: their moments add up to those of all rows, and the
map is the one that a fit to all rows would find.
"""

import matplotlib.pyplot as plt
import numpy as np

from fairsteer import FairSteeringTransformer, SubgroupMoments, nearest_ideal
from fairsteer.datasets import make_biased_groups

X, y, group = make_biased_groups(3000, 2, shift=3, rotation=60, random_state=0)

sites = [
    SubgroupMoments(2, classes=[0, 1], groups=[0, 1], covariance="full").update(
        X[part], y[part], group[part]
    )
    for part in np.split(np.arange(3000), [400, 1500])
]
total = sum(sites)
steer = FairSteeringTransformer(map_type="affine", shrinkage=None).fit_moments(total)
whole = FairSteeringTransformer(map_type="affine", shrinkage=None).fit(
    X, y, sensitive_features=group
)
apart = max(np.abs(steer.maps_[a][0] - whole.maps_[a][0]).max() for a in (0, 1))
print(f"{total}\nlargest difference of the maps: {apart:.0e}")

# %%
# Or from a table in a paper: these are the statistics of two classes in two groups, and
# no row was ever seen.

moments = SubgroupMoments.from_statistics(
    weights=[[0.30, 0.25], [0.30, 0.15]],
    means=[[[0, 0], [2, 1]], [[2, 0], [3, 3]]],
    covariances=[np.eye(2), [[1.5, 0.5], [0.5, 0.8]]],
    classes=["rejected", "hired"],
    groups=["A", "B"],
)
ideal = nearest_ideal(moments)
print(
    f"{ideal.kl_divergence:.3f} nats from the nearest ideal distribution",
    ideal.certificate,
    sep="\n",
)

# %%
# Means of the subgroups as they are (faint) and as the map of each group moves them.

figure, ax = plt.subplots(figsize=(5, 3.6))
for a, (name, colour) in enumerate((("A", "C0"), ("B", "C1"))):
    A, b = ideal.maps[name]
    for k, marker in enumerate("xo"):
        before = moments.means[k, a]
        after = A @ before + b
        ax.annotate("", after, before, arrowprops={"arrowstyle": "->", "color": colour})
        ax.plot(*before, marker, color=colour, alpha=0.35, ms=9)
        ax.plot(
            *after, marker, color=colour, ms=9, label=f"{moments.classes[k]}, {name}"
        )
ax.set(xlabel="first feature", ylabel="second feature", aspect="equal")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
