"""
A grid search that knows the groups
===================================

With the groups as a column of ``X``, every tool of scikit-learn works.
``fairness_scorer`` adds the gap to a search, and ``best_within_budget`` takes the most
accurate candidate whose gap is within a budget.
"""

import matplotlib.pyplot as plt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fairsteer import FairSteeringTransformer
from fairsteer.datasets import make_biased_groups
from fairsteer.scoring import best_within_budget, fairness_scorer

rows, hired, sex = make_biased_groups(
    3000,
    3,
    groups=["female", "male"],
    shift=2,
    rotation=50,
    base_rates=[0.35, 0.5],
    random_state=1,
)
X = pd.DataFrame(rows, columns=["test", "years", "interview"]).assign(sex=sex)

pipe = make_pipeline(
    FairSteeringTransformer(sensitive_columns=["sex"]),
    StandardScaler(),
    LogisticRegression(),
)
search = GridSearchCV(
    pipe,
    {
        "fairsteeringtransformer__map_type": ["translation", "affine"],
        "fairsteeringtransformer__strength": [0, 0.25, 0.5, 0.75, 1],
    },
    scoring={
        "accuracy": "accuracy",
        "gap": fairness_scorer(
            "equal_opportunity_difference", sensitive_columns=["sex"]
        ),
    },
    refit=best_within_budget("accuracy", "gap", max_gap=0.16),
).fit(X, hired)

# %%
# Each point is a candidate, averaged over five folds; those left of the line are within
# the budget.

results = pd.DataFrame(search.cv_results_)
figure, ax = plt.subplots(figsize=(6, 3.6))
for map_type, own in results.groupby("param_fairsteeringtransformer__map_type"):
    ax.plot(-own["mean_test_gap"], own["mean_test_accuracy"], "o-", label=map_type)
best = results.loc[search.best_index_]
ax.plot(
    -best["mean_test_gap"],
    best["mean_test_accuracy"],
    "o",
    ms=14,
    mfc="none",
    mec="k",
    label="chosen",
)
ax.axvline(0.16, color="0.5", linestyle=":")
ax.set(xlabel="equal-opportunity gap", ylabel="accuracy", xlim=(0, None))
ax.legend()
plt.show()
print(search.best_params_)
