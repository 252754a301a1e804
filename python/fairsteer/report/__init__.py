"""What steering did to rows, how sure that is, and what it leaves."""

from fairsteer.metrics._intervals import Measured, MeasuredGaps, measured_gaps
from fairsteer.report._report import SteeringReport, steering_report

__all__ = ["Measured", "MeasuredGaps", "SteeringReport", "measured_gaps", "steering_report"]
