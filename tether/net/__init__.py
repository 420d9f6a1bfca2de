"""The container's network: interfaces, addresses, routes, DHCP, names, firewall.  No program of the guest is needed."""
