"""What the page takes from npm: its libraries, copied into `server/static/vendor`, and what checks it.

python -m tests.page.packages types     check the types that its modules declare, by TypeScript
python -m tests.page.packages vendor    copy the libraries anew, at the versions of `js/package.json`
"""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.clients.kit import node, npm, npm_ci

JS = Path(__file__).parent / "js"
MODULES = JS / "node_modules"
STATIC = Path(__file__).parents[2] / "server" / "static"
VENDOR = STATIC / "vendor"
TABLE = VENDOR / "vendor.json"


def check_types(project: Path = JS / "tsconfig.json") -> str:
    """Return what TypeScript has to say of a project; "" if nothing."""
    npm_ci(JS)
    compiler = [node(), str(MODULES / "typescript" / "bin" / "tsc"), "--project", str(project)]
    return subprocess.run(compiler, capture_output=True, text=True, check=False).stdout


def vendored() -> list[dict[str, Any]]:
    """Return the table of the libraries: file, package, version, path in the package, licence, bytes, sha256."""
    rows: list[dict[str, Any]] = json.loads(TABLE.read_text())
    return rows


def described(row: dict[str, Any], data: bytes, version: str) -> dict[str, Any]:
    """Return a row of the table as it is with this file."""
    return row | {"version": version, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def renew() -> None:
    """Copy every library and its licence, and write the table."""
    npm(JS, "install")
    rows = []
    for row in vendored():
        package = MODULES / row["package"]
        shutil.copyfile(package / row["path"], VENDOR / row["file"])
        [licence] = package.glob("LICEN[CS]E")
        shutil.copyfile(licence, VENDOR / f"LICENSE.{row['package']}")
        version = json.loads((package / "package.json").read_text())["version"]
        rows.append(described(row, (VENDOR / row["file"]).read_bytes(), version))
    TABLE.write_text("[\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]\n")


COMMANDS: dict[str, Callable[[], str | None]] = {"types": check_types, "vendor": renew}

if __name__ == "__main__":
    sys.exit(COMMANDS[sys.argv[1]]() or 0)
