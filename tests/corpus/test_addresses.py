"""The list of addresses that are not public, block by block, from its first address to its last."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.acquire import fetch
from groundup.corpus.addresses import SPECIAL_IPV4, is_public
from groundup.corpus.urls import canonical

SPECIAL = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/29", "192.0.0.8/32",
    "192.0.0.170/31", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4", "::/128", "::1/128", "::/96", "::ffff:10.0.0.0/104", "64:ff9b::7f00:0/104", "64:ff9b:1::/48",
    "100::/64", "100:0:0:1::/64", "2001::/32", "2001:2::/48", "2001:10::/28", "2001:db8::/32", "2002:a00::/24", "2002:c0a8::/32",
    "3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8", "2002:7f00:1::/48",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0",
    "192.0.0.9", "192.0.0.10", "192.31.196.1", "192.52.193.1", "192.175.48.1", "198.17.255.255", "198.20.0.0", "223.255.255.255",
    "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "2001:1::1", "2001:3::1", "2001:4:112::1", "2001:20::1",
    "2001:30::1", "2001:200::1", "2001:4860:4860::8888", "2606:4700::1111", "2620:4f:8000::1", "2a00::1",
]  # fmt: skip


@pytest.mark.parametrize("block", SPECIAL)
def test_special_blocks(block):
    network = ipaddress.ip_network(block)
    middle = network[network.num_addresses // 2]
    assert not any(is_public(str(address)) for address in (network[0], middle, network[-1]))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address):
    assert is_public(address)
    assert fetch.is_public is is_public


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_is_judged_as_itself(address):
    public = is_public(str(address))
    assert public == (str(address) in ("192.0.0.9", "192.0.0.10") or not any(address in block for block in SPECIAL_IPV4))
    number = int(address)
    for outer in (0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80 | 1):
        assert is_public(str(ipaddress.IPv6Address(outer))) == public
    teredo = 0x2001_0000 << 96 | 0x08080808 << 64 | (~number & 0xFFFFFFFF)
    assert is_public(str(ipaddress.IPv6Address(teredo))) == public


@given(st.integers(0, 2**120 - 1), st.sampled_from([0x00, 0xFC, 0xFD, 0xFF]))
def test_what_begins_otherwise_is_not_public_unless_it_stands_for_ipv4(rest, first):
    number = first << 120 | rest
    assert not is_public(str(ipaddress.IPv6Address(number))) or number >> 32 in (0xFFFF, 0x64FF9B << 64)


@pytest.mark.parametrize("host", ["a／b", "a＼b", "a？b", "a＃b", "a＠b", "a％b"])
def test_a_host_that_becomes_something_else_is_refused(host):
    assert canonical(f"http://{host}/") is None
