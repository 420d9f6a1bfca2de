"""Where a spec comes from: the list of sources, SMBIOS tables, guestinfo by a scripted hypervisor."""

from __future__ import annotations

import base64
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether import hostlink
from tether.faults import TetherError
from tether.kernel.kernelargs import KernelArguments
from tether.link.transport import Transport
from tether.sources import alone, backdoor, guestinfo, medium
from tether.sources import search as sources
from tether.sources.guestinfo import ovf_property, read_guestinfo
from tether.sources.search import each, oem_value
from tether.sources.specfile import parse_spec

SPEC = b'{"id": "x", "root": {"layers": []}, "network": {"hostname": "h"}, "process": {"args": ["true"]}}'


def structure(kind: int, body: bytes, *strings: bytes) -> bytes:
    """One of SMBIOS."""
    texts = b"".join(text + b"\0" for text in strings) or b"\0"
    return struct.pack("<BBH", kind, 4 + len(body), 7) + body + texts + b"\0"


class TestTheList:
    def test_in_order_and_with_their_places(self) -> None:
        assert list(each("fw_cfg:opt/a/b,guestinfo:k,smbios,iso:L")) == [
            ("fw_cfg", "opt/a/b"), ("guestinfo", "k"), ("smbios", ""), ("iso", "L")]  # fmt: skip

    def test_auto_stands_for_three(self) -> None:
        assert [kind for kind, _ in each("auto,iso:L")] == ["fw_cfg", "guestinfo", "smbios", "iso"]

    def test_a_spec_on_the_command_line_has_commas_of_its_own(self) -> None:
        assert list(each('smbios,cmdline:{"a":[1,2]}')) == [("smbios", ""), ("cmdline", '{"a":[1,2]}')]

    @pytest.mark.parametrize("word", ["nfs:x", "iso", "iso:", "smbios:x", "auto:x", "fw_cfg,nothing"])
    def test_what_is_not_known(self, word: str) -> None:
        with pytest.raises(TetherError, match="unknown source"):
            list(each(word))

    def test_the_label_of_the_iso_among_them(self) -> None:
        assert sources.label_in("guestinfo,iso:VCH_1") == "VCH_1"
        assert sources.label_in("guestinfo") == ""


@pytest.fixture
def fw_cfg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder in the place of QEMU's; no other source has anything."""
    monkeypatch.setattr(sources, "_FW_CFG_FOLDER", str(tmp_path))
    monkeypatch.setattr(sources, "_DMI_TABLE", str(tmp_path / "DMI"))
    monkeypatch.setattr(guestinfo.read_guestinfo, "__defaults__", (lambda: None,))
    return tmp_path


def put(folder: Path, name: str, text: bytes) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "raw").write_bytes(text)


