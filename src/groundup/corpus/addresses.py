"""Which IP addresses are of the public internet: a crawler is never led to others, and only these are personal data."""

import ipaddress

NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Blocks that are not of the public internet, from IANA's registries of special-purpose addresses (RFC 6890) and of
# multicast addresses, in October 2025. The interpreter has such a list too, but it differs from version to version.
SPECIAL = """
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24
192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/3
::/8 100::/64 100:0:0:1::/64 2001::/23 2001:db8::/32 2002::/16 3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
"""
# Of 192.0.0.0/24 and 2001::/23 these are globally reachable all the same.
REACHABLE = """
192.0.0.9/32 192.0.0.10/32 2001:1::1/128 2001:1::2/128 2001:1::3/128 2001:3::/32 2001:4:112::/48 2001:20::/28 2001:30::/28
"""
SPECIAL_BLOCKS, REACHABLE_BLOCKS = (
    [ipaddress.ip_network(block) for block in text.split()] for text in (SPECIAL, REACHABLE)
)


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet; of one that stands for an IPv4 address, whether that is."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if inner:
            return is_public(str(inner))
    return any(ip in block for block in REACHABLE_BLOCKS) or not any(ip in block for block in SPECIAL_BLOCKS)
