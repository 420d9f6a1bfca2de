"""Trees that hypothesis thinks up, through tar and EROFS, compared with what the kernel shows."""

from __future__ import annotations

import io
import stat
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagebuild.layer.erofs_reader import ErofsReader, Inode
from imagebuild.layer.layer import convert
from tests.judges import Seen, fsck, mounted, needs_mount, needs_tool, snapshot
from tests.torture import Archive

NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: not set(name) & {0, ord("/")} and name not in (b".", b"..") and not name.startswith(b".wh.")
)
SIZES = st.sampled_from([0, 1, 100, 4000, 4031, 4032, 4033, 4095, 4096, 4097, 9000, 70_000])
XATTRS = st.dictionaries(
    st.from_regex(r"user\.[a-z]{1,20}", fullmatch=True), st.binary(min_size=1, max_size=300), max_size=3
)
MODES = st.integers(0, 0o7777)
OWNERS = st.sampled_from([0, 1, 65535, 65536, 4_294_967_294])
TIMES = st.sampled_from(["0", "1700000000", "1700000000.000000001", "-1.5", "9999999999.999999999"])


@dataclass
class File:
    """One file as it is to be."""

    kind: str
    content: bytes = b""
    target: bytes = b""
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    mtime: str = "0"
    xattrs: dict[str, bytes] = field(default_factory=dict)


@st.composite
def trees(draw: st.DrawFn) -> dict[bytes, File]:
    """Files by their paths, parents first."""
    tree: dict[bytes, File] = {}
    folders = [b""]
    for _ in range(draw(st.integers(0, 25))):
        parent = draw(st.sampled_from(folders))
        path = parent + b"/" + draw(NAMES) if parent else draw(NAMES)
        if path in tree:
            continue
        file = File(
            draw(st.sampled_from(["file", "file", "file", "folder", "link", "fifo", "hard"])),
            mode=draw(MODES),
            owner=(draw(OWNERS), draw(OWNERS)),
            mtime=draw(TIMES),
        )
        if file.kind == "file":
            size = draw(SIZES)
            file.content = (draw(st.binary(min_size=1, max_size=20)) * size)[:size]
            file.xattrs = draw(XATTRS)
        elif file.kind == "folder":
            folders.append(path)
            file.xattrs = draw(XATTRS)
        elif file.kind == "link":
            file.target = draw(st.binary(min_size=1, max_size=200).filter(lambda target: 0 not in target))
            file.mode = 0o777
        elif file.kind == "hard":
            others = [other for other, its in tree.items() if its.kind == "file"]
            if not others:
                continue
            file = File("hard", target=draw(st.sampled_from(others)))
        tree[path] = file
    return tree


def pack(tree: dict[bytes, File]) -> bytes:
    """The archive of *tree*."""
    types = {"file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "fifo": tarfile.FIFOTYPE,
             "hard": tarfile.LNKTYPE}  # fmt: skip
    archive = Archive()
    for path, file in tree.items():
        # A name could end like the "./" of other archives; "./" in front keeps tarfile from taking it for one.
        archive.add(
            b"./" + path, file.content, type=types[file.kind], mode=file.mode, owner=file.owner, mtime=file.mtime,
            link=b"./" + file.target if file.kind == "hard" else file.target, xattrs=file.xattrs,
        )  # fmt: skip
    return archive.bytes()


@needs_mount
@needs_tool("fsck.erofs")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(trees())
def test_any_tree_arrives(tree: dict[bytes, File]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image"
        convert(io.BytesIO(pack(tree)), destination=image)
        fsck(image)
        with mounted(image, Path(folder) / "root") as root:
            seen = snapshot(root)
        assert seen.keys() == tree.keys()
        for path, file in tree.items():
            compare(seen[path], tree[file.target] if file.kind == "hard" else file)
        read_again(image, tree)


def compare(seen: Seen, file: File) -> None:
    """What the kernel shows of one file against what it is to be."""
    kinds = {"file": stat.S_IFREG, "folder": stat.S_IFDIR, "link": stat.S_IFLNK, "fifo": stat.S_IFIFO}
    assert stat.S_IFMT(seen.mode) == kinds[file.kind]
    assert stat.S_IMODE(seen.mode) == file.mode
    assert (seen.uid, seen.gid) == file.owner
    assert seen.mtime_ns == nanoseconds(file.mtime)
    assert dict(seen.xattrs) == file.xattrs
    if file.kind == "file":
        assert seen.size == len(file.content)


def nanoseconds(text: str) -> int:
    """A time in text as a whole number."""
    whole, _, fraction = text.lstrip("-").partition(".")
    return (int(whole) * 10**9 + int(fraction.ljust(9, "0") or 0)) * (-1 if text[0] == "-" else 1)


def read_again(image: Path, tree: dict[bytes, File]) -> None:
    """Our own reader finds the same files and content."""
    with ErofsReader(image) as reader:

        def find(path: bytes) -> Inode:
            inode = reader.root()
            for name in path.split(b"/"):
                inode = reader.inode(reader.children(inode)[name])
            return inode

        for path, file in tree.items():
            inode, file = find(path), tree[file.target] if file.kind == "hard" else file  # noqa: PLW2901
            if file.kind == "file":
                assert b"".join(reader.data(inode)) == file.content
            assert inode.entry.link == file.target
            assert inode.entry.mtime * 10**9 + inode.entry.mtime_ns == nanoseconds(file.mtime)
            assert (inode.entry.uid, inode.entry.gid, inode.entry.mode) == (*file.owner, file.mode)
            assert inode.entry.xattrs == {name.encode(): value for name, value in file.xattrs.items()}
