"""The end of a VM as the console tells it: tether's record, and what is left to read when PID 1 has died."""

from __future__ import annotations

import pytest

from tether.link.lastwords import LONGEST_TEXT, MARK, read_last_words, write_last_words
from tether.link.messages import Fault, Goodbye
from vch.machine.init_death import init_death

GOODBYE = Goodbye(reason="it failed", fault=Fault(step="stack root", object="overlay", text="no", errno="EIO"))


class TestRecord:
    def test_it_is_found_among_other_lines(self) -> None:
        console = f"[ 1.0] noise\n{write_last_words(GOODBYE)}\n[ 1.1] reboot: Power down\n"
        assert read_last_words(console) == GOODBYE

    def test_the_last_one_that_is_whole_counts(self) -> None:
        later = write_last_words(Goodbye(reason="later"))
        torn = later[:40] + "[ 1.0] said in between" + later[40:]
        assert read_last_words(f"{write_last_words(GOODBYE)}\n{torn}\n") == GOODBYE
        assert read_last_words(f"{write_last_words(GOODBYE)}\n{later}") == Goodbye(reason="later")

    @pytest.mark.parametrize("damaged", ["", MARK, f"{MARK}zz:0", f"{MARK}:", f"{MARK}a0:00000000",
                                         write_last_words(GOODBYE)[:-1], write_last_words(GOODBYE).replace("a2", "a3")])
    def test_what_is_damaged_is_no_record(self, damaged: str) -> None:
        assert read_last_words(damaged) is None

    def test_a_check_sum_does_not_make_it_a_goodbye(self) -> None:
        from zlib import crc32

        body = b"\xa1\x61x\x01"
        assert read_last_words(f"{MARK}{body.hex()}:{crc32(body):08x}") is None

    def test_a_long_text_is_cut(self) -> None:
        read = read_last_words(write_last_words(Goodbye(reason="x" * 100_000)))
        assert read == Goodbye(reason="x" * LONGEST_TEXT)


PANIC = "[    2.5] Kernel panic - not syncing: Attempted to kill init! exitcode=0x{status:08x}\n"
FAULTHANDLER = """Fatal Python error: Segmentation fault

Current thread 0x00007f9c (most recent call first):
  File "tether/link/reactor.py", line 113 in run_once
  File "/init", line 7 in <module>
"""
TRACEBACK = """Traceback (most recent call last):
  File "/init", line 6, in <module>
  File "/usr/lib/python3.11/tether/x.py", line 9, in start
ImportError: no such thing
"""
SEGFAULT = "[    2.4] init[1]: segfault at 0 ip 00007f sp 00007e error 6 in libc.so.6[7f+15]\n"


class TestInitDeath:
    @pytest.mark.parametrize(
        ("console", "sentence"),
        [
            ("all is well\n", ""),
            ("Kernel panic - not syncing: VFS\n", ""),
            (PANIC.format(status=0x300), "PID 1 ended with exit code 3"),
            (PANIC.format(status=9), "PID 1 was ended by SIGKILL"),
            (PANIC.format(status=0x8B), "PID 1 was ended by SIGSEGV"),
            (PANIC.format(status=50), "PID 1 was ended by signal 50"),
            (SEGFAULT + PANIC.format(status=11),
             "PID 1 was ended by SIGSEGV: segfault at 0 ip 00007f sp 00007e error 6 in libc.so.6[7f+15]"),
            (FAULTHANDLER + PANIC.format(status=11),
             "PID 1 was ended by SIGSEGV: Segmentation fault at tether/link/reactor.py:113"),
            (TRACEBACK + PANIC.format(status=0x100), "PID 1 ended with exit code 1: ImportError: no such thing at "
                                                     "/usr/lib/python3.11/tether/x.py:9"),
            ("Traceback (most recent call last):\n" + PANIC.format(status=0x100),
             "PID 1 ended with exit code 1"),
        ],
    )
    def test_the_sentence(self, console: str, sentence: str) -> None:
        assert init_death(console) == sentence
