"""Turns a layer blob into an EROFS image in one pass, while it arrives.

    blob -> size, digest -> gunzip / zstd -> size, diff ID -> tar entries -> tree and file data -> EROFS image

Nothing is kept but the tree and the ends of files, nothing is unpacked, and no other program or privilege is needed.
The image gets its name only when everything was verified and is on the disk: until then it is a file without a name,
which the kernel removes if we die.

The steps that cost (hashing, decompressing, writing) release Python's lock, so layers convert side by side in threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from uuid import UUID

from imagebuild.digest import digest_problem
from imagebuild.errors import LayerError
from imagebuild.layer.bytestream import ByteStream
from imagebuild.layer.decompress import INPUT_CHUNK, Compression, decompress
from imagebuild.layer.entry import Entry
from imagebuild.layer.erofs import xattr_body
from imagebuild.layer.erofs_writer import ErofsWriter
from imagebuild.layer.limits import Limits
from imagebuild.layer.needs import Needs
from imagebuild.layer.tarstream import TarStream
from imagebuild.layer.tree import Tree
from imagebuild.layer.verity import append_tree
from imagebuild.newfile import NewFile

_LABEL_LENGTH = 15


@dataclass(frozen=True)
class ConvertedLayer:
    """What came out.  Sizes are bytes, digests are ``algorithm:hex``."""

    #: Digest of the tar stream, and of the blob as it came.
    diff_id: str
    digest: str
    compressed_size: int
    tar_size: int
    #: Of the EROFS image; a hash tree begins there.
    image_size: int
    entries: int
    #: dm-verity's root hash (hex) when a hash tree was asked for.
    verity_root: str | None
    #: What `imagebuild.layer.patch` must settle once the lower layers are there; false for nearly all layers.
    needs: Needs


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Counted:
    """An iterator that counts and hashes what passes through it."""

    def __init__(self, chunks: Iterable[bytes], algorithm: str) -> None:
        self._chunks = chunks
        self._algorithm = algorithm
        self._hash: _Hash = hashlib.new(algorithm)
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self.size += len(chunk)
            self._hash.update(chunk)
            yield chunk

    @property
    def digest(self) -> str:
        return f"{self._algorithm}:{self._hash.hexdigest()}"


def convert(
    source: Iterable[bytes] | BinaryIO,
    *,
    destination: Path,
    media: Compression = Compression.AUTO,
    digest: str | None = None,
    size: int | None = None,
    diff_id: str | None = None,
    limits: Limits | None = None,
    verity: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> ConvertedLayer:
    """Write the layer that *source* delivers to *destination* as an EROFS image.

    *source* is a binary file or any iterable of ``bytes``.  *digest* and *size* are what the manifest says of the blob,
    *diff_id* what the config says of the tar in it; what is given is verified.  With *verity* a dm-verity hash tree
    follows the image in the same file.  *on_progress* is called with the bytes of the blob taken in so far.

    Raises `LayerError` when the layer is at fault and `StoreError` when the disk is; *destination* is then as before.
    Errors of the source itself pass through.
    """
    limits = limits or Limits()
    blob = _Counted(_limited(_chunks(source), size, on_progress), _algorithm(digest))
    subject = digest or diff_id or "the layer"
    with NewFile(destination, subject) as file:
        writer = ErofsWriter(file, limits)
        incoming = iter(blob)
        tar = _Counted(_bounded(decompress(incoming, media), blob, limits), _algorithm(diff_id))
        try:
            tree, needs = _fill(writer, iter(tar), limits)
        except LayerError:
            if size is not None:
                # A blob that was damaged on its way is not the image's fault: its digest knows.
                _drain(incoming)
                _verify(blob, digest, size, subject)
            raise
        _drain(incoming)  # what stands behind the compressed data counts for the digest
        _verify(blob, digest, size, subject)
        _verify_diff_id(tar, diff_id, subject)
        try:
            image_size = writer.finish(tree.root, _uuid(tar.digest), _label(tar.digest))
        except ValueError as error:
            raise LayerError("write the image", subject, str(error), "have the image rebuilt smaller") from None
        root = append_tree(file, image_size, _uuid(tar.digest))[0] if verity else None
        file.commit()
    return ConvertedLayer(
        diff_id=tar.digest,
        digest=blob.digest,
        compressed_size=blob.size,
        tar_size=tar.size,
        image_size=image_size,
        entries=tree.entries,
        verity_root=root,
        needs=needs,
    )


def _fill(writer: ErofsWriter, chunks: Iterator[bytes], limits: Limits) -> tuple[Tree, Needs]:
    """Read the whole archive into a tree, file data into the image."""
    stream = ByteStream(_flushed(chunks, writer))
    archive = TarStream(stream, limits)
    tree = Tree(limits)
    for entry in archive:
        try:
            if entry.xattrs:
                xattr_body(entry.xattrs, {})  # for its complaint: the name is known here
            node = tree.add(entry)
            if node is None:
                continue
            if entry.segments is not None:
                writer.store_sparse(node, entry.segments, archive.data())
            elif entry.size:
                writer.store(node, archive.data())
        except ValueError as error:
            raise _refused(entry, str(error)) from None
    stream.drain()
    return tree, tree.finish()


def _drain(chunks: Iterator[bytes]) -> None:
    for _ in chunks:
        pass


def _flushed(chunks: Iterator[bytes], writer: ErofsWriter) -> Iterator[bytes]:
    """Have the writer let go of one chunk before the next one is made."""
    for chunk in chunks:
        yield chunk
        writer.flush()


def _chunks(source: Iterable[bytes] | BinaryIO) -> Iterator[bytes]:
    read = getattr(source, "read", None)
    if read is None:
        yield from source
        return
    while chunk := read(INPUT_CHUNK):
        yield chunk


def _limited(
    chunks: Iterator[bytes], size: int | None, on_progress: Callable[[int], None] | None
) -> Iterator[bytes]:
    """The blob, as long as it is not longer than it should be."""
    done = 0
    for chunk in chunks:
        done += len(chunk)
        if size is not None and done > size:
            raise LayerError(
                "download the layer", "its blob", f"it is longer than the {size} bytes its manifest promises"
            )
        yield chunk
        if on_progress:
            on_progress(done)


def _bounded(chunks: Iterator[bytes], blob: _Counted, limits: Limits) -> Iterator[bytes]:
    """The tar stream, as long as it does not outgrow what a layer may be."""
    done = 0
    for chunk in chunks:
        done += len(chunk)
        if done > limits.expanded_bytes:
            cause = f"it is larger than {limits.expanded_bytes} bytes unpacked"
        elif done > limits.ratio_floor and done > limits.ratio * blob.size:
            cause = f"{blob.size} bytes of it unpack to more than {done}"
        else:
            yield chunk
            continue
        raise LayerError("decompress", "the layer", cause, "raise the limit if you trust the image")


def _algorithm(digest: str | None) -> str:
    """The hash algorithm that *digest* names; OCI's default if there is none."""
    if digest is None:
        return "sha256"
    if problem := digest_problem(digest):
        raise LayerError("verify", digest, problem)
    return digest.partition(":")[0]


