"""What the boot image is said to contain: reasons, packages, the bill of materials."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from imagebuild.boot import initramfs, packages, reasons, runtime
from imagebuild.boot.inventory import Inventory, Item, take_inventory
from imagebuild.boot.kernel import Modules
from imagebuild.boot.kernel_cache import Kernel
from imagebuild.boot.packages import Package
from imagebuild.cli.initramfs import document, manifest
from imagebuild.errors import InitramfsError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inventory:
    monkeypatch.setattr(initramfs, "ZSTD_LEVEL", 1)
    return take_inventory(Kernel("pico", "6.1", tmp_path, None, tmp_path, None), tmp_path)


class TestReasons:
    def test_first_importers_are_seen(self) -> None:
        first = reasons.importers(runtime.find_runtime(), ROOT, ("tether.__main__", "json"))
        assert first["tether.__main__"] == ""
        assert first["tether.agent"] == "tether.__main__"
        assert first["json.decoder"] == "json"
        assert first["encodings"] == reasons.AT_START

    def test_imports_for_types_only_do_not_count(self) -> None:
        text = "if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    from c import d\n"
        assert reasons.mentions({"m": text}) == {"b": ["m"], "c": ["m"], "c.d": ["m"]}

    def test_sentences(self) -> None:
        say = reasons.module_reason
        assert say("x", {"x": "y"}, {}) == "imported by y"
        late = "tether.sources.specfile"
        assert say("json", {"json": ""}, {"json": [late]}) == f"imported when needed by {late}"
        assert say("tether.__main__", {"tether.__main__": ""}, {}) == "what /init runs"
        assert say("encodings.ascii", {}, {}).startswith("a codec")

    def test_drivers(self) -> None:
        modules = Modules([Path("a.ko")], {"b": [Path("a.ko"), Path("b.ko")]})
        assert reasons.driver_reasons(modules) == {"a.ko": "loaded at boot", "b.ko": "loaded when b is asked for"}


class TestInventory:
    def test_everything_has_a_reason_and_sums_up(self, inventory: Inventory) -> None:
        found = {item.name: item for item in inventory.items}
        assert found["init"].why == "the kernel runs it as PID 1"
        assert "_ctypes" in found["lib/x86_64-linux-gnu/libffi.so.8"].why
        modules = {module.name: module for module in inventory.modules}
        assert modules["json"].why.startswith("imported when needed by tether.")
        assert modules["json"].file == "late.modules"
        assert modules["tether.agent"].why == "imported by tether.__main__"
        assert modules["tether.agent"].file == "start.modules"
        assert sum(m.size for m in inventory.modules if m.file == "late.modules") == found["late.modules"].size
        assert sum(inventory.totals().values()) == sum(item.size for item in inventory.items)
        assert document(inventory)["compressed"] == inventory.image.size

    def test_the_manifest_has_the_digests(self, inventory: Inventory) -> None:
        told = json.loads(manifest(inventory))
        assert told["image"]["sha256"] == hashlib.sha256(inventory.image.path.read_bytes()).hexdigest()
        (init,) = (row for row in told["files"] if row["name"] == "init")
        assert init["size"] == len(initramfs.init_script(ROOT))
        assert init["sha256"] == hashlib.sha256(initramfs.init_script(ROOT)).hexdigest()

    def test_an_image_of_other_files_is_refused(self, inventory: Inventory, tmp_path: Path) -> None:
        inventory.image.path.write_bytes(initramfs.compressed(b"something else"))
        with pytest.raises(InitramfsError, match="not made of the files"):
            take_inventory(inventory.kernel, tmp_path)


class TestPackages:
    def test_what_dpkg_says(self) -> None:
        text = "libc6:amd64: /lib/x/libc.so.6\ndiversion by dash from: /bin/sh\na, b: /usr/share\n"
        assert packages.parse_search(text) == {"/lib/x/libc.so.6": "libc6:amd64"}

    @pytest.mark.skipif(not Path("/var/lib/dpkg/status").exists(), reason="no Debian host")
    def test_this_host(self) -> None:
        interpreter = Path("/usr/bin/python3.11")
        found = packages.owners([interpreter, ROOT / "setup.cfg"])
        assert set(found) == {interpreter}
        assert found[interpreter].name == "python3.11-minimal"

    def test_no_files(self) -> None:
        assert packages.owners([]) == {}


def test_the_bill_names_agent_kernel_and_packages(inventory: Inventory) -> None:
    sbom = pytest.importorskip("imagebuild.boot.sbom")
    pytest.importorskip("cyclonedx")
    driver = Item("lib/modules/x.ko", 1, "0" * 64, "kernel modules", "loaded at boot", None)
    full = Inventory(inventory.image, inventory.kernel, (*inventory.items, driver), ())
    owned = {Path("/usr/bin/python3.11"): Package("python3.11-minimal", "3.11.2-6", "amd64", "python3.11")}
    first = sbom.bill(full, "0.1.0", owned)
    assert first == sbom.bill(full, "0.1.0", owned)
    told = json.loads(first)
    assert "timestamp" not in told["metadata"]
    by_name = {component["name"]: component for component in told["components"]}
    assert set(by_name) == {"tether", "linux", "python3.11-minimal"}
    assert by_name["python3.11-minimal"]["purl"] == "pkg:deb/debian/python3.11-minimal@3.11.2-6?arch=amd64"
    assert {"name": "vch:file", "value": "usr/bin/python3.11"} in by_name["python3.11-minimal"]["properties"]
