"""The section `report`."""

from cocomix.params.ranges import Size
from cocomix.params.section import Section


class ReportParams(Section):
    """The report."""

    title: str
    label_runs: Size
    """Training runs that share the base model, the autoencoder and the labels; their cost is divided by this number."""
