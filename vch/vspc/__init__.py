"""vSphere's network serial port: the endpoint that ESXi hosts connect to, and the link's bytes behind it.

    telnet.py        bytes <-> data and telnet commands                    RFC 854, RFC 855, RFC 856
    session.py       one connection: options, who the VM is, its vMotion   VMware, "Using a Proxy with vSphere Virtual
                                                                           Serial Ports"
    port.py          one VM: the order of bytes while its connection moves from host to host
    line.py          the sockets of one VM
    server.py        accepts, knows the VMs, gives out a plain byte stream of each
    concentrator.py  a thread around it, and vch.machine.host_line.HostLine for drivers: begin here

The protocol authenticates nobody: who can reach the listener can claim to be any VM.  Bind it to the management network
or put TLS with client certificates before it, and let the link's own hello decide whom to believe.
"""
