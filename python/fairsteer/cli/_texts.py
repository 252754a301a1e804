"""The sentences below the tables, one line per paragraph: the terminal wraps them."""

from __future__ import annotations

__all__ = ["HOW_TO_READ", "INFERRED", "NOISE", "WHERE_NEXT"]

# How rows without a known group are steered, by `unknown_group`.
INFERRED = {
    "infer": "steered by the maps of all groups, weighted by how likely each group is for the row",
    "infer_hard": "steered by the map of the group that is likeliest for the row",
}

HOW_TO_READ = (
    "A gap is the largest difference between two groups in a rate. Demographic parity: how often the class is "
    "predicted. Equal opportunity: how often it is recognised among those who have it. Equalized odds: the worse of "
    "that and of false alarms. 0 is fair. The classifier before does not know the group; steering uses it to move "
    "rows.\n\n"
    "The divergence says how far the fitted distribution is from the nearest ideal one, on which all gaps are 0. The "
    "certificate bounds the gaps, on the fitted Gaussians, of a classifier that is fair on the ideal distribution. "
    "Real rows are not Gaussian, and the map does not know their class: a gap remains.\n"
)

NOISE = (
    "Noise is the standard error that a gap would have if there were no true gap (for accuracy, its own). Differences "
    "below twice the noise show nothing, and the largest gap among many groups exceeds it by chance.\n"
)

WHERE_NEXT = (
    "Next: fairsteer steer FILE --target COLUMN --sensitive COLUMN does the same for a csv or parquet file, and in "
    "Python there is FairSteeringTransformer."
)
