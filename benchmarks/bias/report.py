"""Tables and a picture of what `python -m benchmarks.bias` measured, and the rule by which they are read.

The rule, and the methods, were written down before the run:

* The unbiased distribution is ideal, so that the most accurate decisions are the fair ones: accuracy against the truth
  is what counts, gaps come second. The gaps that chance makes are those of unbiased rows.
* What is read is the middle level of a bias, the classifier being logistic regression, averaged over data sets.
  Standard errors are over repeats (draws of rows, groups and biases), the data sets being what they are.
* What a bias costs: accuracy of the classifier on unbiased rows, in training and in use, less that on biased ones.
  Where that is within two standard errors of 0 there is nothing to recover, and no share is given.
* Some sixty methods are tried. One *recovers* something if it gains more than three standard errors over doing nothing,
  and *harms* if it loses as much. The best is the one with the highest accuracy; its equals, those within a standard
  error of the paired difference.
* The best is given among methods that are told groups at most, and among those that are told which group is not biased.
  Where none of a kind recovers anything, the answer is: do nothing.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def write(folder: Path, lines: pd.DataFrame) -> None:
    raise NotImplementedError
