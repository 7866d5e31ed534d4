"""The upper bound: FedAvg whose sites know the true labels of all classes (docs/methods.md 2)."""

from src.methods.base import Method


class Clean(Method):
    """FedAvg on true, complete labels; marked as a bound wherever it is reported."""

    paper = "upper bound"
    summary = "FedAvg on true, complete labels"
    true_labels = True
