"""The playground's files, and that its script runs under its own policy."""

import re
import urllib.error
import urllib.request

import pytest


def get(server, path):
    """An answer's headers and text."""
    with urllib.request.urlopen(server.url + path, timeout=30) as answer:
        return answer.headers, answer.read().decode("utf-8", "replace")


def test_every_file_that_the_page_names_is_served(instant):
    _, page = get(instant, "/")

    names = set(re.findall(r'(?:src|href)="(static/[^"]+)"', page))
    assert len(names) == 3
    assert all(get(instant, f"/{name}")[1] for name in names)


@pytest.mark.parametrize("path", ["/", "/static/playground.js", "/static/playground.css"])
def test_no_link_of_the_page_begins_at_the_hosts_root(instant, path):
    _, text = get(instant, path)

    assert re.findall(r"""["'`(]/[\w/.-]*""", text) == []


@pytest.mark.parametrize("path", ["/", "/static/playground.js"])
def test_nothing_from_elsewhere_may_run_in_the_page(instant, path):
    headers, _ = get(instant, path)

    assert headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", ["nothing.js", "..%2f..%2fapp.py", "%2e%2e%2fsettings.py"])
def test_no_other_file_is_served(instant, name):
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(instant, f"/static/{name}")

    with refused.value:
        assert refused.value.code == 404
