"""dm-verity hash trees behind an image, as ``veritysetup format --hash-offset=IMAGE_SIZE`` writes them.

    image | verity superblock, one block | top of the tree | ... | digests of the image's blocks

Format 1, SHA-256, 4 KiB blocks (Linux kernel documentation, "dm-verity"; cryptsetup's wiki, "DMVerity").  No salt: it
is there to make precomputed digests useless to whoever forges blocks, and with public images and SHA-256 there is
nothing to precompute; without it the tree is the same wherever it is made.  The root hash says it all: who has it from
a trusted place notices any other byte in the image when it is read.
"""

from __future__ import annotations

import hashlib
import struct

from imagebuild.newfile import NewFile

BLOCK = 4096
_DIGEST = 32
_PER_BLOCK = BLOCK // _DIGEST
_READ = 1 << 20

_SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s168x")
_SIGNATURE, _VERSION, _HASH_TYPE = b"verity\0\0", 1, 1


def append_tree(file: NewFile, image_size: int, uuid: bytes) -> tuple[str, int]:
    """Write the hash tree of the first *image_size* bytes of *file* (whole blocks) right behind them.

    Returns the root hash in hex and the size of the file with it.  Raises `StoreError`.
    """
    blocks = image_size // BLOCK
    superblock = _SUPERBLOCK.pack(_SIGNATURE, _VERSION, _HASH_TYPE, uuid, b"sha256", BLOCK, BLOCK, blocks, 0, b"")
    file.write_all(superblock.ljust(BLOCK, b"\0"), image_size)
    sizes = _level_sizes(blocks)
    end = at = image_size + BLOCK + sum(sizes)
    below, length = 0, image_size
    for size in sizes:  # the lowest level comes last in the file
        at -= size
        _write_level(file, below, length, at)
        below, length = at, size
    return hashlib.sha256(file.read(BLOCK, below)).hexdigest(), end


def _level_sizes(blocks: int) -> list[int]:
    """Bytes of each level of the tree over so many blocks, lowest first; none over a single block."""
    sizes: list[int] = []
    while blocks > 1:
        blocks = (blocks + _PER_BLOCK - 1) // _PER_BLOCK
        sizes.append(blocks * BLOCK)
    return sizes


def _write_level(file: NewFile, start: int, length: int, target: int) -> None:
    """Write the digests of the blocks in *length* bytes from *start* on to *target*, in whole blocks.

    Holes are not read: a sparse file's image may be a thousand times larger than what is in it.
    """
    sha256 = hashlib.sha256
    zeros = sha256(bytes(BLOCK)).digest() * (_READ // BLOCK)
    end = start + length
    next_data = start
    for offset in range(start, end, _READ):
        size = min(_READ, end - offset)
        if offset >= next_data:
            next_data = file.data_after(offset)
        if offset + size <= next_data:
            digests = zeros[: size // BLOCK * _DIGEST]
        else:
            data = memoryview(file.read(size, offset))
            digests = b"".join([sha256(data[at : at + BLOCK]).digest() for at in range(0, size, BLOCK)])
        file.write_all(digests + bytes(-len(digests) % BLOCK), target)
        target += len(digests)
