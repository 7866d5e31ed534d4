"""What the clients are called, where each is a site with a name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SiteNames:
    """Names of the clients in the order of their numbers; none where clients are no sites."""

    names: tuple[str, ...] = ()

    def called(self, client: int) -> str:
        """For a sentence: ``client 3 (north)``."""
        return f"client {client} ({self.names[client]})" if self.names else f"client {client}"

    def tag(self, client: int) -> str:
        """For a tag of TensorBoard, where ``/`` parts groups: ``3 north``."""
        return f"{client} {self.names[client].replace('/', '-')}" if self.names else str(client)
