"""The job of ``fairsteer demo``: data that scikit-learn brings, and how to read what is printed."""

from __future__ import annotations

from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler

from fairsteer.transformer import FairSteeringTransformer

from ._comparison import compare
from ._fitting import quoting_warnings
from ._printing import Reporter, comparison_values, fit_values

__all__ = ["demo"]

_FOLDS = 10

_HOW_TO_READ = (
    "A gap is the largest difference between two groups in a rate. Demographic parity: how often the class is "
    "predicted. Equal opportunity: how often it is recognised among those who have it. Equalized odds: the worse of "
    "that and of false alarms. 0 is fair. The classifier before does not know the group; steering uses it to move "
    "rows.\n\n"
    "The divergence says how far the fitted distribution is from the nearest ideal one, on which all gaps are 0. The "
    "certificate bounds the gaps, on the fitted Gaussians, of a classifier that is fair on the ideal distribution. "
    "Real rows are not Gaussian, and the map does not know their class: a gap remains.\n"
)

_WHERE_NEXT = (
    "Next: fairsteer steer FILE --target COLUMN --sensitive COLUMN does the same for a csv or parquet file, and in "
    "Python there is FairSteeringTransformer."
)


def demo(*, as_json: bool = False) -> None:
    """Steer scikit-learn's diabetes data and print what changed, as text or as one JSON object."""
    report = Reporter(as_json=as_json)
    data = load_diabetes(as_frame=True, scaled=False)
    features, sex = data.data.drop(columns="sex"), data.data[["sex"]].astype(int)
    y = (data.target > data.target.median()).to_numpy().astype(int)
    report.say(
        f"scikit-learn's diabetes data: {len(y)} patients, {features.shape[1]} measurements. "
        "Class: disease progression after one year above the median. Group: sex (coded 1 and 2), which is not one of "
        "the features.\n"
    )
    steering = FairSteeringTransformer(feature_transform=StandardScaler())
    with quoting_warnings(report.note), report.progress("cross-validation", _FOLDS) as advance:
        steering.fit(features, y, sensitive_features=sex)
        result = compare(steering, features, y, sex, pos_label=None, folds=_FOLDS, min_rows=30, advance=advance)
    report.comparison(result, steering)
    report.say(_HOW_TO_READ)
    report.advice(result)
    report.say(_WHERE_NEXT)
    report.result("demo", **comparison_values(result), fit=fit_values(steering))
