"""--mount, read as Docker reads it; NFS volumes up to the spec."""

from __future__ import annotations

import csv
import io
import re
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagebuild.oci.imageconfig import RunConfig
from tether.spec import Identity, Share
from vch.errors import HostError, UsageError
from vch.options.mount_option import csv_fields, parse_mount
from vch.options.run_options import parse_run
from vch.options.share_plan import find_servers, share_of
from vch.options.spec_plan import Placement, build_spec
from vch.options.values import ShareMount, TmpfsMount, VolumeMount
from vch.sandbox import option_words

NFS = 'type=volume,dst=/data,volume-driver=local,volume-opt=type=nfs,volume-opt=device=:/export,"volume-opt=o={}"'
IMAGE = RunConfig(env=(), entrypoint=None, cmd=("run",), user="", working_dir="", stop_signal="",
                  volumes=("/data", "/data/below", "/else"), exposed_ports=(), labels={}, healthcheck=None, shell=None)
GATEWAY = "10.0.2.2"


class TestCsv:
    @given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), min_size=1))
    def test_what_a_writer_of_csv_wrote_is_read(self, fields: list[str]) -> None:
        written = io.StringIO()
        csv.writer(written, lineterminator="\n").writerow(fields)
        assert csv_fields(written.getvalue()) == fields

    @given(st.text('a,"=\n'))
    def test_anything_is_read_or_refused(self, text: str) -> None:
        try:
            fields = csv_fields(text)
        except ValueError as error:
            said = str(error)
        else:
            assert fields == next(csv.reader(io.StringIO(text.lstrip("\n"), newline=""), strict=True))
            return
        assert said.startswith("parse error on line 1, column ") or (said, text.strip("\n")) == ("EOF", "")

    @pytest.mark.parametrize(("text", "error"), [
        ("", "EOF"),
        ('a,b"c', 'parse error on line 1, column 4: bare " in non-quoted field'),
        ('"a"b', 'parse error on line 1, column 3: extraneous or missing " in quoted-field'),
        ('"ab', 'parse error on line 1, column 4: extraneous or missing " in quoted-field'),
    ])  # fmt: skip
    def test_quotes_where_they_do_not_belong(self, text: str, error: str) -> None:
        with pytest.raises(ValueError, match=f"^{re.escape(error)}$"):
            csv_fields(text)


