"""OVA packages: the tar, its manifest, and the descriptor against a content model of DSP8023 1.1.1 written by hand.

The schema itself is not part of this project (DMTF publishes it); where `OVF_SCHEMA` names a copy of dsp8023_1.1.1.xsd
with its imports beside it, xmllint validates every descriptor with it too.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest
from dissect.hypervisor.disk.vmdk import VMDK

from imagebuild.errors import MediaError
from imagebuild.media import ovf
from imagebuild.media.build import build_ova
from imagebuild.media.iso import Content, plan_iso
from imagebuild.media.ova import DISK_ALIGNMENT, Drive, Firmware, Machine, manifest
from tests.judges import needs_tool
from tests.media_parts import EPOCH, recipe
from tether.sources.guestinfo import ovf_property

OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"
VSSD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData}"
VMW = "{http://www.vmware.com/schema/ovf}"
SPEC = b'{"id": "x", "process": {"args": ["a \\"quoted\\" <word> & more\\n"]}}'

# Element -> its children in the order of the schema (those that may be missing included), and the attributes it needs.
CHILDREN = {
    "Envelope": ["References", "DiskSection", "NetworkSection", "VirtualSystem"],
    "References": ["File"],
    "DiskSection": ["Info", "Disk"],
    "NetworkSection": ["Info", "Network"],
    "Network": ["Description"],
    "VirtualSystem": ["Info", "Name", "OperatingSystemSection", "VirtualHardwareSection", "ProductSection"],
    "OperatingSystemSection": ["Info", "Description"],
    "VirtualHardwareSection": ["Info", "System", "Item", f"{VMW}Config"],
    "ProductSection": ["Info", "Product", "Property"],
    "Property": ["Label"],
}
REQUIRED = {"File": ["href", "id"], "Disk": ["diskId", "capacity"], "Network": ["name"], "VirtualSystem": ["id"],
            "OperatingSystemSection": ["id"], "Property": ["key", "type"]}  # fmt: skip
# rasd elements that must be there, and what a device must say besides (ResourceType -> elements).
ITEM = ["ElementName", "InstanceID", "ResourceType"]
DEVICES = {"3": ["VirtualQuantity"], "4": ["AllocationUnits", "VirtualQuantity"], "6": ["ResourceSubType"],
           "10": ["Connection", "ResourceSubType"], "15": ["HostResource", "Parent"],
           "17": ["HostResource", "Parent", "AddressOnParent"], "20": ["ResourceSubType"],
           "21": ["ResourceSubType"]}  # fmt: skip


def check(element: ET.Element) -> None:
    """Order of children and required attributes, all the way down."""
    name = element.tag.removeprefix(OVF)
    model = CHILDREN.get(name)
    found = [child.tag.removeprefix(OVF) for child in element]
    if model is not None:
        assert [model.index(child) for child in found] == sorted(model.index(child) for child in found), name
    for attribute in REQUIRED.get(name, []):
        assert element.get(f"{OVF}{attribute}"), f"{name} without {attribute}"
    if name in ("Item", "System"):
        names = [child.tag for child in element]
        assert names == sorted(names), "CIM settings are in alphabetical order"
    for child in element:
        check(child)


def devices(root: ET.Element) -> dict[str, dict[str, str]]:
    """ResourceType -> settings."""
    items = root.iter(f"{OVF}Item")
    found = [{child.tag.removeprefix(RASD): child.text or "" for child in item} for item in items]
    assert len({item["InstanceID"] for item in found}) == len(found)
    for item in found:
        assert all(key in item for key in [*ITEM, *DEVICES[item["ResourceType"]]]), item
    return {item["ResourceType"]: item for item in found}


def made(folder: Path, drive: Drive, firmware: Firmware = Firmware.EFI) -> Path:
    path = folder / "hello.ova"
    files = {"vch/spec.json": Content(SPEC)}
    build_ova(recipe(files=files), Machine(memory_mib=128, drive=drive, firmware=firmware), path)
    return path


def unpacked(path: Path, into: Path) -> list[str]:
    into.mkdir()
    with tarfile.open(path, "r:") as tar:
        names = tar.getnames()
        tar.extractall(into)
    return names


@pytest.mark.parametrize("drive", list(Drive))
def test_the_tar_has_the_descriptor_first_and_a_true_manifest(tmp_path: Path, drive: Drive) -> None:
    names = unpacked(made(tmp_path, drive), tmp_path / "out")
    boot = "hello.iso" if drive is Drive.CD else "hello-disk1.vmdk"
    assert names == ["hello.ovf", "hello.mf", boot]
    lines = (tmp_path / "out/hello.mf").read_text().splitlines()
    assert lines == [f"SHA256({name})= {hashlib.sha256((tmp_path / 'out' / name).read_bytes()).hexdigest()}"
                     for name in ("hello.ovf", boot)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hello.ova", "out"]


@pytest.mark.parametrize("drive", list(Drive))
@pytest.mark.parametrize("firmware", list(Firmware))
def test_the_descriptor_follows_the_schema_and_names_the_devices(
    tmp_path: Path, drive: Drive, firmware: Firmware
) -> None:
    unpacked(made(tmp_path, drive, firmware), tmp_path / "out")
    path = tmp_path / "out/hello.ovf"
    root = ET.parse(path).getroot()
    check(root)
    found = devices(root)
    assert found["3"]["VirtualQuantity"] == "1"
    assert found["4"]["VirtualQuantity"] == "128"
    assert found["6"]["ResourceSubType"] == "VirtualSCSI"
    assert found["10"]["ResourceSubType"] == "VmxNet3"
    assert "21" in found
    assert [config.attrib[f"{VMW}value"] for config in root.iter(f"{VMW}Config")] == [firmware.value]
    drive_item = found["15"] if drive is Drive.CD else found["17"]
    (file,) = root.iter(f"{OVF}File")
    assert file.get(f"{OVF}size") == str((tmp_path / "out" / str(file.get(f"{OVF}href"))).stat().st_size)
    kind, reference = drive_item["HostResource"].removeprefix("ovf:/").split("/")
    if kind == "disk":
        (disk,) = root.iter(f"{OVF}Disk")
        assert disk.get(f"{OVF}diskId") == reference
        reference = str(disk.get(f"{OVF}fileRef"))
    assert file.get(f"{OVF}id") == reference
    assert {found["6"]["InstanceID"], found.get("20", found["6"])["InstanceID"]} >= {drive_item["Parent"]}


def test_the_spec_is_a_guestinfo_property_in_one_line(tmp_path: Path) -> None:
    unpacked(made(tmp_path, Drive.DISK), tmp_path / "out")
    root = ET.parse(tmp_path / "out/hello.ovf").getroot()
    (section,) = root.iter(f"{OVF}ProductSection")
    (found,) = section.iter(f"{OVF}Property")
    assert f"{section.get(f'{OVF}class')}.{found.get(f'{OVF}key')}" == "guestinfo.vch.spec"
    assert found.get(f"{OVF}userConfigurable") == "true"
    assert found.get(f"{OVF}value") == '{"id":"x","process":{"args":["a \\"quoted\\" <word> & more\\n"]}}'
    (hardware,) = root.iter(f"{OVF}VirtualHardwareSection")
    assert hardware.get(f"{OVF}transport") == "com.vmware.guestInfo"
    # What vSphere makes of it for the VM, and the agent of that.
    value = quoteattr(str(found.get(f"{OVF}value")))
    environment = f"<Environment><PropertySection><Property oe:key='guestinfo.vch.spec' oe:value={value}/>"
    assert ovf_property(environment.encode(), "guestinfo.vch.spec") == str(found.get(f"{OVF}value")).encode()


def test_the_disk_is_the_iso_with_its_backup_table_at_the_end(tmp_path: Path) -> None:
    unpacked(made(tmp_path, Drive.DISK), tmp_path / "out")
    with (tmp_path / "out/hello-disk1.vmdk").open("rb") as file:
        disk = VMDK(file)
        data = disk.read(disk.size)
    capacity = plan_iso(recipe(files={"vch/spec.json": Content(SPEC)}, granule=DISK_ALIGNMENT)).size
    assert len(data) == capacity
    assert capacity % DISK_ALIGNMENT == 0
    assert data[32769:32774] == b"CD001"
    assert data[512:520] == data[-512:-504] == b"EFI PART"


def test_two_builds_are_identical(tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        digests.append(hashlib.sha256(made(tmp_path / name, Drive.DISK).read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    with tarfile.open(tmp_path / "one/hello.ova") as tar:
        assert {(entry.uid, entry.uname, entry.mtime, entry.mode) for entry in tar} == {(0, "", EPOCH, 0o644)}


@pytest.mark.parametrize("name", ["hello.tar", "-x.ova", "a b.ova", "ü.ova"])
def test_a_name_that_no_importer_takes_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MediaError, match="importer would not take"):
        build_ova(recipe(), Machine(), tmp_path / name)


@pytest.mark.parametrize("machine", [Machine(memory_mib=1), Machine(cpus=0), Machine(cpus=1000)])
def test_a_machine_that_cannot_be_is_refused(tmp_path: Path, machine: Machine) -> None:
    with pytest.raises(MediaError, match="make no machine"):
        build_ova(recipe(), machine, tmp_path / "a.ova")
    assert list(tmp_path.iterdir()) == []


def test_manifest_lines_are_as_the_specification_writes_them() -> None:
    assert manifest({"a.ovf": "00"}) == b"SHA256(a.ovf)= 00\n"


@needs_tool("xmllint")
@pytest.mark.parametrize("capacity", [0, 1 << 20])
def test_another_parser_reads_the_descriptor(tmp_path: Path, capacity: int) -> None:
    path = tmp_path / "a.ovf"
    boot = ovf.BootFile("a", 5, capacity)
    path.write_text(ovf.descriptor(ovf.VirtualMachine("a&b<c>", boot, 64, 1, "efi", (("k", "l", "<&\"'\n"),))))
    schema = os.environ.get("OVF_SCHEMA")
    options = ["--nonet", *(["--schema", schema] if schema else [])]
    subprocess.run(["xmllint", "--noout", *options, str(path)], check=True, capture_output=True, timeout=60)
