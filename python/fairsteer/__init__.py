"""Steer features to the nearest distribution on which Bayes classifiers are exactly fair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairsteer import baselines as baselines
    from fairsteer import classifier as classifier
    from fairsteer import concepts as concepts
    from fairsteer import datasets as datasets
    from fairsteer import export as export
    from fairsteer import groups as groups
    from fairsteer import ideal as ideal
    from fairsteer import metrics as metrics
    from fairsteer import moments as moments
    from fairsteer import persistence as persistence
    from fairsteer import plotting as plotting
    from fairsteer import report as report
    from fairsteer import score_alignment as score_alignment
    from fairsteer import scoring as scoring
    from fairsteer import streams as streams
    from fairsteer import torch as torch
    from fairsteer import transformer as transformer
    from fairsteer._utils.versions import build_info, show_versions
    from fairsteer.baselines import CovarianceMatchingTransformer, LeaceTransformer, MeanMatchingTransformer
    from fairsteer.classifier import (
        IdealDistributionClassifier,
        IdealDistributionClassifierCV,
        IdealPosteriorClassifier,
    )
    from fairsteer.ideal import Certificate, IdealDistribution, IdealPosterior, nearest_ideal, nearest_ideal_posterior
    from fairsteer.moments import SubgroupMoments
    from fairsteer.score_alignment import ScoreAligner
    from fairsteer.scoring import best_within_budget, budget_scorer, fairness_scorer, performance_scorer
    from fairsteer.transformer import FairSteeringTransformer

    __version__: str

# Where each name lives. Nothing is imported before it is asked for: the command line answers --help, and
# `fairsteer.metrics` costs, without the rest.
_HOMES = {
    "CovarianceMatchingTransformer": "baselines",
    "LeaceTransformer": "baselines",
    "MeanMatchingTransformer": "baselines",
    "IdealDistributionClassifier": "classifier",
    "IdealDistributionClassifierCV": "classifier",
    "Certificate": "ideal",
    "IdealDistribution": "ideal",
    "nearest_ideal": "ideal",
    "SubgroupMoments": "moments",
    "IdealPosterior": "ideal",
    "nearest_ideal_posterior": "ideal",
    "IdealPosteriorClassifier": "classifier",
    "ScoreAligner": "score_alignment",
    "best_within_budget": "scoring",
    "budget_scorer": "scoring",
    "fairness_scorer": "scoring",
    "performance_scorer": "scoring",
    "FairSteeringTransformer": "transformer",
    "build_info": "_utils.versions",
    "show_versions": "_utils.versions",
}

# Modules that `import fairsteer` makes reachable. Some need more installed, and say so when they are asked for.
_ROOMS = (
    "baselines",
    "classifier",
    "concepts",
    "datasets",
    "export",
    "groups",
    "ideal",
    "metrics",
    "moments",
    "persistence",
    "plotting",
    "report",
    "score_alignment",
    "scoring",
    "streams",
    "torch",
    "transformer",
)

__all__ = [
    "Certificate",
    "CovarianceMatchingTransformer",
    "FairSteeringTransformer",
    "IdealDistribution",
    "IdealDistributionClassifier",
    "IdealDistributionClassifierCV",
    "IdealPosterior",
    "IdealPosteriorClassifier",
    "LeaceTransformer",
    "MeanMatchingTransformer",
    "ScoreAligner",
    "SubgroupMoments",
    "__version__",
    "best_within_budget",
    "budget_scorer",
    "build_info",
    "fairness_scorer",
    "nearest_ideal",
    "nearest_ideal_posterior",
    "performance_scorer",
    "show_versions",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")  # which sets the attribute
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("fairsteer")
    elif name in _HOMES:
        found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    else:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
