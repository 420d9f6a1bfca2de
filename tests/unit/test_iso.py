"""ISO and FAT images, judged by programs and libraries that are not ours."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import subprocess
from pathlib import Path
from typing import Any

import pycdlib
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagebuild.errors import MediaError, StoreError
from imagebuild.media import appliance, fat, hybrid, iso9660
from imagebuild.media.build import medium_size, source_date_epoch
from imagebuild.media.iso import Content, IsoPlan, plan_iso, write_iso
from imagebuild.oci.imageconfig import RunConfig
from tests.judges import needs_tool
from tests.media_parts import CD, EPOCH, INITRAMFS, ISOLINUX, KERNEL, LOADER, recipe


def written(plan: IsoPlan, folder: Path) -> Path:
    path = folder / "a.iso"
    write_iso(plan, path)
    return path


def output(*command: str | Path) -> str:
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


def efi_volume(path: Path, folder: Path) -> Path:
    """The FAT volume that the ISO's GPT shows, as a file of its own."""
    table = json.loads(output("sfdisk", "--json", path))["partitiontable"]
    (part,) = table["partitions"]
    volume = folder / "efi.img"
    data = path.read_bytes()
    volume.write_bytes(data[part["start"] * 512 : (part["start"] + part["size"]) * 512])
    return volume


# ISO 9660


def test_another_reader_finds_every_file_with_its_content(tmp_path: Path) -> None:
    files = {"vch/layers/001.erofs": Content(b"layer one"), "vch/layers/002.erofs": Content(b"")}
    path = written(plan_iso(recipe(files=files)), tmp_path)
    expected = {
        "/VMLINUZ.;1": KERNEL, "/INITRD.IMG;1": INITRAMFS, "/EFI/BOOT/BOOTX64.EFI;1": LOADER.efi,
        "/ISOLINUX/LDLINUX.C32;1": LOADER.ldlinux, "/VCH/LAYERS/001.EROFS;1": b"layer one",
        "/VCH/LAYERS/002.EROFS;1": b"",
    }  # fmt: skip
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    try:
        for name, content in expected.items():
            sink = io.BytesIO()
            iso.get_file_from_iso_fp(sink, iso_path=name)
            assert sink.getvalue() == content, name
        found = [f"{folder.rstrip('/')}/{name}" for folder, _, names in iso.walk(iso_path="/") for name in names]
        assert len(found) == len(expected) + 4  # isolinux.bin, isolinux.cfg, loader.conf, vch.conf
    finally:
        iso.close()


@needs_tool("isoinfo")
def test_isoinfo_reads_the_descriptor_and_both_boot_entries(tmp_path: Path) -> None:
    plan = plan_iso(recipe())
    path = written(plan, tmp_path)
    said = output("isoinfo", "-d", "-i", path)
    assert f"Volume id: {plan.label}\n" in said
    assert f"Volume size is: {plan.blocks}\n" in said
    assert "Bootid 88 (bootable)" in said
    assert path.stat().st_size == plan.size


