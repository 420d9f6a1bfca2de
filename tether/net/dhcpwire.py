"""DHCPv4 messages, from bytes and to bytes (RFC 2131, RFC 2132), and the IP and UDP headers around them.

Everything that comes from the network is untrusted: a message that is damaged, or says something that cannot be, is a
ValueError here and never more.
"""

import struct
from _socket import inet_aton, inet_ntoa

from tether.link.record import Record
from tether.net.checksum import checksum

CLIENT_PORT, SERVER_PORT = 68, 67
NO_ADDRESS, EVERYBODY = "0.0.0.0", "255.255.255.255"
FOREVER = 0xFFFFFFFF  # a lease that does not end

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE = 1, 2, 3, 4, 5, 6, 7  # option 53

# Options, by their names in RFC 2132; 119 is RFC 3397, 121 is RFC 3442.
SUBNET_MASK, ROUTER, DOMAIN_NAME_SERVER, HOST_NAME, DOMAIN_NAME, INTERFACE_MTU = 1, 3, 6, 12, 15, 26
REQUESTED_ADDRESS, LEASE_TIME, OVERLOAD, MESSAGE_TYPE, SERVER_IDENTIFIER, PARAMETERS = 50, 51, 52, 53, 54, 55
MESSAGE, MAX_SIZE, RENEWAL_TIME, REBINDING_TIME, CLIENT_IDENTIFIER = 56, 57, 58, 59, 61
DOMAIN_SEARCH, CLASSLESS_ROUTES = 119, 121
WANTED = (SUBNET_MASK, CLASSLESS_ROUTES, ROUTER, DOMAIN_NAME_SERVER, DOMAIN_NAME, INTERFACE_MTU, LEASE_TIME,
          SERVER_IDENTIFIER, RENEWAL_TIME, REBINDING_TIME, DOMAIN_SEARCH)  # 121 before 3: RFC 3442

_FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_BOOTREQUEST, _BOOTREPLY = 1, 2
_ETHERNET, _MAC_BYTES = 1, 6
_COOKIE = bytes((99, 130, 83, 99))
_PAD, _END = 0, 255
_OVERLOAD_FILE, _OVERLOAD_SNAME = 1, 2
_LEAST_SIZE = 300  # of a BOOTP message; some servers drop shorter ones
_MOST_OPTION = 255

_IP = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_IP_VERSION_AND_LENGTH, _TTL, _PROTOCOL_UDP = 0x45, 64, 17
_MORE_FRAGMENTS_OR_OFFSET = 0x3FFF


class Message(Record):
    """One message.  `client` is the address that the client has (ciaddr), `yours` the one it is given (yiaddr)."""

    xid: int
    mac: bytes
    options: dict[int, bytes]
    client: str = NO_ADDRESS
    yours: str = NO_ADDRESS
    seconds: int = 0

    @property
    def kind(self) -> int:
        """DISCOVER, OFFER and so on; 0 if the message does not say."""
        value = self.options.get(MESSAGE_TYPE, b"")
        return value[0] if len(value) == 1 else 0

    def addresses(self, option: int) -> tuple[str, ...]:
        """The addresses in an option that lists such; none if it is damaged or missing."""
        value = self.options.get(option, b"")
        return tuple(inet_ntoa(value[at:at + 4]) for at in range(0, len(value) - 3, 4)) if len(value) % 4 == 0 else ()

    def number(self, option: int, size: int) -> int | None:
        """The number in an option of `size` bytes; None if it is damaged or missing."""
        value = self.options.get(option, b"")
        return int.from_bytes(value, "big") if len(value) == size else None


def write_request(message: Message) -> bytes:
    """A message from a client to servers."""
    fixed = _FIXED.pack(_BOOTREQUEST, _ETHERNET, _MAC_BYTES, 0, message.xid, min(message.seconds, 0xFFFF), 0,
                        inet_aton(message.client), inet_aton(message.yours), bytes(4), bytes(4),
                        message.mac, b"", b"", _COOKIE)
    options = b"".join(bytes((code, len(value))) + value for code, value in message.options.items())
    return (fixed + options + bytes((_END,))).ljust(_LEAST_SIZE, b"\0")


def read_reply(data: bytes) -> Message:
    """A message from a server.  Raises ValueError for what is none."""
    if len(data) < _FIXED.size:
        raise ValueError("too short")
    kind, hardware, length, _, xid, seconds, _, client, yours, _, _, mac, sname, file, cookie = _FIXED.unpack_from(data)
    if kind != _BOOTREPLY or hardware != _ETHERNET or length != _MAC_BYTES or cookie != _COOKIE:
        raise ValueError("not the reply of a DHCP server")
    options: dict[int, bytes] = {}
    _read_options(data[_FIXED.size:], options)
    overload = options.pop(OVERLOAD, b"\0")[:1] or b"\0"
    if overload[0] & _OVERLOAD_FILE:
        _read_options(file, options)
    if overload[0] & _OVERLOAD_SNAME:
        _read_options(sname, options)
    return Message(xid=xid, mac=mac[:_MAC_BYTES], client=inet_ntoa(client), yours=inet_ntoa(yours), seconds=seconds,
                   options=options)


