"""The bill of materials of a boot image, as CycloneDX 1.5 JSON (https://cyclonedx.org/docs/1.5/json/).

Components: the agent, the Debian packages that files are from, the kernel whose modules are carried.
cyclonedx-python-lib writes and orders it; it is heavy and an extra, so it is imported here, late.  It would add a
random serial number and the time of day; ours follow from the image, so the same image has the same bill.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from imagebuild.boot.inventory import AGENT_GROUP, DRIVER_GROUP, Inventory
from imagebuild.boot.packages import Package, owners
from imagebuild.errors import InitramfsError

if TYPE_CHECKING:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component

NAMESPACE = uuid.UUID("5f3b7a42-6c1e-4e0d-9d7c-0b1f6f2f8a11")  # of our serial numbers (RFC 4122, version 5)
DISTRIBUTION = "debian"


def write_sbom(inventory: Inventory, version: str) -> bytes:
    """The bill; `version` is the agent's.  Raises InitramfsError without the library, or dpkg."""
    sources = [item.source for item in inventory.items if item.source and item.group not in (AGENT_GROUP, DRIVER_GROUP)]
    return bill(inventory, version, owners(sources))


def bill(inventory: Inventory, version: str, packages: Mapping[Path, Package]) -> bytes:
    """The bill, given who owns which file."""
    try:
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot5
    except ImportError as error:
        raise InitramfsError("write SBOM", "cyclonedx-python-lib", "it is not installed",
                             "pip install cyclonedx-python-lib, or give --no-sbom") from error
    digest = hashlib.sha256("".join(item.sha256 for item in inventory.items).encode()).hexdigest()
    root = Component(name="vch-initramfs", type=ComponentType.FIRMWARE, version=digest[:32], bom_ref="initramfs")
    components = [_agent(inventory, version), *_debian(inventory, packages), *_kernel(inventory)]
    bom = Bom(components=components, metadata=BomMetaData(component=root), serial_number=uuid.uuid5(NAMESPACE, digest))
    bom.register_dependency(root, components)
    document = json.loads(JsonV1Dot5(bom).output_as_string())
    document["metadata"].pop("timestamp", None)
    document["metadata"].pop("tools", None)
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def _agent(inventory: Inventory, version: str) -> Component:
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import LicenseExpression

    files = [item.name for item in inventory.items if item.group == AGENT_GROUP]
    return Component(name="tether", type=ComponentType.APPLICATION, version=version, bom_ref="tether",
                     licenses=[LicenseExpression("Apache-2.0")], properties=_files(files))


def _debian(inventory: Inventory, packages: Mapping[Path, Package]) -> list[Component]:
    """A component a package, with the files of the image that are from it."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    files: dict[Package, list[str]] = {}
    for item in inventory.items:
        if item.source is not None and item.source in packages:
            files.setdefault(packages[item.source], []).append(item.name)
    made = []
    for package, names in sorted(files.items()):
        url = PackageURL("deb", DISTRIBUTION, package.name, package.version, {"arch": package.architecture})
        made.append(Component(name=package.name, type=ComponentType.LIBRARY, version=package.version, purl=url,
                              bom_ref=str(url), description=f"Debian source package {package.source}",
                              properties=_files(names)))
    return made


def _kernel(inventory: Inventory) -> list[Component]:
    """The kernel, where the image has modules of it."""
    from cyclonedx.model.component import Component, ComponentType

    names = [item.name for item in inventory.items if item.group == DRIVER_GROUP]
    if not names:
        return []
    return [Component(name="linux", type=ComponentType.OPERATING_SYSTEM, version=inventory.kernel.release,
                      bom_ref="linux", description=inventory.kernel.name, properties=_files(names))]


def _files(names: list[str]) -> list[Property]:
    """The files a component brings, as properties of ours."""
    from cyclonedx.model import Property

    return [Property(name="vch:file", value=name) for name in names]
