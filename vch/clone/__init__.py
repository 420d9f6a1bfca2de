"""Instant Clone: a machine starts as a copy of one that waits already (docs/clone.md).

    key.py      which machines can be copies of one template
    store.py    where templates are kept
    make.py     boots one and freezes it
    resume.py   brings a copy to life
    origin.py   what a machine that is about to start is a copy of
"""
