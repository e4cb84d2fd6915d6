"""Which hosts and addresses a crawler asks, and how long it lets itself be held."""

import pytest

from groundup.corpus import addresses, crawl, urls


@pytest.mark.parametrize("host", ["a／b", "a＼b", "a？b", "a＃b", "a＠b", "a％b"])
def test_a_host_that_becomes_something_else_is_refused(host):
    assert urls.canonical(f"http://{host}/") is None


@pytest.mark.parametrize(
    "address",
    [
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.31.0.1",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001:2::1",
        "2001:db8::1",
        "2002:a00:1::",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
            ],
)
def test_special_addresses_are_not_public(address):
    assert not addresses.is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "172.32.0.1",
        "192.0.0.9",
        "100.128.0.1",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2001:4:112::1",
    ],
)
def test_others_are(address):
    assert addresses.is_public(address)


def test_a_crawl_delay_of_days_is_bounded():
    assert crawl.MAX_CRAWL_DELAY <= 60