def _read_options(data: bytes, found: dict[int, bytes]) -> None:
    """Adds the options in `data`; one that comes in several parts is put together (RFC 3396)."""
    at = 0
    while at < len(data) and data[at] != _END:
        if data[at] == _PAD:
            at += 1
            continue
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            raise ValueError(f"option {data[at]} is cut off")
        end = at + 2 + data[at + 1]
        found[data[at]] = found.get(data[at], b"") + data[at + 2:end]
        at = end


def domain_names(value: bytes) -> tuple[str, ...]:
    """The names in a DOMAIN_SEARCH option: DNS labels, with pointers back (RFC 1035, 4.1.4).  Raises ValueError."""
    names, at = [], 0
    while at < len(value):
        labels, at = _labels(value, at)
        names.append(".".join(labels))
    return tuple(names)


def _labels(value: bytes, at: int) -> tuple[list[str], int]:
    """The labels of the name at `at`, and where what follows it begins."""
    labels: list[str] = []
    after, first = -1, at
    while True:
        length = value[at] if at < len(value) else 64
        if length == 0:
            return labels, at + 1 if after < 0 else after
        if length >= 0xC0 and at + 1 < len(value):
            target = (length & 0x3F) << 8 | value[at + 1]
            if target >= first:  # only backwards: so it comes to an end
                raise ValueError("a domain name that points forwards")
            after, at, first = at + 2 if after < 0 else after, target, target
        elif length < 64 and at + 1 + length <= len(value):
            labels.append(value[at + 1:at + 1 + length].decode("ascii"))
            at += 1 + length
        else:
            raise ValueError("a domain name that is cut off")


def classless_routes(value: bytes) -> tuple[tuple[str, str], ...]:
    """(destination in CIDR notation, gateway) of each route in a CLASSLESS_ROUTES option.  Raises ValueError."""
    routes, at = [], 0
    while at < len(value):
        length = value[at]
        end = at + 1 + (length + 7) // 8
        if length > 32 or end + 4 > len(value):
            raise ValueError("a route that is cut off")
        routes.append((f"{inet_ntoa(value[at + 1:end].ljust(4, bytes(1)))}/{length}", inet_ntoa(value[end:end + 4])))
        at = end + 4
    return tuple(routes)


def write_packet(payload: bytes) -> bytes:
    """An IP packet from a client that has no address to everybody."""
    source, target = inet_aton(NO_ADDRESS), inet_aton(EVERYBODY)
    length = _UDP.size + len(payload)
    pseudo = source + target + struct.pack("!BBH", 0, _PROTOCOL_UDP, length)
    sum_ = checksum(pseudo + _UDP.pack(CLIENT_PORT, SERVER_PORT, length, 0) + payload) or 0xFFFF  # 0 means: none
    udp = _UDP.pack(CLIENT_PORT, SERVER_PORT, length, sum_)
    head = (_IP_VERSION_AND_LENGTH, 0, _IP.size + length, 0, 0, _TTL, _PROTOCOL_UDP)
    return _IP.pack(*head, checksum(_IP.pack(*head, 0, source, target)), source, target) + udp + payload


def read_packet(packet: bytes) -> bytes | None:
    """The payload of an IP packet to a DHCP client's port; None if it is another one.

    The checksum of UDP is not looked at: between virtual machines of one host nobody fills it in.
    """
    if len(packet) < _IP.size or packet[0] >> 4 != 4:
        return None
    header = (packet[0] & 15) * 4
    total, fragment = int.from_bytes(packet[2:4], "big"), int.from_bytes(packet[6:8], "big")
    if header < _IP.size or len(packet) < header + _UDP.size or fragment & _MORE_FRAGMENTS_OR_OFFSET:
        return None
    source, target, length, _ = _UDP.unpack_from(packet, header)
    if packet[9] != _PROTOCOL_UDP or (source, target) != (SERVER_PORT, CLIENT_PORT):
        return None
    end = header + length
    return packet[header + _UDP.size:end] if header + _UDP.size <= end <= min(total, len(packet)) else None


def options_for(kind: int, mac: bytes, hostname: str, others: dict[int, bytes]) -> dict[int, bytes]:
    """The options of every request: what it is, who asks, what we want to know."""
    options = {MESSAGE_TYPE: bytes((kind,)), CLIENT_IDENTIFIER: bytes((_ETHERNET,)) + mac, **others}
    if kind in (DISCOVER, REQUEST):
        options[MAX_SIZE] = struct.pack("!H", 1500)
        options[PARAMETERS] = bytes(WANTED)
        if hostname:
            options[HOST_NAME] = hostname.encode()[:_MOST_OPTION]
    return options

