"""The descriptor of an OVA: which virtual machine its files are for.  Pure text.

Source: DMTF DSP0243 1.1.1 (OVF) and its schema DSP8023 1.1.1; the resource subtypes and `vmw:Config` keys are what
vSphere itself writes when it exports such a machine.  The schema wants the children of an Item in alphabetical order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

HARDWARE = "vmx-13"  # of vSphere 6.5: the first whose EFI firmware and SATA drives need no workaround
_OS_ID = 101  # CIM_OperatingSystem.OsType: Linux, 64 bit
_OS_TYPE = "other3xLinux64Guest"  # the newest "other Linux" that vmx-13 knows
NETWORK = "VM Network"  # what every vSphere has; an import asks which one to take in its place
TRANSPORT = "com.vmware.guestInfo"
STREAM_OPTIMIZED = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"

_NAMESPACES = {
    "xmlns": "http://schemas.dmtf.org/ovf/envelope/1",
    "xmlns:ovf": "http://schemas.dmtf.org/ovf/envelope/1",
    "xmlns:rasd": "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData",
    "xmlns:vssd": "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData",
    "xmlns:vmw": "http://www.vmware.com/schema/ovf",
}
# rasd:ResourceType (CIM_ResourceAllocationSettingData, "ResourceType")
_CPU, _MEMORY, _SCSI, _ETHERNET, _CD, _DISK, _SATA, _SERIAL = 3, 4, 6, 10, 15, 17, 20, 21
_MIB = 1 << 20


@dataclass(frozen=True)
class BootFile:
    """What the machine starts from: an ISO in its CD-ROM drive, or (with `capacity`, in bytes) a disk."""

    name: str
    size: int
    capacity: int = 0


@dataclass(frozen=True)
class VirtualMachine:
    """A machine as an importer is to make it.  `properties` are key, what it is for, value; all below "guestinfo."."""

    name: str
    boot: BootFile
    memory_mib: int
    cpus: int
    firmware: str
    properties: tuple[tuple[str, str, str], ...] = ()


class _Element:
    """An XML element with text or children."""

    def __init__(self, name: str, attributes: dict[str, str] | None = None, *children: _Element | str) -> None:
        self.name, self.attributes, self.children = name, attributes or {}, children

    def lines(self, indent: str = "") -> Iterable[str]:
        """The element, nested."""
        head = self.name + "".join(f" {key}={quoteattr(value)}" for key, value in self.attributes.items())
        if not self.children:
            yield f"{indent}<{head}/>"
        elif len(self.children) == 1 and isinstance(self.children[0], str):
            yield f"{indent}<{head}>{escape(self.children[0])}</{self.name}>"
        else:
            yield f"{indent}<{head}>"
            for child in self.children:
                assert isinstance(child, _Element)
                yield from child.lines(indent + "  ")
            yield f"{indent}</{self.name}>"


def descriptor(machine: VirtualMachine) -> str:
    """The text of the .ovf file."""
    boot = machine.boot
    file = _Element("File", {"ovf:href": boot.name, "ovf:id": "boot", "ovf:size": str(boot.size)})
    disks = [_disk_section(boot)] if boot.capacity else []
    envelope = _Element(
        "Envelope", _NAMESPACES,
        _Element("References", {}, file),
        *disks,
        _section("NetworkSection", "The network that the machine is connected to", _Element(
            "Network", {"ovf:name": NETWORK}, _Element("Description", {}, "The network of the container"))),
        _Element("VirtualSystem", {"ovf:id": machine.name},
                 _info("A container that is a virtual machine"),
                 _Element("Name", {}, machine.name),
                 _Element("OperatingSystemSection", {"ovf:id": str(_OS_ID), "vmw:osType": _OS_TYPE},
                          _info("The kernel"), _Element("Description", {}, "Linux, 64 bit")),
                 _hardware(machine),
                 *([_product(machine)] if machine.properties else [])),
    )  # fmt: skip
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + "\n".join(envelope.lines()) + "\n"


def _info(text: str) -> _Element:
    return _Element("Info", {}, text)


def _section(name: str, info: str, *children: _Element) -> _Element:
    return _Element(name, {}, _info(info), *children)


def _disk_section(boot: BootFile) -> _Element:
    disk = _Element("Disk", {
        "ovf:capacity": str(boot.capacity), "ovf:capacityAllocationUnits": "byte", "ovf:diskId": "bootdisk",
        "ovf:fileRef": "boot", "ovf:format": STREAM_OPTIMIZED, "ovf:populatedSize": str(boot.capacity),
    })  # fmt: skip
    return _section("DiskSection", "The disk that the machine starts from", disk)


def _hardware(machine: VirtualMachine) -> _Element:
    system = _Element(
        "System", {},
        *(_Element(f"vssd:{key}", {}, value) for key, value in (
            ("ElementName", "Virtual Hardware Family"), ("InstanceID", "0"),
            ("VirtualSystemIdentifier", machine.name), ("VirtualSystemType", HARDWARE))),
    )  # fmt: skip
    items = [
        _item(1, _CPU, f"{machine.cpus} virtual CPU(s)", AllocationUnits="hertz * 10^6", VirtualQuantity=machine.cpus),
        _item(2, _MEMORY, f"{machine.memory_mib} MiB of memory", AllocationUnits="byte * 2^20",
              VirtualQuantity=machine.memory_mib),
        _item(3, _SCSI, "SCSI controller 0", Address="0", ResourceSubType="VirtualSCSI"),
        *_drive(machine.boot),
        _item(6, _ETHERNET, "Ethernet 1", AddressOnParent="7", AutomaticAllocation="true", Connection=NETWORK,
              ResourceSubType="VmxNet3"),
        # Not connected until somebody says to what: an import must not fail on a host without a serial port.
        _item(7, _SERIAL, "Serial port 1: the console", required=False, AutomaticAllocation="false",
              ResourceSubType="vmware.serialport.device"),
    ]
    firmware = _Element("vmw:Config", {"ovf:required": "false", "vmw:key": "firmware", "vmw:value": machine.firmware})
    hardware = _section("VirtualHardwareSection", "The hardware that the machine needs", system, *items, firmware)
    hardware.attributes["ovf:transport"] = TRANSPORT
    return hardware


def _drive(boot: BootFile) -> list[_Element]:
    """The disk at the SCSI controller, or a SATA controller with the CD-ROM drive."""
    if boot.capacity:
        return [_item(5, _DISK, "Hard disk 1", AddressOnParent="0", HostResource="ovf:/disk/bootdisk", Parent=3)]
    return [
        _item(4, _SATA, "SATA controller 0", Address="0", ResourceSubType="vmware.sata.ahci"),
        _item(5, _CD, "CD/DVD drive 1", AddressOnParent="0", AutomaticAllocation="true",
              HostResource="ovf:/file/boot", Parent=4, ResourceSubType="vmware.cdrom.iso"),
    ]  # fmt: skip


def _item(number: int, kind: int, name: str, *, required: bool = True, **settings: str | int) -> _Element:
    """A device; its settings are those of CIM_ResourceAllocationSettingData."""
    every = {"ElementName": name, "InstanceID": number, "ResourceType": kind, **settings}
    children = [_Element(f"rasd:{key}", {}, str(every[key])) for key in sorted(every)]
    return _Element("Item", {} if required else {"ovf:required": "false"}, *children)


def _product(machine: VirtualMachine) -> _Element:
    properties = [
        _Element("Property", {"ovf:key": key, "ovf:type": "string", "ovf:userConfigurable": "true",
                              "ovf:value": value}, _Element("Label", {}, label))
        for key, label, value in machine.properties
    ]  # fmt: skip
    section = _section("ProductSection", "What the machine can read with guestinfo", _Element("Product", {},
                                                                                             machine.name), *properties)
    section.attributes.update({"ovf:class": "guestinfo", "ovf:required": "false"})
    return section
