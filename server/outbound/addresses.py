"""Addresses that the server may connect to for a caller: public ones, and those that the operator allows. Pure.

`ipaddress.is_global` says yes to addresses that lead inside: IPv6 forms that carry an IPv4 address in them (NAT64,
6to4, IPv4-mapped and -compatible, Teredo, ISATAP), multicast, site-local. So the rule here is an allowlist: only what
IANA's special-purpose registries leave for plain global unicast (RFC 6890, RFC 4291; registries as of 2025).
"""

import ipaddress
from collections.abc import Sequence
from typing import TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_NOT_PUBLIC_4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local, and clouds' metadata services
            "168.63.129.16/32",  # Azure's host, from its guests
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # AMT
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarking
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)

# Global unicast is 2000::/3 and nothing else: mapped, compatible, NAT64, ULA, link- and site-local lie outside it.
_GLOBAL_UNICAST_6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: any IPv4 address
            "2620:4f:8000::/48",  # AS112
            "3ffe::/16",  # 6bone, given back
            "3fff::/20",  # documentation
        ),
    )
)
# The upper half of an ISATAP interface identifier; the lower is an IPv4 address (RFC 5214).
_ISATAP = frozenset({0x00005EFE, 0x02005EFE, 0x01005EFE, 0x03005EFE})


_LOOPBACK = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))


def is_public(address: Address) -> bool:
    """Return whether `address` is plain global unicast and carries no other address in it."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id or address not in _GLOBAL_UNICAST_6:
        return False
    if any(address in network for network in _NOT_PUBLIC_6):
        return False
    return (int(address) >> 32) & 0xFFFF_FFFF not in _ISATAP


def may_reach(address: Address, allowed: Sequence[Network]) -> bool:
    """Return whether a caller's URL may lead to `address`: public, or in a network that the operator allows."""
    return is_public(address) or is_inside(address, allowed)


def is_inside(address: Address, allowed: Sequence[Network]) -> bool:
    """Return whether `address` is in a network that the operator allows."""
    return any(address in network for network in allowed)


def is_own_name(host: str) -> bool:
    """Return whether a host name means this machine whatever a name server says (RFC 6761, 6.3)."""
    return host == "localhost" or host.endswith(".localhost")


def lacking(host: str, allowed: Sequence[Network]) -> tuple[Address, ...]:
    """Return what `allowed` lacks for `host`, if that is an address or `localhost`; else nothing.

    Only a look-up tells where another name leads; so with `app.localhost`, which may be an alias of containers.
    """
    if host == "localhost":
        addresses: tuple[Address, ...] = _LOOPBACK
    else:
        try:
            addresses = (ipaddress.ip_address(host),)
        except ValueError:
            return ()
    return () if any(may_reach(address, allowed) for address in addresses) else addresses


def parse_networks(text: str) -> tuple[Network, ...]:
    """Return the networks of a comma-separated list: `192.168.1.0/24, fd00::/8, 10.0.0.7`. Raises `ValueError`."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
