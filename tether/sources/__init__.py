"""Where a VM that nobody talks to finds what it is to run.  Imported late: a VM with an appliance needs none of it."""