class TestParse:
    @pytest.mark.parametrize(("text", "mount"), [
        ("src=notes,dst=/n", VolumeMount("notes", "/n")),
        ("type=volume,source=notes,target=/n/,readonly", VolumeMount("notes", "/n", read_only=True)),
        ("source=notes,destination=/n,ro=0,volume-nocopy", VolumeMount("notes", "/n", no_copy=True)),
        ("type=VOLUME,dst=/n,volume-nocopy=true,volume-driver=local", VolumeMount("", "/n", no_copy=True)),
        ("src=notes,dst=/n,ro=true,consistency=cached", VolumeMount("notes", "/n", read_only=True)),
        ("type=tmpfs,dst=/t", TmpfsMount("/t", "noexec,nosuid,nodev,rw")),
        ("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=0770,ro",
         TmpfsMount("/t", "noexec,nosuid,nodev,ro,size=1048576,mode=770")),
        ("type=tmpfs,dst=/t,tmpfs-size=0", TmpfsMount("/t", "noexec,nosuid,nodev,rw")),
        (NFS.format("addr=nas,nfsvers=4"), ShareMount("/data", "nfs", ":/export", "addr=nas,nfsvers=4", "nas")),
        (f"{NFS.format('addr=nas,ro')},ro", ShareMount("/data", "nfs", ":/export", "addr=nas,ro", "nas", True)),
        ("src=named,dst=/d,volume-opt=type=nfs4,volume-opt=device=nas:/", ShareMount("/d", "nfs4", "nas:/", "", "nas")),
    ])  # fmt: skip
    def test_what_is_meant(self, text: str, mount: object) -> None:
        assert parse_mount(text) == mount

    @pytest.mark.parametrize(("text", "error"), [
        ("dst", "invalid field 'dst' must be a key=value pair"),
        ("what=1,dst=/d", "unexpected key 'what' in 'what=1'"),
        ("type=,dst=/d", "type is required"),
        ("type=volume", "target is required"),
        ("dst=/d,ro=maybe", "invalid value for ro: maybe"),
        ("dst=/d,volume-nocopy=2", "invalid value for volume-nocopy: 2"),
        ("type=tmpfs,dst=/d,tmpfs-size=much", "invalid value for tmpfs-size: much"),
        ("type=tmpfs,dst=/d,tmpfs-mode=8", "invalid value for tmpfs-mode: 8"),
        ("type=tmpfs,dst=/d,volume-nocopy", "cannot mix 'volume-*' options with mount type 'tmpfs'"),
        ("dst=/d,tmpfs-size=1", "cannot mix 'tmpfs-*' options with mount type 'volume'"),
        ("dst=/d,bind-propagation=shared", "cannot mix 'bind-*' options with mount type 'volume'"),
        ("type=npipe,dst=/d", 'invalid mount config for type "npipe": mount type unknown'),
        ("dst=d", 'invalid mount config for type "volume": invalid mount path: \'d\' mount path must be absolute'),
        ("dst=/", 'invalid mount config for type "volume": invalid specification: destination can\'t be \'/\''),
        ("dst=/d,ro", 'invalid mount config for type "volume": must not set ReadOnly mode when using anonymous '
                      "volumes"),
        ("type=tmpfs,src=x,dst=/d", 'invalid mount config for type "tmpfs": field Source must not be specified'),
        ("src=x,dst=/d", "x: no name for a volume, only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"),
        ("type=bind,src=/etc,dst=/d", "/etc: folders of the host cannot be mounted yet; name a volume instead, and it "
                                      "is made on first use"),
        ("dst=/d,volume-driver=flocker", 'error looking up volume plugin flocker: plugin "flocker" not found'),
        ("dst=/d,volume-opt=o=addr=x", 'missing required option: "type"'),
        ("dst=/d,volume-opt=type=nfs", 'missing required option: "device"'),
        ("dst=/d,volume-opt=size=1", 'invalid option: "size"'),
        ("dst=/d,volume-opt=type=cifs,volume-opt=device=//x", "volume-opt=type=cifs: only nfs and nfs4 can be mounted"),
        ("dst=/d,volume-opt=type=nfs,volume-opt=device=/x",
         "volume-opt=device=/x: an NFS export is written [SERVER]:/PATH"),
        ("dst=/d,volume-opt=type=nfs,volume-opt=device=:/x",
         'the NFS server is not named: add "volume-opt=o=addr=HOST"'),
    ])  # fmt: skip
    def test_what_is_refused(self, text: str, error: str) -> None:
        with pytest.raises(ValueError, match=f"^{re.escape(error)}$"):
            parse_mount(text)

    def test_a_folder_of_the_host_is_refused_as_with_v(self) -> None:
        said = []
        for words in (["-v", "/etc:/d"], ["--mount", "type=bind,src=/etc,dst=/d"]):
            with pytest.raises(UsageError) as raised:
                parse_run([*words, "x"], {})
            said.append(str(raised.value).partition("flag: ")[2])
        assert said[0] == said[1]

    @pytest.mark.parametrize(("device", "options", "server"), [
        ("[fec0::2]:/x", "", "[fec0::2]"), ("nas:/x", "addr=a,ro,addr=b", "b"), ("nas:/x:/y", "", "nas"),
    ])  # fmt: skip
    def test_the_server_is_the_last_that_is_said(self, device: str, options: str, server: str) -> None:
        mount = parse_mount(f'dst=/d,volume-opt=type=nfs,volume-opt=device={device},"volume-opt=o={options}"')
        assert isinstance(mount, ShareMount)
        assert mount.server == server