@needs_tool("xorriso")
def test_xorriso_recognises_a_hybrid_for_bios_and_uefi(tmp_path: Path) -> None:
    path = written(plan_iso(recipe()), tmp_path)
    done = subprocess.run(["xorriso", "-indev", path, "-report_el_torito", "plain", "-report_system_area", "plain"],
                          check=True, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert any("BIOS" in line and line.startswith("El Torito boot img") for line in lines)
    assert any("UEFI" in line and line.startswith("El Torito boot img") for line in lines)
    assert any("boot-info-table isohybrid-suitable" in line for line in lines)
    assert any(line.startswith("System area summary: MBR") and line.endswith("GPT") for line in lines)
    assert "SORRY" not in done.stderr
    assert "FAILURE" not in done.stderr


def test_the_boot_information_is_what_isolinux_checks() -> None:
    program = iso9660.with_boot_information(ISOLINUX, 77)
    descriptor, place, length, checksum = struct.unpack_from("<4I", program, 8)
    words = program[64:].ljust(-(-len(program[64:]) // 4) * 4, b"\0")
    assert (descriptor, place, length) == (16, 77, len(ISOLINUX))
    assert checksum == sum(struct.unpack(f"<{len(words) // 4}I", words)) % (1 << 32)
    assert program[64:] == ISOLINUX[64:]


def test_a_file_of_more_than_four_gigabytes_has_several_extents(tmp_path: Path) -> None:
    size = (9 << 30) + 5
    nothing = iso9660.Extent(0, 0)
    volume = iso9660.Volume("BIG", EPOCH, 5_000_000, nothing, nothing)
    path = tmp_path / "big.iso"
    with path.open("wb") as file:
        file.write(bytes(32768) + iso9660.metadata({"big.img": iso9660.Extent(100, size)}, volume))
        file.truncate(5_000_000 * 2048)
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    try:
        record: Any = iso.get_record(iso_path="/BIG.IMG;1")
        lengths = []
        while record is not None:
            lengths.append(record.data_length)
            record = record.data_continuation
        assert sum(lengths) == size
        assert all(length % 2048 == 0 for length in lengths[:-1])
    finally:
        iso.close()


def test_many_files_and_deep_folders_stay_sorted_and_within_blocks(tmp_path: Path) -> None:
    files = {f"vch/d{number % 5}/sub/file_{number:04}.bin": Content(b"%d" % number) for number in range(300)}
    path = written(plan_iso(recipe(files=files)), tmp_path)
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    try:
        for number in (0, 7, 299):
            sink = io.BytesIO()
            iso.get_file_from_iso_fp(sink, iso_path=f"/VCH/D{number % 5}/SUB/FILE_{number:04}.BIN;1")
            assert sink.getvalue() == b"%d" % number
    finally:
        iso.close()


@pytest.mark.parametrize("name", ["über.img", "a b", "a.b.c", "x" * 30, "", "a//b", "dir-name/x"])
def test_a_name_that_iso_9660_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(MediaError, match="ISO 9660 has no name"):
        iso9660.iso_name(name)


# the FAT volume, which shares the contents


@needs_tool("fsck.fat")
@needs_tool("mcopy")
def test_the_efi_volume_is_clean_and_has_the_same_kernel(tmp_path: Path) -> None:
    plan = plan_iso(recipe())
    path = written(plan, tmp_path)
    volume = efi_volume(path, tmp_path)
    output("fsck.fat", "-n", volume)
    for name, content in (("vmlinuz", KERNEL), ("initrd.img", INITRAMFS), ("EFI/BOOT/BOOTX64.EFI", LOADER.efi)):
        output("mcopy", "-n", "-i", volume, f"::{name}", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == content
        (tmp_path / "out").unlink()
    assert "linux /vmlinuz" in output("mtype", "-i", volume, "::loader/entries/vch.conf")
    assert path.read_bytes().count(KERNEL) == 1


NAMES = st.text("abcXYZ019-_ .é", min_size=1, max_size=20).filter(
    lambda name: name.strip(". ") == name and not name.startswith("."))


@needs_tool("fsck.fat")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.dictionaries(st.tuples(NAMES, NAMES), st.integers(0, 200_000), min_size=1, max_size=12))
def test_any_tree_makes_a_clean_volume(tmp_path: Path, tree: dict[tuple[str, str], int]) -> None:
    folded: dict[str, int] = {}
    for (folder, name), size in tree.items():
        folded[f"d{folder}/{name}".lower()] = size
    files = list(folded.items())
    volume = fat.plan_volume(files, label="TEST", serial=1, epoch=EPOCH, limit=32 << 20)
    path = tmp_path / "volume.img"
    path.write_bytes(volume.head.ljust(volume.size, b"\0"))
    output("fsck.fat", "-n", path)
    places = sorted((volume.offsets[name], size) for name, size in files)
    assert all(at % 2048 == 0 and at >= len(volume.head) for at, size in places if size)
    ends = [at + size for at, size in places if size]
    assert all(end <= at for end, (at, size) in zip(ends, [p for p in places if p[1]][1:], strict=False))


def test_a_volume_larger_than_el_torito_can_describe_is_refused() -> None:
    with pytest.raises(MediaError, match=r"32|31"):
        plan_iso(recipe(kernel=bytes(33 << 20)))


# disk


@needs_tool("sfdisk")
def test_both_partition_tables_are_sound_and_the_code_knows_its_isolinux(tmp_path: Path) -> None:
    path = written(plan_iso(recipe()), tmp_path)
    assert "No errors detected" in output("sfdisk", "--verify", path)
    data = path.read_bytes()
    block = struct.unpack_from("<Q", data, 432)[0] // 4
    assert data[block * 2048 + 64 :].startswith(ISOLINUX[64:])
    assert data[:432] == LOADER.disk_code
    assert data[446 + 4] == 0xEE
    assert data[446 + 16] == 0x80
    assert len(data) % 2048 == 0
    assert hybrid.SYSTEM_AREA == 32768


# the same parts are the same bytes


def test_two_builds_are_identical_and_any_change_changes_the_label(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        layer = folder / "layer.erofs"
        layer.write_bytes(b"l" * 5000)
        plan = plan_iso(recipe(files={"vch/layers/001.erofs": Content(layer, b"digest")}))
        made.append((plan.label, hashlib.sha256(written(plan, folder).read_bytes()).hexdigest()))
    assert made[0] == made[1]
    labels = {plan_iso(recipe(**change)).label for change in (
        {}, {"kernel": KERNEL + b"1"}, {"initramfs": b"x"}, {"epoch": EPOCH + 1}, {"arguments": ("quiet",)},
        {"files": {"vch/spec.json": Content(b"{}")}}, {"files": {"vch/spec.json": Content(b"{1}")}},
    )}  # fmt: skip
    assert len(labels) == 7


def test_the_spec_is_announced_to_the_agent_on_both_command_lines() -> None:
    plan = plan_iso(recipe(files={"vch/spec.json": Content(b"{}")}))
    texts = [piece.data for piece in plan.pieces if isinstance(piece.data, bytes) and piece.size < 500]
    assert sum(f"tether.spec=guestinfo,iso:{plan.label}".encode() in text for text in texts) == 2


def test_source_date_epoch_is_honoured_and_nonsense_refused() -> None:
    assert source_date_epoch({"SOURCE_DATE_EPOCH": "1234567890"}) == 1234567890
    assert source_date_epoch({}) == EPOCH
    for nonsense in ("yesterday", "-1", "99999999999", "1.5"):
        with pytest.raises(MediaError, match="SOURCE_DATE_EPOCH"):
            source_date_epoch({"SOURCE_DATE_EPOCH": nonsense})


# limits


def test_an_iso_larger_than_its_medium_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    layer = tmp_path / "layer.erofs"
    with layer.open("wb") as file:
        file.truncate(CD)
    with pytest.raises(MediaError, match="the medium holds 737,280,000") as caught:
        plan_iso(recipe(files={"vch/layers/001.erofs": Content(layer, b"digest")}))
    assert "--max-size" in caught.value.remedy


def test_a_folder_that_is_missing_is_not_the_stores_fault(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"No such file or directory \(make the folder first\)"):
        write_iso(plan_iso(recipe()), tmp_path / "nowhere/a.iso")


def test_a_layer_that_shrinks_meanwhile_leaves_no_iso(tmp_path: Path) -> None:
    layer = tmp_path / "layer.erofs"
    layer.write_bytes(bytes(5000))
    content = Content(layer, b"digest")
    plan = plan_iso(recipe(files={"vch/layers/001.erofs": content}))
    layer.write_bytes(bytes(100))
    with pytest.raises(MediaError, match="changed meanwhile"):
        write_iso(plan, tmp_path / "a.iso")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer.erofs"]


def test_media_have_names_and_sizes() -> None:
    assert medium_size("cd") == CD
    assert medium_size("8G") == 8 << 30
    assert medium_size("700m") == 700 << 20
    with pytest.raises(ValueError, match="no size of a medium"):
        medium_size("much")


# the spec


RUN = RunConfig(
    env=("PATH=/bin",), entrypoint=("/bin/app",), cmd=("-v",), user="app", working_dir="srv/../data",
    stop_signal="SIGQUIT", volumes=(), exposed_ports=(), labels={}, healthcheck=None, shell=None,
)  # fmt: skip


class _Config:
    run = RUN


class _Layer:
    def __init__(self, path: Path) -> None:
        self.path, self.diff_id = path, "sha256:" + "1" * 64


class _Image:
    """The part of an image in the store that an ISO needs."""

    id = "sha256:" + "ab" * 32
    config = _Config()

    def __init__(self, folder: Path) -> None:
        self.layers = [_Layer(folder / f"{number}.erofs") for number in range(2)]
        for layer in self.layers:
            layer.path.write_bytes(bytes(4096))


def spec_of(folder: Path, **given: Any) -> dict[str, Any]:
    files = appliance.appliance_files(_Image(folder), given)  # type: ignore[arg-type]
    data = files["vch/spec.json"].data
    assert isinstance(data, bytes)
    spec: dict[str, Any] = json.loads(data)
    return spec


def test_the_spec_follows_from_the_image_and_the_agent_accepts_it(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    assert spec["process"] == {"args": ["/bin/app", "-v"], "env": ["PATH=/bin"], "cwd": "/data", "user": "app"}
    assert spec["stop_signal"] == 3
    assert [layer["disk"]["file"] for layer in spec["root"]["layers"]] == [
        "vch/layers/001.erofs", "vch/layers/002.erofs"]


def test_what_the_user_gives_replaces_key_by_key(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, process={"args": ["sh"]}, network={"hostname": "web"}, tmpfs=[{"path": "/tmp"}])
    assert spec["process"]["args"] == ["sh"]
    assert spec["process"]["user"] == "app"
    assert spec["network"] == {"hostname": "web"}
    assert spec["tmpfs"] == [{"path": "/tmp"}]


@pytest.mark.parametrize(("given_spec", "said"), [
    ({"process": {"argz": []}}, "process.argz: unknown key"),
    ({"process": {"args": "sh"}}, "process.args: expected a list"),
    ({"identity": {}}, "every VM would have the same"),
    ({"network": {"hostname": ""}}, "hostname"),
    ({"volumes": [{"path": "/v"}]}, "disk"),
])
def test_a_spec_that_the_agent_would_refuse_is_refused_at_once(
    tmp_path: Path, given_spec: dict[str, Any], said: str
) -> None:
    with pytest.raises(MediaError, match=said):
        spec_of(tmp_path, **given_spec)


def test_a_spec_without_an_image_must_be_complete() -> None:
    with pytest.raises(MediaError, match="required key is missing"):
        appliance.appliance_files(None, {"process": {"args": ["sh"]}})
    assert appliance.appliance_files(None, {}) == {}


def test_a_spec_file_that_is_none_says_so(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    with pytest.raises(MediaError, match="No such file"):
        appliance.read_given(path)
    for text in ("{", "[]", "{}", "7"):
        path.write_text(text)
        with pytest.raises(MediaError, match="JSON"):
            appliance.read_given(path)
