"""
Concept steering, equally strong in every group
===============================================

A direction added to the hidden states of a language model moves what it says towards a
concept. One direction for everybody moves some groups further than others;
:class:`~fairsteer.concepts.ConceptSteering` finds one for each group and scales them so
that the concept moves alike. Drawn states stand for those of a model.
"""

import matplotlib.pyplot as plt
import numpy as np

from fairsteer.concepts import ConceptSteering

rng = np.random.default_rng(0)
joyful, speaker = rng.integers(0, 2, 4000), rng.choice(["f", "m"], 4000)
# written two and a half times as large in one group
spread = np.where(speaker == "m", 2.5, 1.0)
hidden = spread[:, None] * (
    rng.normal(size=(4000, 16)) + np.outer(joyful, 2 * np.eye(16)[0])
)

steering = ConceptSteering(n_probes=40, random_state=0).fit(
    hidden, joyful, sensitive_features=speaker
)
moved = steering.steer(hidden, sensitive_features=speaker, strength=1.5)
shared = hidden + 1.5 * np.mean(
    [steering.direction(name) for name in ("f", "m")], axis=0
)

# %%
# How far the concept moves in each group, in that group's own standard deviations.

figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.2), sharey=True)
for ax, after, title in zip(
    axes, (shared, moved), ("one direction for both", "ConceptSteering"), strict=True
):
    for place, (name, colour) in enumerate((("f", "C0"), ("m", "C1"))):
        own = (speaker == name) & (joyful == 0)
        scale = hidden[own, 0].std()
        shift = (after - hidden)[own, 0].mean() / scale
        ax.arrow(
            0,
            place,
            shift,
            0,
            width=0.08,
            length_includes_head=True,
            head_length=0.15,
            color=colour,
        )
        ax.text(shift + 0.08, place, f"{shift:.2f}", va="center")
    ax.set(
        title=title,
        yticks=[0, 1],
        yticklabels=["f", "m"],
        ylim=(-0.6, 1.6),
        xlim=(0, 3.4),
    )
    ax.set_xlabel("move along the concept, own deviations")
plt.show()