def _verify(blob: _Counted, digest: str | None, size: int | None, subject: str) -> None:
    if size is not None and blob.size != size:
        raise LayerError(
            "verify", subject, f"{blob.size} bytes came where its manifest promises {size}", "pull it again"
        )
    if digest is not None and blob.digest != digest:
        raise LayerError(
            "verify", subject, f"its content has the digest {blob.digest}",
            "pull it again; if it stays so, the registry or a proxy delivers something else",
        )  # fmt: skip


def _verify_diff_id(tar: _Counted, diff_id: str | None, subject: str) -> None:
    if diff_id is not None and tar.digest != diff_id:
        raise LayerError(
            "verify", subject, f"it unpacks to {tar.digest} where its config promises {diff_id}",
            "have the image rebuilt: its config and its layers do not belong together",
        )  # fmt: skip


def _uuid(diff_id: str) -> bytes:
    """A UUID that is the layer's: its diff ID's first half, marked as version 8 (RFC 9562, vendor-specific)."""
    raw = bytearray.fromhex(diff_id.partition(":")[2])[:16]
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return UUID(bytes=bytes(raw)).bytes


def _label(diff_id: str) -> bytes:
    """The volume's label: how the diff ID begins, for people with `blkid`."""
    return diff_id.partition(":")[2][:_LABEL_LENGTH].encode()


def _refused(entry: Entry, cause: str) -> LayerError:
    name = entry.name[:200].decode("utf-8", "backslashreplace")
    return LayerError("unpack the layer", name, cause, "have the image rebuilt without this file")
