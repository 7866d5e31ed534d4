"""FedAvg on the cells each site annotated: every hook as in the base class."""

from src.methods.base import Method


class FedAvg(Method):
    """McMahan et al., AISTATS 2017, with the loss masked to annotated cells (methods.md 2)."""
