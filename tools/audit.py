"""Look up known vulnerabilities of the tested versions with pip-audit: exit code 1 if there are any.

Without a network, or where the service does not know the packages (a mirror of PyPI lists no vulnerabilities), it says
that there was no audit and ends with exit code 0. pip-audit by itself would report "no known vulnerabilities" there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "pip-audit"]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if installed.returncode:
        print(f"No audit: pip-audit could not be installed.\n{installed.stderr.strip()[-300:]}")
        return 0
    # the versions are pinned, so nothing needs to be resolved or downloaded
    audit = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off",
             "--format", "json", "--requirement", str(ROOT / "constraints.txt")]  # fmt: skip
    done = subprocess.run(audit, capture_output=True, text=True, check=False)
    said, code = verdict(done.stdout, done.stderr)
    print(said)
    return code


def verdict(output: str, errors: str) -> tuple[str, int]:
    """Return a summary of pip-audit's JSON as text, and the exit code for it.

    Args:
        output: pip-audit's standard output; empty if it could not ask the service at all.
        errors: pip-audit's standard error.
    """
    if not output.strip():
        return f"No audit: pip-audit gave no answer ({(errors.strip() or 'silence')[-300:]}).", 0
    packages = json.loads(output)["dependencies"]
    audited = [package for package in packages if "skip_reason" not in package]
    count = f"{len(audited)} of {len(packages)} packages were audited"
    if not audited:
        return f"No audit: {count}; the service knows none of them.", 0
    found = [
        f"{package['name']} {package['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'none'}"
        for package in audited
        for hole in package["vulns"]
    ]
    left = [package["name"] for package in packages if "skip_reason" in package]
    lines = [f"{count}, {len(found)} known vulnerabilities.", *found]
    return "\n".join(lines + ([f"Not audited: {', '.join(left)}"] if left else [])), int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
