"""Fixtures of a finished experiment."""

from tests.report.conftest import finished as finished
from tests.report.conftest import workspace as workspace
