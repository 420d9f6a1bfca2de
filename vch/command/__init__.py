"""The command line: `vch` and what its commands show.  A command is a module, loaded when it is called."""
