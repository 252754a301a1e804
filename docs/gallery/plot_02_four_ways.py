"""
Four ways to steer
==================

How freely may a map move rows? Here the second group is shifted, stretched and turned.
From picture to picture the maps may do more, and the distance that is left to an ideal
distribution falls: the KL divergence, in nats, above each picture.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Ellipse

from fairsteer import FairSteeringTransformer
from fairsteer.datasets import make_biased_groups

X, y, group = make_biased_groups(
    3000,
    2,
    groups=["A", "B"],
    class_sep=3,
    shift=3,
    spread=1.6,
    rotation=40,
    random_state=0,
)


def ellipses(ax, rows):
    """Where nine tenths of the rows of each class lie in each group."""
    for name, colour in (("A", "C0"), ("B", "C1")):
        for label, style in ((0, "--"), (1, "-")):
            own = rows[(group == name) & (y == label)]
            size, axes = np.linalg.eigh(np.cov(own.T))
            angle = np.degrees(np.arctan2(axes[1, 1], axes[0, 1]))
            width, height = 2 * np.sqrt(4.6 * size[::-1])
            ax.add_patch(
                Ellipse(
                    own.mean(axis=0),
                    width,
                    height,
                    angle=angle,
                    fill=False,
                    color=colour,
                    linestyle=style,
                    lw=2,
                )
            )
            ax.plot(*own.mean(axis=0), "o" if label else "x", color=colour)
    ax.set(aspect="equal", xlim=(-5, 9), ylim=(-5, 7), xticks=[], yticks=[])
    ax.spines[["left", "bottom"]].set_visible(False)


ways = {
    "translation": "shifts",
    "diagonal": "scales",
    "symmetric": "no rotation",
    "affine": "any matrix",
}
figure, axes = plt.subplots(2, 3, figsize=(7.5, 4.8))
ellipses(axes[0, 0], X)
axes[0, 0].set_title("before")
for ax, (map_type, words) in zip(axes.flat[1:], ways.items(), strict=False):
    steer = FairSteeringTransformer(map_type=map_type).fit(
        X, y, sensitive_features=group
    )
    ellipses(ax, steer.transform(X, sensitive_features=group))
    ax.set_title(f"{map_type} ({words}): {steer.kl_divergence_:.2f}")
for colour, style, words in (
    ("C0", "-", "A, class 1"),
    ("C0", "--", "A, class 0"),
    ("C1", "-", "B, class 1"),
    ("C1", "--", "B, class 0"),
):
    axes[1, 2].plot([], [], style, color=colour, label=words)
axes[1, 2].legend(loc="center")
axes[1, 2].axis("off")
plt.show()

# %%
# The affine map, the nearest of all, undoes everything. For tables, whose values are
# counts, codes and flags, ``map_type="monotone"`` moves every feature by itself onto
# values that occur, and is what the default takes there: see
# :ref:`sphx_glr_auto_gallery_plot_09_trees.py`.
