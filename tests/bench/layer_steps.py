"""What `bench_layer` measures, one process each: ``python layer_steps.py STEP BLOB TARGET``.

Each step imports only what it needs, so that the floor is not charged for our imports.
"""

from __future__ import annotations

import sys
from pathlib import Path

_READ, _OUTPUT = 256 << 10, 1 << 20


def floor(blob: Path, target: Path) -> None:
    """Nothing but what every converter has to do: read, hash, decompress, hash, write."""
    import hashlib

    from isal import igzip_lib

    member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    packed, unpacked = hashlib.sha256(), hashlib.sha256()
    with open(blob, "rb", buffering=0) as source, open(target, "wb", buffering=0) as out:
        while not member.eof:
            data = b""
            if member.needs_input:
                data = source.read(_READ)
                packed.update(data)
            chunk = member.decompress(data, _OUTPUT)
            unpacked.update(chunk)
            out.write(chunk)


def ours(blob: Path, target: Path, *, verity: bool = False) -> None:
    """What `imagebuild pull` does with a layer."""
    from imagebuild.layer.layer import convert

    with open(blob, "rb", buffering=0) as source:
        convert(source, destination=target, digest=f"sha256:{blob.name}", size=blob.stat().st_size, verity=verity)


def verity(blob: Path, target: Path) -> None:
    """The same with a hash tree."""
    ours(blob, target, verity=True)


def peak_mib() -> float:
    """The most memory this process has had.  Not from getrusage: that counts the parent's before exec, too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    {"floor": floor, "ours": ours, "verity": verity}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    print(peak_mib())
