"""From the key that a request names to the cluster that serves it: pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.errors import UnknownVersion
from router.topology import Target

if TYPE_CHECKING:
    from router.topology import Topology


def resolve(topology: Topology, version: str | None) -> Target:
    """Resolve a version or alias.

    Args:
        topology: What is configured.
        version: The key; ``None`` takes ``default_version``.

    Returns:
        The target.

    Raises:
        UnknownVersion: No version or alias has this key, or none was named and there is no default.
    """
    requested = topology.default_version if version is None else version
    if requested is not None:
        cluster = topology.versions.get(topology.aliases.get(requested, requested))
        if cluster is not None:
            return Target(requested, cluster)
    raise UnknownVersion(requested, sorted({*topology.versions, *topology.aliases}))
