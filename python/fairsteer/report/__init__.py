"""What steering did to rows, how sure that is, and what it leaves."""

from fairsteer.metrics._intervals import Measured, MeasuredGaps, measured_gaps
from fairsteer.report._explanation import RowExplanation, explain_row
from fairsteer.report._report import SteeringReport, steering_report

__all__ = [
    "Measured",
    "MeasuredGaps",
    "RowExplanation",
    "SteeringReport",
    "explain_row",
    "measured_gaps",
    "steering_report",
]
