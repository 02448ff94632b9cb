"""What tests of the PostgreSQL form begin with."""

import pytest

from tests.jobs.forms import PostgresForm


@pytest.fixture
async def form(postgres):
    """A PostgreSQL database of its own; those of each form have another `form`."""
    form = await PostgresForm(postgres).open()
    yield form
    await form.close()
