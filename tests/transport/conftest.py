"""Fixtures of the transport's tests: the loop that the server runs on, and a server on it."""

import functools

import pytest

from tests.support.raw_connections import serving


@pytest.fixture(scope="module")
def anyio_backend():
    """The loop that the server runs on."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def serve(tmp_path):
    """`async with serve(header_timeout=…) as server`."""
    return functools.partial(serving, tmp_path)
