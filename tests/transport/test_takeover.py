"""Hosts-file lines and trust instructions."""

from pathlib import Path

import pytest

from server.fal.hosts import FAL_HOSTS
from server.transport.takeover import CERTIFICATE_NAMES, hosts_lines, trust_instructions


@pytest.mark.parametrize("name", [*FAL_HOSTS, "110602490-lcm-sd15-i2i.gateway.alpha.fal.ai"])
def test_every_name_of_the_api_gets_a_hosts_line(name):
    lines = hosts_lines("127.0.0.1").splitlines()

    assert f"127.0.0.1 {name}" in lines


def test_the_catalogues_calls_stay_in_the_house():
    assert "api.fal.ai" in hosts_lines().split()
    assert "api.fal.ai" in CERTIFICATE_NAMES


def test_fals_site_stays_reachable_unless_asked_for():
    names = hosts_lines().split()
    with_site = hosts_lines(with_site=True).split()

    assert "fal.ai" not in names
    assert "fal.ai" in with_site


def test_hosts_lines_take_an_ipv6_address():
    assert hosts_lines("::1").startswith("::1 fal.run\n")


def test_hosts_lines_refuse_what_is_no_address():
    with pytest.raises(ValueError, match="box"):
        hosts_lines("box")


@pytest.mark.parametrize(
    "line",
    [
        "export SSL_CERT_FILE=/d/bundle.pem",
        "export REQUESTS_CA_BUNDLE=/d/bundle.pem  # Python's requests ignores SSL_CERT_FILE",
        "php -d curl.cainfo=/d/bundle.pem -d openssl.cafile=/d/bundle.pem",
        "export NODE_EXTRA_CA_CERTS=/d/ca.pem",
        "export DENO_CERT=/d/ca.pem",
        "keytool -importcert -cacerts -noprompt -storepass changeit -alias fourstep -file /d/ca.pem",
        "sudo trust anchor /d/ca.pem",
        "certutil -addstore -f Root /d/ca.pem",
    ],
)
def test_trust_instructions_have_lines_to_paste(line):
    text = trust_instructions(Path("/d/ca.pem"), Path("/d/bundle.pem"))

    assert line in [row.strip() for row in text.splitlines()]
