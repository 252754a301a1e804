"""
Intersections and small subgroups
=================================

Several sensitive columns stand for their intersections, and some of these are small: a
mean and a covariance from a dozen rows are noise. ``min_subgroup_size`` says how many
rows every class should have in every group, and ``small_subgroups="pool"`` lets smaller
ones borrow from the others.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from fairsteer import FairSteeringTransformer
from fairsteer.datasets import make_biased_groups

labels = [(age, sex) for age in ("young", "old") for sex in ("f", "m", "x")]
names = [" ".join(label) for label in labels]
X, y, code = make_biased_groups(
    900, 2, groups=names, shift=3, group_shares=[30, 30, 2, 20, 20, 1], random_state=0
)
groups = pd.DataFrame(
    [labels[names.index(one)] for one in code], columns=["age", "sex"]
)

# %%
# The table of the subgroups: rows of each class in each group.

steer = FairSteeringTransformer(
    intervention="affirmative",
    reference_group=("young", "f"),
    min_subgroup_size=25,
    small_subgroups="pool",
)
steer.fit(X, y, sensitive_features=groups)
print(steer.moments_.subgroup_table())

# %%
# With 20 other samples one sees what pooling is for: the map of the smallest group
# hardly changes from sample to sample, where without it, it follows the noise of a few
# rows.

# Warnings say that the certificate knows nothing of subgroups as small as these.
warnings.simplefilter("ignore", UserWarning)
probe, repeats = np.array([[2.0, 2.0]]), 20
moved = {"as it is": [], "pooled": []}
for seed in range(repeats):
    X, y, code = make_biased_groups(
        900,
        2,
        groups=names,
        shift=3,
        group_shares=[30, 30, 2, 20, 20, 1],
        random_state=seed,
    )
    for name, options in (
        ("as it is", {}),
        ("pooled", {"min_subgroup_size": 25, "small_subgroups": "pool"}),
    ):
        steer = FairSteeringTransformer(
            map_type="affine",
            intervention="affirmative",
            reference_group="young f",
            **options,
        )
        steer.fit(X, y, sensitive_features=code)
        moved[name].append(steer.transform(probe, sensitive_features=["old x"])[0])

figure, ax = plt.subplots(figsize=(5.4, 3.6))
for name, marker in zip(moved, "ox", strict=True):
    ax.plot(
        *np.array(moved[name]).T,
        marker,
        label=f"{name}: spread {np.std(moved[name], axis=0).mean():.2f}",
    )
ax.set(
    title="where one row of the smallest group is moved",
    xlabel="first feature",
    ylabel="second feature",
)
ax.set_ylim(-3, 2.6)
beyond = sum(point[1] < -3 for point in moved["as it is"])
ax.text(
    0.02, 0.02, f"as it is, further down: {beyond}", transform=ax.transAxes, color="0.4"
)
ax.legend(loc="upper left")
plt.show()
