"""Runs inside a machine: mounts layers from disks and has GNU tar compare them with the archives they were made of.

    python3 layer_judge.py mount DISK COUNT       partition N at /judge/DISK/N, the stack of all at /judge/DISK/1-COUNT
    python3 layer_judge.py compare DISK N TARS M  partition M of the disk TARS with what is mounted for partition N
    python3 layer_judge.py compare DISK 1-N ...   the same with a stack of the partitions up to N

DISK is a disk's serial number.  Needs Debian's mount and tar.
"""

import os
import subprocess
import sys
from pathlib import Path

JUDGE = Path("/judge")
UNITS = "the page 0x80 of SCSI's vital product data: four bytes of header, then the serial number"


def device(serial: str, partition: int) -> str:
    """A device node for a partition; the container's /dev has none, so it is made here."""
    for disk in Path("/sys/class/block").iterdir():
        page = disk / "device/vpd_pg80"
        if page.exists() and page.read_bytes()[4:].decode().strip() == serial:
            node = JUDGE / f"{serial}-{partition}"
            if not node.exists():
                major, minor = (disk / f"{disk.name}{partition}/dev").read_text().split(":")
                os.mknod(node, 0o60600, os.makedev(int(major), int(minor)))
            return str(node)
    raise SystemExit(f"there is no disk {serial} ({UNITS})")


def run(*words: str) -> None:
    """A command that must succeed."""
    subprocess.run(words, check=True)


def stack(disk: str, upto: int) -> str:
    """Where the partitions 1 to `upto` are stacked."""
    where = JUDGE / disk / f"1-{upto}"
    if not where.exists():
        where.mkdir()
        nothing = JUDGE / "nothing"  # overlayfs wants two lower directories where there is no upper one
        nothing.mkdir(exist_ok=True)
        lower = ":".join([f"{JUDGE}/{disk}/{number}" for number in range(upto, 0, -1)] + [str(nothing)])
        run("mount", "-t", "overlay", "-o", f"ro,lowerdir={lower}", "overlay", str(where))
    return str(where)


def mount(disk: str, count: int) -> None:
    """Mounts all layers of a disk."""
    for number in range(1, count + 1):
        where = JUDGE / disk / str(number)
        where.mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "erofs", "-o", "ro", device(disk, number), str(where))
    stack(disk, count)


def compare(disk: str, layer: str, tars: str, archive: int) -> int:
    """Has tar say what is different; whiteouts are no files in a layer, so they are left out."""
    where = stack(disk, int(layer[2:])) if layer.startswith("1-") else str(JUDGE / disk / layer)
    words = ["tar", "--compare", "--numeric-owner", "--exclude=.wh.*", "--warning=no-unknown-keyword"]
    words += ["--file", device(tars, archive), "--directory", where]
    return subprocess.run(words, stderr=subprocess.STDOUT, check=False).returncode


if __name__ == "__main__":
    if sys.argv[1] == "mount":
        mount(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(compare(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])))
