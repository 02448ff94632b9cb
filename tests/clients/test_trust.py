"""Node and Deno take the local CA for fal's names and for this machine, and for nothing else."""

import pytest

from server.settings import Settings
from server.transport import tls
from tests.clients.kit import Clients
from tests.support.certificates import answering, rogue_context


@pytest.fixture
def files(tmp_path):
    return tls.ensure(Settings(data_dir=tmp_path))


@pytest.fixture
def trusting(files):
    return Clients({"NODE_EXTRA_CA_CERTS": str(files.ca)})


@pytest.mark.parametrize(
    "name", ["fal.run", "queue.fal.run", "110602490-lcm-sd15-i2i.gateway.alpha.fal.ai", "v3.fal.media", "localhost"]
)
def test_node_accepts_the_certificate_for(name, trusting, files):
    with answering(tls.server_context(files)) as port:
        assert trusting.js("trust.mjs", name=name, port=port) == [200]


@pytest.mark.parametrize("name", ["example.com", "fal.run.example.com", "10.0.0.1"])
def test_node_refuses_what_the_stolen_key_signs_outside_the_names(name, trusting, files):
    with answering(rogue_context(files, name)) as port:
        assert trusting.js("trust.mjs", name=name, port=port) == ["permitted subtree violation"]


def test_node_takes_the_stolen_key_for_other_names_of_fal(trusting, files):
    with answering(rogue_context(files, "other.fal.run")) as port:
        assert trusting.js("trust.mjs", name="other.fal.run", port=port) == [200]


def test_node_refuses_the_certificate_when_it_was_not_told(files):
    with answering(tls.server_context(files)) as port:
        [said] = Clients({}).js("trust.mjs", name="fal.run", port=port)

    assert said.startswith("unable to verify the first certificate")


def test_deno_accepts_the_certificate_by_its_own_variable(files):
    with answering(tls.server_context(files)) as port:
        assert Clients({"DENO_CERT": str(files.ca)}).deno("trust.mjs", name="fal.run", port=port) == [200]


@pytest.mark.parametrize(
    ("name", "said"), [("other.fal.run", 200), ("example.com", "unable to verify the first certificate")]
)
def test_deno_takes_the_stolen_key_for_names_of_fal_only(name, said, files):
    with answering(rogue_context(files, name)) as port:
        assert Clients({"DENO_CERT": str(files.ca)}).deno("trust.mjs", name=name, port=port) == [said]


def test_deno_refuses_the_certificate_when_it_was_not_told(files):
    with answering(tls.server_context(files)) as port:
        [said] = Clients({}).deno("trust.mjs", name="fal.run", port=port)

    assert said.startswith("unable to verify the first certificate")
