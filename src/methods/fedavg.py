"""FedAvg on the cells each site annotated: every hook as in the base class.

McMahan et al., AISTATS 2017; docs/methods.md 2.
"""

from src.methods.base import Method


class FedAvg(Method):
    """Federated averaging, with the loss masked to annotated cells."""
