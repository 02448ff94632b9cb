"""What a server tells the others of itself."""

import pytest

from server.nodes.row import address


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("192.0.2.7", "192.0.2.7:8000"),
        ("box.lan", "box.lan:8000"),
        ("0.0.0.0", "box1:8000"),
        ("::", "box1:8000"),
        ("2001:db8::7", "[2001:db8::7]:8000"),
    ],
)
def test_an_address_leads_to_the_server(host, told):
    assert address(host, 8000, "box1") == told
