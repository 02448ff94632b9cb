"""URLs taken apart: what is accepted, as what, and what is refused."""

import pytest

from server.outbound import urls
from server.outbound.urls import FetchError, Target
from tests.support import forbidden_urls


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://example.com", Target("http", "example.com", 80, "/")),
        ("https://example.com/a.png?x=1&y=2#top", Target("https", "example.com", 443, "/a.png?x=1&y=2")),
        ("https://example.com?x=1", Target("https", "example.com", 443, "/?x=1")),
        ("HTTPS://Example.COM:8443/A", Target("https", "example.com", 8443, "/A")),
        ("http://example.com#@127.0.0.1@x/", Target("http", "example.com", 80, "/")),
        ("https://example.com./", Target("https", "example.com", 443, "/")),
        ("https://münchen.example/ä b", Target("https", "xn--mnchen-3ya.example", 443, "/%C3%A4%20b")),
        ("https://a_b.example.com/%20@:x", Target("https", "a_b.example.com", 443, "/%20@:x")),
        ("http://93.184.216.34:8080/", Target("http", "93.184.216.34", 8080, "/")),
        ("http://[2606:4700:4700:0::1111]/", Target("http", "2606:4700:4700::1111", 80, "/")),
        ("  https://example.com/\n", Target("https", "example.com", 443, "/")),
    ],
)
def test_a_url_is_taken_apart(url: str, target: Target) -> None:
    assert urls.parse(url) == target


@pytest.mark.parametrize("url", forbidden_urls.URLS)
def test_what_parsers_disagree_about_is_refused(url: str) -> None:
    with pytest.raises(FetchError) as caught:
        urls.parse(url)

    assert caught.value.kind == "file_download_error"


@pytest.mark.parametrize(
    ("target", "authority"),
    [
        (Target("http", "example.com", 80, "/"), "example.com"),
        (Target("https", "example.com", 443, "/"), "example.com"),
        (Target("https", "example.com", 80, "/"), "example.com:80"),
        (Target("https", "2606:4700::1", 443, "/"), "[2606:4700::1]"),
        (Target("http", "2606:4700::1", 8080, "/"), "[2606:4700::1]:8080"),
    ],
)
def test_the_host_header_names_the_port_only_when_it_is_another(target: Target, authority: str) -> None:
    assert target.authority == authority


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/b", "https://example.com:8443/b"),
        ("b?x", "https://example.com:8443/a/b?x"),
        ("//other.example/c", "https://other.example/c"),
        ("http://other.example/c#d", "http://other.example/c"),
        ("?x=1", "https://example.com:8443/a/?x=1"),
    ],
)
def test_a_redirect_is_read_from_where_it_was_met(location: str, url: str) -> None:
    assert urls.parse("https://example.com:8443/a/").join(location) == urls.parse(url)


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "http://[::1", "http://a\r\nb/", "http://a@b/", "//[", "\t"]
)
def test_a_redirect_to_no_url_is_refused(location: str) -> None:
    with pytest.raises(FetchError):
        urls.parse("https://example.com/").join(location)
