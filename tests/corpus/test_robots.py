import gzip
import urllib.robotparser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.corpus.acquire.robots import parse_robots, parse_sitemap

RFC_9309 = """
User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
"""


@pytest.mark.parametrize(
    "agent, path, allowed",
    [
        ("any", "/publications/a.html", True),
        ("any", "/a.gif", False),
        ("any", "/a.gif?x", True),
        ("any", "/example/page.html", False),
        ("foobot", "/example/page.html", True),
        ("FooBot", "/other", False),
        ("bazbot", "/example/page.html", False),
        ("barbot", "/a.gif", True),
        ("quxbot", "/example/", True),
        ("foobot", "/robots.txt", True),
    ],
)
def test_the_examples_of_the_rfc(agent, path, allowed):
    assert parse_robots(RFC_9309, agent).allows(path) is allowed


@pytest.mark.parametrize(
    "pattern, path, matches",
    [
        ("/fish", "/fish.html", True),
        ("/fish", "/catfish", False),
        ("/fish*.php", "/fishheads/catfish.php?parameters", True),
        ("/*.php$", "/filename.php?parameters", False),
        ("/*.php$", "/folder/a.php.php", True),
        ("/a$", "/a", True),
        ("/a$", "/ab", False),
        ("/*a*a*$", "/xaxa", True),
        ("/%7ejoe", "/~joe", False),
        ("/ä", "/%C3%A4/x", True),
        ("$", "/", False),
    ],
)
def test_patterns(pattern, path, matches):
    assert parse_robots(f"User-agent: *\nDisallow: {pattern}", "x").allows(path) is not matches


def test_longest_wins_and_delay_and_sitemaps_are_found():
    rules = parse_robots(
        "\ufeffSitemap: https://a.org/s.xml # main\nuser-agent: groundup/2\ncrawl-delay: 2.5\nDisallow: /a\nAllow: /a/b\n"
        "Disallow: /a/b/c\nAllow: /same\nDisallow: /same\nSITEMAP: /t.xml",
        "groundup",
    )
    assert [rules.allows(path) for path in ("/a/x", "/a/b", "/a/b/c/d", "/same")] == [False, True, False, True]
    assert rules.delay == 2.5
    assert rules.sitemaps == ["https://a.org/s.xml", "/t.xml"]


@given(st.lists(st.sampled_from(["/", "/a", "/a/b", "/b"]), max_size=3), st.sampled_from(["/", "/a", "/a/b/c", "/c"]))
def test_as_the_standard_library_where_it_follows_the_rfc(disallowed, path):
    text = "User-agent: *\n" + "".join(f"Disallow: {pattern}\n" for pattern in disallowed)
    theirs = urllib.robotparser.RobotFileParser()
    theirs.parse(text.splitlines())
    assert parse_robots(text, "x").allows(path) == theirs.can_fetch("x", path)


@given(st.text(max_size=200), st.text(max_size=50))
def test_any_text_is_some_rules(text, path):
    rules = parse_robots(text, "x")
    rules.allows("/" + path)
    parse_sitemap(text.encode("utf-8", "replace"))


def test_hostile_patterns_cost_one_pass(growth, within_a_minute):
    rules = parse_robots("User-agent: *\n" + f"Disallow: /{'*a' * 1000}$\n" * 50, "x")
    rules.allows("/" + "a" * 1900)
    assert growth(lambda count: parse_sitemap(b"<loc" * count + b"<loc>" * count), 25_000) < 8


def test_sitemaps_and_indexes():
    body = b"<?xml?><urlset><url><loc> http://a.org/?x=1&amp;y </loc></url><url><loc><![CDATA[http://a.org/b]]></loc>"
    assert parse_sitemap(body) == (False, ["http://a.org/?x=1&y", "http://a.org/b"])
    index = b"<s:sitemapindex xmlns:s='x'><s:sitemap><s:loc>http://a.org/1.xml</s:loc></s:sitemap></s:sitemapindex>"
    assert parse_sitemap(gzip.compress(index)) == (True, ["http://a.org/1.xml"])
    assert parse_sitemap(b"http://a.org/1\r\nnot a line\nhttps://a.org/2") == (False, ["http://a.org/1", "https://a.org/2"])
    assert parse_sitemap("\ufeffhttp://a.org/1\n  http://a.org/2 ".encode()) == (False, ["http://a.org/1", "http://a.org/2"])
    assert parse_sitemap(b"\x1f\x8bbroken") == (False, [])


def test_pictures_in_a_sitemap_are_no_pages():
    """WordPress lists each page's pictures: each cost a request."""
    pictures = b"<image:image><image:loc>http://a.org/1.jpg</image:loc></image:image>"
    body = b"<urlset xmlns:image='x'><url><loc>http://a.org/1</loc>" + pictures + b"</url></urlset>"
    assert parse_sitemap(body) == (False, ["http://a.org/1"])
    assert parse_sitemap(body.replace(b"<url", b"<s:url").replace(b"<loc", b"<s:loc")) == (False, ["http://a.org/1"])
    assert parse_sitemap(body.replace(b"<loc", b"<s:loc"))[1] == ["http://a.org/1", "http://a.org/1.jpg"]  # not well formed
