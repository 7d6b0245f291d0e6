"""A laboratory on one machine: a remote host, a WAN, a gateway, and a person's terminal, all real programs.

``lab.bench.Lab`` puts it together. Everything lives in namespaces that their processes hold: when the last
process is gone the kernel removes network, mounts and process tree, so nothing can stay behind.
"""
