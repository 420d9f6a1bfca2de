"""The serial port of one VM, whichever host it is on: every byte once and in order while the VM moves.  Pure.

    host A: VMOTION-BEGIN        nothing more is sent to A; what was queued goes before the GOAHEAD
    host B: VMOTION-PEER         known by the secret that A was given; what B says is kept back
    host B: VMOTION-COMPLETE     what A still says comes first, to A's end; then B is the port
    host A: VMOTION-ABORT        A goes on, B is sent away
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable

from vch.vspc.session import SECRET_BYTES, Command, Session
from vch.vspc.telnet import VspcError

MOST_KEPT = 64 << 10  # bytes that a host may say before its VM has moved there: none, but who knows


class Port:
    """See the module.  Sessions are told apart by identity."""

    def __init__(self, uuid: str, active: Session, random: Callable[[int], bytes] = os.urandom) -> None:
        self.uuid = uuid
        self.active: Session | None = active  # what it says is the VM's
        self.next: Session | None = None  # where the VM moves to
        self._random = random
        self._sequence = b""  # of the vMotion under way
        self._claim = b""
        self._complete = False
        self._kept = bytearray()

    @property
    def moving(self) -> bool:
        """A vMotion is under way."""
        return bool(self._claim)

    @property
    def writable(self) -> Session | None:
        """Where bytes for the VM go now; None: keep them."""
        return None if self.moving else self.active

    @property
    def waits_for_the_old_host(self) -> bool:
        """The VM has moved, and its old host has not closed yet."""
        return self._complete

    @property
    def full(self) -> bool:
        """So much is kept back that the new host is not to be read for now."""
        return len(self._kept) >= MOST_KEPT

    def begin(self, session: Session, sequence: bytes) -> None:
        """The VM of this session is about to move."""
        if session is not self.active or self.moving:
            session.command(Command.VMOTION_NOTNOW, sequence)
            return
        self._sequence, self._claim = sequence, sequence + self._random(SECRET_BYTES)
        session.command(Command.VMOTION_GOAHEAD, self._claim)

    def is_peer(self, claim: bytes) -> bool:
        """Is this the VM on its new host?"""
        return self.moving and not self._complete and hmac.compare_digest(claim, self._claim)

    def peer(self, session: Session) -> Session | None:
        """The new host is there (see `is_peer`).  Gives one that came before, to be sent away."""
        previous, self.next = self.next, session
        self._kept.clear()
        session.command(Command.VMOTION_PEER_OK, self._sequence)
        return previous

    def complete(self, session: Session, sequence: bytes) -> bytes:
        """The VM has moved.  Gives bytes for the reader, if the old host has closed already.  Raises VspcError."""
        if session is not self.next or sequence != self._sequence:
            raise VspcError("vMotion", self.uuid, "completed by a host that it does not go to")
        self._complete = True
        return self._switch() if self.active is None else b""

    def abort(self, session: Session) -> Session | None:
        """The VM stays.  Gives the session to be sent away."""
        if session is not self.active or self._complete:
            return None
        abandoned = self.next
        self._forget()
        return abandoned

    def received(self, session: Session, data: bytes) -> bytes:
        """What of these bytes the reader gets now.  Raises VspcError."""
        if session is self.active:
            return data
        if session is self.next:
            if len(self._kept) + len(data) > MOST_KEPT and not self._complete:
                raise VspcError("vMotion", self.uuid, "the new host sends for a VM that is not there")
            self._kept += data
        return b""

    def closed(self, session: Session) -> bytes:
        """A connection has ended, or its time is up.  Gives bytes for the reader."""
        if session is self.next:
            kept = bytes(self._kept) if self._complete and self.active is None else b""
            self.next = None
            self._kept.clear()
            if self._complete:
                self._forget()
            return kept
        if session is self.active:
            self.active = None
            if self._complete:
                return self._switch()
        return b""

    def replaced(self, session: Session) -> list[Session]:
        """The VM connects anew without a vMotion: started again, or its host is.  Gives those to be sent away."""
        gone = [one for one in (self.active, self.next) if one is not None]
        self._forget()
        self.active = session
        return gone

    def _switch(self) -> bytes:
        self.active, kept = self.next, bytes(self._kept)
        self._forget()
        return kept

    def _forget(self) -> None:
        self.next = None
        self._sequence = self._claim = b""
        self._complete = False
        self._kept.clear()
