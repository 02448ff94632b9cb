"""Known vulnerabilities among the pinned versions: pip-audit asks OSV about each line of constraints.txt.

    python .ci/audit.py [--osv-url URL] [FILE]

Exits 1 when one is vulnerable. First it asks about a pin that is known to be: who does not hear of that can't reach the
data, and would pass anything; then the audit is left out, in one line, with status 0. (pip-audit's other source, PyPI's
JSON, is no choice: behind an index that has none of it, it skips every package and calls that a success.)
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

KNOWN_BAD = "jinja2==2.4.1"  # CVE-2014-1402 and later ones: no advisory base lacks them
TIMEOUT_S = "15"


def main() -> None:
    """Audit the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--osv-url", default="https://api.osv.dev/v1/query")
    parser.add_argument("file", nargs="?", type=Path, default=Path(__file__).parent.parent / "constraints.txt")
    asked = parser.parse_args()
    if not hears(asked.osv_url):
        print(f"audit left out: {asked.osv_url} tells nothing, not even of {KNOWN_BAD}")
        return
    sys.exit(subprocess.run(command(asked.file, asked.osv_url), check=False).returncode)


def hears(osv_url: str) -> bool:
    """Whether the known bad pin is found to be bad."""
    with tempfile.TemporaryDirectory() as folder:
        control = Path(folder) / "control.txt"
        control.write_text(KNOWN_BAD + "\n")
        told = subprocess.run([*command(control, osv_url), "--format=json"], capture_output=True, check=False).stdout
    return bool(told) and any(package.get("vulns") for package in json.loads(told)["dependencies"])


def command(file: Path, osv_url: str) -> list[str]:
    """pip-audit on a file of exact pins. It exits 1 for a vulnerable one, and also when it could not ask."""
    options = ["--no-deps", "--disable-pip", "--progress-spinner=off", f"--timeout={TIMEOUT_S}"]
    service = ["--vulnerability-service=osv", f"--osv-url={osv_url}"]
    return [sys.executable, "-m", "pip_audit", f"--requirement={file}", *options, *service]


if __name__ == "__main__":
    main()
