"""Which IP addresses are of the public internet: a list of our own, after IANA's registries of special-purpose addresses.
A crawler visits no others, and only these count as personal data.

Python's own answer (`ipaddress.is_global`) changes from version to version. These are the registries of IPv4 and IPv6
special-purpose addresses (RFC 6890 and what followed it, as of 2025), multicast (RFC 5771), and the blocks of IPv6 that were
given back (::/8, fec0::/10). Where the registries call an address of a block globally reachable, it is.
"""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

SPECIAL_IPV4 = [IPv4Network(block) for block in (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4",
)]  # fmt: skip
REACHABLE_IPV4 = [IPv4Network("192.0.0.9/32"), IPv4Network("192.0.0.10/32")]
SPECIAL_IPV6 = [IPv6Network(block) for block in (
    "::/8", "100::/64", "100:0:0:1::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fc00::/7",
    "fe80::/10", "fec0::/10", "ff00::/8",
)]  # fmt: skip
REACHABLE_IPV6 = [IPv6Network(block) for block in (
    "2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:3::/32", "2001:4:112::/48", "2001:20::/28", "2001:30::/28",
)]  # fmt: skip
# Addresses that hold an IPv4 one, and how many bits follow it: mapped, NAT64 (RFC 6052), 6to4 (RFC 3056).
EMBEDDED = [(IPv6Network("::ffff:0:0/96"), 0), (IPv6Network("64:ff9b::/96"), 0), (IPv6Network("2002::/16"), 80)]
TEREDO = IPv6Network("2001::/32")  # RFC 4380: the server's address, and the client's with all bits inverted


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet; for one that holds an IPv4 address, whether that is."""
    ip = ip_address(address.split("%")[0])
    if isinstance(ip, IPv4Address):
        return not _within(ip, SPECIAL_IPV4) or _within(ip, REACHABLE_IPV4)
    for block, trailing_bits in EMBEDDED:
        if ip in block:
            return is_public(str(IPv4Address(int(ip) >> trailing_bits & 0xFFFFFFFF)))
    if ip in TEREDO:
        server, client = int(ip) >> 64 & 0xFFFFFFFF, ~int(ip) & 0xFFFFFFFF
        return is_public(str(IPv4Address(server))) and is_public(str(IPv4Address(client)))
    return not _within(ip, SPECIAL_IPV6) or _within(ip, REACHABLE_IPV6)


def _within(ip: IPv4Address | IPv6Address, blocks: list[IPv4Network] | list[IPv6Network]) -> bool:
    return any(ip in block for block in blocks)