class TestFinding:
    def test_the_first_that_has_one(self, fw_cfg: Path) -> None:
        put(fw_cfg, "opt/guestinfo/vch.spec", SPEC)
        (fw_cfg / "DMI").write_bytes(structure(11, b"\1", b"vch.spec=" + SPEC))
        assert sources.find("fw_cfg,smbios,guestinfo").name == "SMBIOS OEM string vch.spec"
        assert sources.find("fw_cfg,guestinfo,smbios").name == "guestinfo.vch.spec"
        assert sources.there_is_one()

    def test_an_empty_one_is_none(self, fw_cfg: Path) -> None:
        put(fw_cfg, "opt/guestinfo/vch.spec", b" \n")
        assert not sources.there_is_one()
        assert sources.find(f"guestinfo,cmdline:{SPEC.decode()}").text == SPEC

    def test_none_has_one(self, fw_cfg: Path) -> None:
        with pytest.raises(TetherError, match=r"is not in fw_cfg:opt/a, smbios") as caught:
            sources.find("fw_cfg:opt/a,smbios")
        assert "cmdline:SPEC" in caught.value.hint

    @pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes,
                                        lambda text: base64.b64encode(text).rstrip(b"=")])
    def test_base64_of_any_kind(self, fw_cfg: Path, encode: object) -> None:
        text = SPEC.replace(b"true", "\u00ff\u00fe~~?>".encode())
        put(fw_cfg, "opt/org.vch/spec", encode(text))  # type: ignore[operator]
        assert sources.find("fw_cfg").text == text

    def test_what_is_neither(self, fw_cfg: Path) -> None:
        put(fw_cfg, "opt/org.vch/spec", b"[1, 2]")
        with pytest.raises(TetherError, match=r"fw_cfg opt/org.vch/spec: is neither a JSON object nor base64"):
            sources.find("fw_cfg,smbios")

    def test_what_is_too_long(self, fw_cfg: Path) -> None:
        put(fw_cfg, "opt/org.vch/spec", b"{" * (sources.SPEC_BYTES + 1))
        with pytest.raises(TetherError, match="has more than 1048576 bytes"):
            sources.find("fw_cfg")

    def test_a_wrong_key_is_named_with_its_source(self, fw_cfg: Path) -> None:
        put(fw_cfg, "opt/org.vch/spec", SPEC.replace(b"args", b"argz"))
        with pytest.raises(TetherError, match=r"fw_cfg opt/org.vch/spec: process.argz: unknown key"):
            alone.find_spec("fw_cfg")

    def test_layers_on_the_iso_when_the_spec_is_from_elsewhere(
        self, fw_cfg: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mounted: list[str] = []
        monkeypatch.setattr(medium, "mount_medium", mounted.append)
        put(fw_cfg, "opt/guestinfo/vch.spec", SPEC)
        alone.find_spec("guestinfo,iso:L")
        assert mounted == []
        put(fw_cfg, "opt/org.vch/spec", SPEC.replace(b"[]", b'[{"disk": {"file": "a"}}]'))
        alone.find_spec("fw_cfg,iso:L")
        assert mounted == ["L"]


class TestTheLine:
    """Without a port and without being told to, a VM looks around; with a port nothing of that is done."""

    def test_the_port_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        near, far = os.pipe()
        monkeypatch.setattr("tether.link.transport_virtio.open_virtio_port",
                            lambda _name: Transport(near, "port"))
        monkeypatch.setattr(sources, "there_is_one", lambda: pytest.fail("it has looked"))
        line, other = hostlink.open_link(KernelArguments())
        assert other is None
        assert isinstance(line, hostlink.FixedLine)
        os.close(near)
        os.close(far)

    def test_there_is_no_port(self, monkeypatch: pytest.MonkeyPatch, fw_cfg: Path) -> None:
        monkeypatch.setattr(hostlink, "LOOK_AFTER_S", 0.0)
        put(fw_cfg, "opt/org.vch/spec", SPEC)
        _, other = hostlink.open_link(KernelArguments())
        assert other is not None
        other.close()


class TestSmbios:
    TABLE = structure(0, b"\1\2" + bytes(18), b"SeaBIOS") + structure(11, b"\2", b"other", b"vch.spec={1}") + \
        structure(127, b"")  # fmt: skip

    def test_among_others(self) -> None:
        assert oem_value(self.TABLE, b"vch.spec=") == b"{1}"
        assert oem_value(self.TABLE, b"x=") is None

    def test_only_in_oem_strings(self) -> None:
        assert oem_value(structure(1, b"\1", b"vch.spec=x"), b"vch.spec=") is None

    @given(st.binary(max_size=300))
    def test_any_table_comes_to_an_end(self, table: bytes) -> None:
        oem_value(table, b"vch.spec=")
        oem_value(structure(11, b"") + table, b"vch.spec=")

    def test_a_torn_table(self) -> None:
        for at in range(len(self.TABLE)):
            assert oem_value(self.TABLE[:at], b"vch.spec=") in (None, b"{1}")


class Hypervisor:
    """VMware's side of the backdoor, from open-vm-tools' description of it."""

    def __init__(self, **variables: str) -> None:
        self.variables = {f"guestinfo.{name}": value.encode() for name, value in variables.items()}
        self.open = False
        self.request, self.size, self.answer = b"", 0, b""
        self.broken_at = -1

    def __call__(self, ebx: int, ecx: int, edx: int) -> tuple[int, int, int, int]:
        assert edx & 0xFFFF == 0x5658
        if ecx == 10:
            return 6, 0x564D5868, 2, edx
        step, command, channel = ecx >> 16, ecx & 0xFFFF, edx >> 16
        assert command == 30
        if step == self.broken_at:
            return 0, 0, 30, edx
        if step == 0:
            assert ebx == 0x49435052
            self.open = True
            return 0, 0, 0x1001E, 5 << 16
        assert (self.open, channel) == (True, 5)
        return self._step(step, ebx)

    def _step(self, step: int, ebx: int) -> tuple[int, int, int, int]:
        if step == 1:
            self.request, self.size = b"", ebx
            return 0, 0, 0x81001E, 0
        if step == 2:
            self.request += struct.pack("<I", ebx)
            return 0, 0, 0x1001E, 0
        if step == 3:
            name = self.request[: self.size].removeprefix(b"info-get ").decode()
            found = self.variables.get(name)
            self.answer = b"0 No value found" if found is None else b"1 " + found
            return 0, len(self.answer), 0x83001E, 9 << 16
        if step == 4:
            assert ebx == 9
            word, self.answer = self.answer[:4].ljust(4, b"\0"), self.answer[4:]
            return 0, struct.unpack("<I", word)[0], 0x1001E, 0
        if step == 6:
            self.open = False
        return 0, 0, 0x1001E, 0


def environment(value: str) -> str:
    return ("<?xml version='1.0'?>\n<Environment xmlns:oe='http://schemas.dmtf.org/ovf/environment/1' oe:id=''>"
            "<PropertySection>\n <Property oe:key='guestinfo.other' oe:value='1'/>\n"
            f'  <Property oe:key="guestinfo.vch.spec" oe:value="{value}"/>\n</PropertySection></Environment>')


class TestGuestinfo:
    def ask(self, hypervisor: Hypervisor) -> bytes | None:
        found = read_guestinfo("vch.spec", lambda: backdoor.open_rpc(hypervisor))
        assert not hypervisor.open, "the channel is given back"
        return found

    @pytest.mark.parametrize("value", ["", "x", "1234", "12345", "{" + "a" * 5000 + "}"])
    def test_a_variable(self, value: str) -> None:
        assert self.ask(Hypervisor(**{"vch.spec": value})) == value.encode()

    def test_no_such_variable(self) -> None:
        assert self.ask(Hypervisor()) is None

    def test_a_property_of_the_ova(self) -> None:
        given = '{&quot;a&quot;: &quot;&lt;b&gt; &amp;amp; &#10;&#x41; > c&quot;}'
        assert self.ask(Hypervisor(ovfEnv=environment(given))) == b'{"a": "<b> &amp; \nA > c"}'
        assert self.ask(Hypervisor(ovfEnv="<Environment/>")) is None

    def test_the_variable_comes_before_the_property(self) -> None:
        assert self.ask(Hypervisor(ovfEnv=environment("b"), **{"vch.spec": "a"})) == b"a"

    @pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
    def test_a_hypervisor_that_breaks_off(self, step: int) -> None:
        hypervisor = Hypervisor(**{"vch.spec": "x"})
        hypervisor.broken_at = step
        with pytest.raises(TetherError, match=f"GuestRPC: step {step}"):
            self.ask(hypervisor)

    def test_where_it_opens_no_channel_there_is_none(self) -> None:
        hypervisor = Hypervisor()
        hypervisor.broken_at = 0
        assert backdoor.open_rpc(hypervisor) is None

    def test_no_backdoor(self) -> None:
        def nobody(ebx: int, ecx: int, edx: int) -> tuple[int, int, int, int]:
            return 0xFFFFFFFF, ebx, ecx, edx

        assert backdoor.open_rpc(nobody) is None

    @pytest.mark.parametrize("text", ["&#;", "&#x;", "&#xzz;", "&#99999999999999999999;", "&nothing;", "&", "& ;"])
    def test_what_is_no_character_stays(self, text: str) -> None:
        assert self.ask(Hypervisor(ovfEnv=environment(text))) == text.encode()

    @given(st.text(max_size=200))
    def test_any_document(self, text: str) -> None:
        ovf_property(text.encode("utf-8", "replace"), "k")
        ovf_property(f"<Property {text}".encode("utf-8", "replace"), "k")


def test_the_tiny_spec_of_these_tests_is_one() -> None:
    assert parse_spec(SPEC, "x").id == "x"
