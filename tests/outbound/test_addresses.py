"""Which addresses may be reached."""

import ipaddress

import pytest

from server.outbound.addresses import is_public, lacking, may_reach, parse_networks
from tests.support import forbidden_urls


@pytest.mark.parametrize("text", forbidden_urls.ADDRESSES)
def test_what_leads_inside_is_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", forbidden_urls.PUBLIC)
def test_what_is_out_there_is_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


def test_an_address_of_one_interface_is_not_public() -> None:
    assert not is_public(ipaddress.ip_address("2606:4700:4700::1111%eth0"))


@pytest.mark.parametrize(
    ("text", "allowed", "reachable"),
    [
        ("192.168.1.7", "192.168.1.0/24", True),
        ("192.168.2.7", "192.168.1.0/24", False),
        ("10.0.0.7", "192.168.1.0/24, 10.0.0.7", True),
        ("fd00::7", "fd00::/8", True),
        ("127.0.0.1", "fd00::/8", False),
        ("::ffff:192.168.1.7", "192.168.1.0/24", False),
        ("8.8.8.8", "", True),
    ],
)
def test_the_operators_networks_may_be_reached_too(text: str, allowed: str, reachable: bool) -> None:  # noqa: FBT001
    assert may_reach(ipaddress.ip_address(text), parse_networks(allowed)) is reachable


@pytest.mark.parametrize(
    ("host", "allowed", "lacks"),
    [
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.0/8", ""),
        ("192.168.1.7", "10.0.0.0/8", "192.168.1.7"),
        ("0.0.0.0", "", "0.0.0.0"),
        ("169.254.169.254", "", "169.254.169.254"),
        ("::1", "", "::1"),
        ("fd00::7", "", "fd00::7"),
        ("::ffff:127.0.0.1", "", "::ffff:7f00:1"),
        ("localhost", "", "127.0.0.1,::1"),
        ("app.localhost", "", ""),
        ("localhost", "127.0.0.0/8", ""),
        ("8.8.8.8", "", ""),
        ("box.lan", "", ""),
        ("localhost.example", "", ""),
    ],
)
def test_what_the_operators_networks_lack_is_named_where_no_look_up_is_needed(
    host: str, allowed: str, lacks: str
) -> None:
    assert ",".join(map(str, lacking(host, parse_networks(allowed)))) == lacks


@pytest.mark.parametrize("text", ["192.168.1.1/24", "home", "10.0.0.0/33", "10.0.0.0/8;fd00::/8"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"does not appear|has host bits|is not"):
        parse_networks(text)
