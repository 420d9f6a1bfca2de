"""What an appliance may ask of a container that runs: files, facts, its network, its hardware.  Imported late."""
