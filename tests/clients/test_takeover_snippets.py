"""The Code panel's snippets by fal's own names, in a sandbox where those lead to the server; it wants a key."""

import json

import pytest

from tests.clients.conftest import KEY
from tests.page.snippets import ALL, run, snippet


@pytest.mark.parametrize(("language", "call"), ALL)
def test_a_snippet_makes_a_picture_by_fals_names(language, call, takeover, tmp_path):
    base = json.loads((takeover.data_dir / "server.json").read_text())["url"] + "/"
    document = json.loads(takeover.get("/openapi.json"))
    text = snippet(language, call, document, base, keys=True, way="takeover")

    done = run(text, language, tmp_path, takeover.sandbox.wrap, FAL_KEY=KEY)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output.jpg").read_bytes().startswith(b"\xff\xd8"), done.stdout + done.stderr
    assert base not in text["program"]
    assert "fourstep hosts" in text["note"]
