"""The system's Firefox, without a window."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.server_process import clean_env

QUIET = {
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "app.update.auto": False,
}
# A picture of one changing colour instead of a camera's, and no question before it.
FAKE_CAMERA = {"media.navigator.streams.fake": True, "media.navigator.permission.disabled": True}


def program() -> str | None:
    """The system's Firefox."""
    return next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)


@contextlib.contextmanager
def firefox(path: str, home: Path, *arguments: str, preferences: dict[str, Any] | None = None) -> Iterator[Path]:
    """A running browser without a window, its profile in `home`; gives the folder of its profile."""
    profile = home / "profile"
    profile.mkdir(parents=True)
    told = QUIET | (preferences or {})
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in told.items()]
    (profile / "user.js").write_text("\n".join(lines))
    command = [path, "--headless", "--no-remote", "--profile", str(profile), *arguments]
    env = clean_env({"HOME": str(home), "MOZ_CRASHREPORTER_DISABLE": "1"})
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as browser:
        try:
            yield profile
        finally:
            browser.terminate()
