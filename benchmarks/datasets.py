"""Real rows with classes and groups, from the folder that ``--data`` or ``FAIRSTEER_DATA`` names."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from fairsteer import SubgroupMoments

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """A table or an array, class and group codes, and the transformer that makes features of chosen rows."""

    name: str
    X: Any
    y: Codes
    group: Codes
    features: Any
    classes: list[str]
    groups: list[str]

    def transformed(self, fitted_to: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Features of all rows, by a transformer that has seen only some of them."""
        return np.asarray(self.features.fit(self.X[fitted_to]).transform(self.X), dtype=np.float64)

    @property
    def n_numeric(self) -> int:
        """Leading features that are numbers; the others are one-hot."""
        return sum(
            len(columns) for _, step, columns in self.features.transformers if not isinstance(step, OneHotEncoder)
        )

    def moments(self, Z: NDArray[np.float64], rows: NDArray[np.bool_] | slice = slice(None)) -> SubgroupMoments:
        """Full moments of some rows of features."""
        moments = SubgroupMoments(Z.shape[1], classes=self.classes, groups=self.groups, covariance="full")
        return moments.update(Z[rows], self.y[rows], self.group[rows])


def add_data_option(parser: argparse.ArgumentParser) -> None:
    folder = os.environ.get("FAIRSTEER_DATA")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(folder) if folder else None,
        metavar="FOLDER",
        help="real data sets (default: FAIRSTEER_DATA); without them, what needs them is left out",
    )


def _coded(labels: pd.Series) -> tuple[Codes, list[str]]:
    codes, names = pd.factorize(labels.astype(str), sort=True)
    return codes.astype(np.int64), list(names)


def _rows(name: str, X: Any, labels: pd.Series, groups: pd.Series, features: Any) -> Rows:
    y, class_names = _coded(labels)
    a, group_names = _coded(groups)
    return Rows(name, X, y, a, features, class_names, group_names)


def _features(numeric: list[str], skewed: list[str], categorical: list[str], min_frequency: float = 0.05) -> Any:
    """Standardised numbers, logarithms of skewed ones, and the categories that one row in twenty has."""
    return make_column_transformer(
        (StandardScaler(), numeric),
        (make_pipeline(FunctionTransformer(np.log1p), StandardScaler()), skewed),
        (
            OneHotEncoder(
                drop="first", min_frequency=min_frequency, handle_unknown="infrequent_if_exist", sparse_output=False
            ),
            categorical,
        ),
    )


def adult(folder: Path, sensitive: str) -> Rows:
    """Income above 50,000 dollars; without `relationship`, which names the sex (husband, wife)."""
    table = pd.read_parquet(folder / "tabular" / "adult.parquet")
    features = _features(
        ["age", "education_num", "hours_per_week"],
        ["capital_gain", "capital_loss"],
        ["workclass", "marital_status", "occupation"],
    )
    return _rows(f"adult, {sensitive}", table, table["income"], table[sensitive], features)


def compas(folder: Path) -> Rows:
    """Arrested again within two years; the two smallest races (42 people) count as Other."""
    table = pd.read_parquet(folder / "tabular" / "compas.parquet")
    race = table["race"].astype(str).replace({"Asian": "Other", "Native American": "Other"})
    features = _features(["age"], ["priors_count", "juv_misd_count", "juv_other_count"], ["c_charge_degree", "sex"])
    return _rows("compas, race", table, table["two_year_recid"], race, features)


def adult_in_full(folder: Path) -> Rows:
    """Adult with all columns, `relationship` among them, which names the sex of the married; groups: sex."""
    table = pd.read_parquet(folder / "tabular" / "adult.parquet")
    features = _features(
        ["age", "education_num", "hours_per_week"],
        ["capital_gain", "capital_loss"],
        ["workclass", "marital_status", "occupation", "relationship", "race", "native_country"],
        min_frequency=0.01,
    )
    return _rows("adult, sex", table, table["income"], table["sex"], features)