class TestRun:
    def test_it_is_sorted_by_what_it_is(self) -> None:
        options = parse_run(["--mount", "src=notes,dst=/n", "--mount=type=tmpfs,dst=/t", "-v", "/v", "--mount",
                             NFS.format("addr=10.0.2.2"), "x"], {})  # fmt: skip
        assert [mount.path for mount in options.volumes] == ["/v", "/n"]
        assert [mount.path for mount in options.tmpfs] == ["/t"]
        assert [mount.path for mount in options.shares] == ["/data"]

    def test_errors_are_pflags(self) -> None:
        with pytest.raises(UsageError, match='invalid argument "dst" for "--mount" flag: invalid field'):
            parse_run(["--mount", "dst", "x"], {})

    def test_one_thing_at_a_place(self) -> None:
        with pytest.raises(UsageError, match="Duplicate mount point: /data"):
            parse_run(["-v", "/data", "--mount", NFS.format("addr=10.0.2.2"), "x"], {})

    def test_without_a_network_there_is_no_nfs(self) -> None:
        with pytest.raises(UsageError, match="conflicting options: an NFS volume and --network none"):
            parse_run(["--network", "none", "--mount", NFS.format("addr=10.0.2.2"), "x"], {})

    def test_programs_give_it_by_its_name(self) -> None:
        assert option_words({"mount": ["dst=/a", "dst=/b"]}) == ["--mount=dst=/a", "--mount=dst=/b"]

    def test_what_the_image_declares_there_and_below_is_on_the_server(self) -> None:
        options = parse_run(["--mount", NFS.format("addr=10.0.2.2,nfsvers=4"), "x"], {})
        spec = build_spec(options, IMAGE, Placement("ab", "02:00:00:00:00:01", 1), Identity(entropy=b"", clock_ns=0))
        assert [volume.path for volume in spec.volumes] == [b"/else"]
        assert spec.shares == (Share(path=b"/data", source="10.0.2.2:/export", options="addr=10.0.2.2,nfsvers=4"),)


def share(options: str, device: str = ":/export", server: str = "nas") -> ShareMount:
    return ShareMount("/data", "nfs", device, options, server)


class TestServers:
    def found(self, server: str, **hosts: str) -> str:
        return find_servers([share(f"addr={server}", server=server)], hosts, GATEWAY)[server]

    def test_numbers_and_words_for_the_host(self) -> None:
        assert self.found("192.0.2.7") == "192.0.2.7"
        assert self.found("[2001:DB8::1]") == "2001:db8::1"
        assert self.found("host-gateway") == GATEWAY
        assert self.found("nas", nas="192.0.2.9") == "192.0.2.9"
        assert self.found("nas", nas="host-gateway") == GATEWAY

    def test_names_are_looked_up_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        both = [(socket.AF_INET6, 0, 0, "", ("2001:db8::1", 0, 0, 0)), (socket.AF_INET, 0, 0, "", ("192.0.2.1", 0))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
        assert self.found("nas.example") == "192.0.2.1"
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both[:1])
        assert self.found("nas.example") == "2001:db8::1"

    @pytest.mark.parametrize("name", ["nas.invalid", "a" * 64, "no..name"])
    def test_a_name_that_nobody_knows(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(HostError) as raised:
            self.found(name)
        assert str(raised.value) == (f"find NFS server: {name}: Name or service not known "
                                     "(give its address: addr=192.0.2.7)")  # fmt: skip

    @pytest.mark.parametrize("name", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
    def test_the_loopback_is_the_containers_own(self, name: str) -> None:
        with pytest.raises(UsageError) as raised:
            self.found(name)
        words = "is the container itself in there; the host is 10.0.2.2, or addr=host-gateway"
        assert str(raised.value).endswith(words)


class TestShareOf:
    @pytest.mark.parametrize(("mount", "address", "source", "options"), [
        (share("addr=nas,nfsvers=4,soft"), "192.0.2.7", "192.0.2.7:/export", "addr=192.0.2.7,nfsvers=4,soft"),
        (share("port=2050,addr=nas"), "2001:db8::1", "[2001:db8::1]:/export", "addr=2001:db8::1,port=2050"),
        (share("", "nas:/a:/b"), "192.0.2.7", "nas:/a:/b", "addr=192.0.2.7"),
        (share("addr=x,,addr=nas", "[fec0::2]:/e"), "fec0::2", "[fec0::2]:/e", "addr=fec0::2"),
    ])  # fmt: skip
    def test_the_kernel_is_told_a_number(self, mount: ShareMount, address: str, source: str, options: str) -> None:
        made = share_of(mount, {mount.server: address})
        assert (made.source, made.options, made.kind, made.path) == (source, options, "nfs", b"/data")
