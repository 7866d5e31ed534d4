"""One thread for the linear algebra of scikit-learn: sums must not depend on the cores."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController


def single_thread() -> AbstractContextManager:
    """Hold every thread pool to one thread. Import the libraries first: pools are found once."""
    return _controller().limit(limits=1)


@cache
def _controller() -> ThreadpoolController:
    """The pools of this process. Looking for them takes as long as fitting a small mixture."""
    import sklearn.mixture  # noqa: F401  brings all pools that the project limits

    return ThreadpoolController()