def compas_two_races(folder: Path) -> Rows:
    """Arrested again within two years, for the two largest races; without COMPAS' own scores."""
    table = pd.read_parquet(folder / "tabular" / "compas.parquet")
    table = table[table["race"].isin(["African-American", "Caucasian"])]
    features = _features(
        ["age"], ["priors_count", "juv_fel_count", "juv_misd_count", "juv_other_count"], ["c_charge_degree", "sex"]
    )
    return _rows("compas, race", table, table["two_year_recid"], table["race"], features)


def german_credit(folder: Path) -> Rows:
    """Credit risk; without `marital_status`, which names the sex."""
    table = pd.read_parquet(folder / "tabular" / "german_credit.parquet")
    numeric = ["duration_months", "installment_rate", "residence_since", "age", "n_credits", "n_dependents"]
    left_out = {*numeric, "credit_amount", "sex", "marital_status", "credit_risk"}
    categorical = [column for column in table.columns if column not in left_out]
    classes = table["credit_risk"].map({"bad": "0 bad", "good": "1 good"})
    return _rows("german credit, sex", table, classes, table["sex"], _features(numeric, ["credit_amount"], categorical))


def law_school(folder: Path) -> Rows:
    """Passing the bar examination, white or not."""
    table = pd.read_parquet(folder / "tabular" / "law_school.parquet")
    numeric = ["decile1b", "decile3", "lsat", "ugpa", "zfygpa", "zgpa", "fam_inc"]
    return _rows(
        "law school, race",
        table,
        table["pass_bar"],
        table["race"],
        _features(numeric, [], ["fulltime", "tier", "sex"], min_frequency=0.01),
    )


# First codes of the major groups of occupations (Census 2018).
_OCCUPATIONS = [
    *(0, 10, 500, 800, 1005, 1305, 1600, 2001, 2100, 2205, 2600, 3000, 3601, 3700, 4000, 4200, 4330, 4700, 5000),
    *(6005, 6200, 6800, 7000, 7700, 9005, 9800, 9921),
]


def acs_income(folder: Path, sensitive: str) -> Rows:
    """Income above 50,000 dollars in 2018; races with less than 5 % of the people count as Other."""
    table = pd.read_parquet(folder / "tabular" / "acs_income.parquet")
    race = table["race"].astype(str)
    table["race"] = race.where(race.isin(["White", "Black", "Asian"]), "Other")
    table["occupation"] = np.digitize(table["occupation_code"], _OCCUPATIONS)
    table["born_in_the_us"] = table["place_of_birth"] < 60
    categorical = ["class_of_worker", "marital_status", "occupation", "relationship", "born_in_the_us"]
    features = _features(
        ["age", "education", "hours_per_week"],
        [],
        [*categorical, "sex" if sensitive == "race" else "race"],
        min_frequency=0.01,
    )
    return _rows(f"acs income, {sensitive}", table, table["income_gt_50k"], table[sensitive], features)


def biographies(folder: Path, occupations: list[str] | None = None, leading: int | None = None) -> Rows:
    """Sentence embeddings of biographies, occupation and gender; their leading principal components when asked for."""
    table = pd.read_parquet(folder / "biographies" / "labels.parquet", columns=["label", "group"])
    embeddings = np.load(folder / "biographies" / "embeddings.f16.npy")
    name = "biographies"
    if occupations is not None:
        chosen = table["label"].isin(occupations).to_numpy()
        table, embeddings = table[chosen], embeddings[chosen]
        name += f" ({', '.join(occupations)})"
    features: Any = FunctionTransformer()
    if leading is not None:
        features = PCA(leading, svd_solver="covariance_eigh")
        name += f", {leading} components"
    return _rows(name, embeddings.astype(np.float32), table["label"], table["group"], features)


def largest_occupations(folder: Path, n: int) -> list[str]:
    """The occupations with the most biographies of the gender that has fewer."""
    table = pd.read_parquet(folder / "biographies" / "labels.parquet", columns=["label", "group"])
    smaller = table.value_counts(["label", "group"]).unstack().min(axis=1)
    return [str(label) for label in smaller.nlargest(n).index]
