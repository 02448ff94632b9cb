"""Which pages the operator's list of origins allows, and what it can't name."""

import pytest

from server.settings import SettingsError
from server.web.origins import Origins


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [
        ("https://app.example", "https://app.example"),
        ("https://app.example/", "https://app.example"),
        ("https://App.Example", "https://app.example"),
        ("https://app.example:443", "https://app.example"),
        ("http://app.example:80", "http://app.example"),
        ("http://app.example:443", "http://app.example:443"),
        ("https://app.example:08443", "https://app.example:8443"),
        ("https://*.example", "https://app.example"),
        ("https://*.example", "https://one.app.example"),
        ("https://*.example:8443", "https://app.example:8443"),
        ("https://*", "https://app.example"),
        ("https://*", "https://[2001:db8::1]"),
        ("http://192.168.1.5:3000", "http://192.168.1.5:3000"),
        ("http://[2001:DB8::0001]:3000", "http://[2001:db8::1]:3000"),
        ("chrome-extension://*", "chrome-extension://abcdefghijklmnopabcdefghijklmnop"),
        ("chrome-extension://abcdefghijklmnopabcdefghijklmnop", "chrome-extension://abcdefghijklmnopabcdefghijklmnop"),
        ("moz-extension://*", "moz-extension://2c127fa4-62c7-7e4f-90e5-472b45eecfdc"),
        ("safari-web-extension://*", "safari-web-extension://2C127FA4-62C7-7E4F-90E5-472B45EECFDC"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("app://.", "app://."),
        ("app://my%20app", "app://my%20app"),
        ("app://my%20app:8080", "app://my%20app:8080"),
        ("qrc://", "qrc://"),
        ("qrc:///", "qrc://"),
        ("https://app.example.", "https://app.example."),
        ("https://*.app.example.:8443", "https://one.app.example.:8443"),
        ("file://", "file://"),
        ("null", "null"),
        ("*", "https://anything.example:9"),
        ("https://a.example, https://b.example", "https://b.example"),
    ],
)
def test_is_allowed(allowed, origin):
    assert origin in Origins(allowed)


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [
        ("", "https://app.example"),
        ("https://app.example", "http://app.example"),
        ("https://app.example", "https://app.example:8443"),
        ("https://app.example", "https://app.example.evil.test"),
        ("https://app.example", "https://appxexample"),
        ("https://*.example", "https://example"),
        ("https://*.example", "https://evilexample"),
        ("https://*.example", "https://app.example.evil.test"),
        ("https://*.example", "https://evil.test/.example"),
        ("https://*.example", "https://evil.test:1.example"),
        ("https://*.example", "https://app.example:8443"),
        ("https://*", "http://app.example"),
        ("https://*", "https://app.example:8443"),
        ("chrome-extension://*", "https://app.example"),
        ("chrome-extension://*", "moz-extension://abc"),
        ("null", "https://null"),
        ("app://.", "app://x"),
        ("https://app.example.", "https://app.example"),
    ],
)
def test_is_not_allowed(allowed, origin):
    assert origin not in Origins(allowed)


@pytest.mark.parametrize(
    "entry",
    [
        "app.example",
        "https://",
        "https://app.example/path",
        "https://app.example?q",
        "https://user@app.example",
        "https://app.example:*",
        "https://app.example:70000",
        "https://app-*.example",
        "https://*.*.example",
        "https://app.*",
        "*.example",
        "*://app.example",
        "https://bücher.example",
        "https://[::g]",
        "https://[1.2]",
        "wss://app.example",
        "app://user@app",
        "app://app/path",
        "app://my app",
        "app://app-*",
        "app://bücher",
        "http://127.1",
        "http://192.168.001.5",
        "http://192.168.1.5.",
        "http://256.1.1.1",
        "http://0x7f000001",
        "http://*.192.168.1.5",
        "data:,",
        "https://a.example https://b.example",
    ],
)
def test_what_can_match_nothing_is_refused(entry):
    with pytest.raises(SettingsError, match="is no web origin"):
        Origins(f"https://ok.example,{entry}")
