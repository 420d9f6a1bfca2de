"""What a user may set about registries, as one frozen value.

Whoever reads the configuration file fills this in; the client only looks at it.  Registries are named as in an image
name: ``host`` or ``host:port``, and ``docker.io`` for Docker Hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class RegistrySettings:
    """How to reach registries.  Times in seconds, sizes in bytes.

    ``mirrors``: registry -> where to look first, in order, each ``[http[s]://]host[:port][/prefix]``; the prefix is
    put before the repository's path, as pull-through caches want it.  Only pulls use mirrors.

    ``insecure``: registries that may speak plain HTTP or show a certificate nobody vouches for.

    ``ca_files``: registry -> PEM file with the authorities to trust for it besides the system's.  A registry named
    here is always spoken to over TLS, a loopback one too.
    """

    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    insecure: frozenset[str] = frozenset()
    ca_files: Mapping[str, Path] = field(default_factory=dict)

    # A host that does not answer a SYN in ten seconds is down or behind a filter that drops.
    connect_timeout_s: float = 10.0
    # Longest silence within an answer.  Registries that fetch from cold storage take several seconds to begin.
    stall_timeout_s: float = 30.0
    # Tries of one request, the first included.
    attempts: int = 5
    # The longest wait a registry may ask of us (Retry-After); beyond it failing at once is kinder than hanging.
    max_retry_after_s: float = 60.0
    # Connections kept open to each host: as many as layers that are fetched side by side.
    connections: int = 16
    # Bytes of one PATCH when pushing; 0 sends each blob in one PUT, which every registry understands and is fastest.
    # Set it where a proxy limits the size of a request, or a line breaks often.
    push_chunk: int = 0
