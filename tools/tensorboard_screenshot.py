"""Take a picture of TensorBoard as it opens on a real run: ``python tools/tensorboard_screenshot.py RUN_FOLDER``.

Starts TensorBoard on the loopback interface, takes the picture with a headless Chromium, and ends both.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--lang=en"),
    "--disable-3d-apis",  # without WebGL TensorBoard draws SVG, which a headless picture does not miss
)
SECONDS = 90
SMALL = 300_000  # bytes; a picture for a README


def screenshot(run: Path, picture: Path, size: str = "1300,860") -> None:
    """Write the picture.

    Args:
        run: Log folder of a run.
        picture: The PNG to write.
        size: Width and height of the window.

    Raises:
        SystemExit: There is no Chromium, TensorBoard doesn't start, or the picture is missing or too large.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("There is no Chromium here (apt-get install chromium).")
    port = _free_port()
    run = run.resolve()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", f"{run.parent.name}/{run.name}",
               "--host", "127.0.0.1", "--port", str(port), "--load_fast", "false"]  # fmt: skip
    with tempfile.TemporaryDirectory() as profile:
        # from there, so that the picture shows no path of this machine
        server = subprocess.Popen(command, cwd=run.parents[1], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait(f"http://127.0.0.1:{port}/data/plugin/scalars/tags", server)
            address = f"http://127.0.0.1:{port}/?darkMode=false&smoothing=0#timeseries"
            look = [browser, *FLAGS, f"--user-data-dir={profile}", f"--window-size={size}",
                    "--virtual-time-budget=20000", f"--screenshot={picture.resolve()}", address]  # fmt: skip
            subprocess.run(look, check=True, timeout=SECONDS, capture_output=True)
        finally:
            server.terminate()
            server.wait()
    if not picture.is_file() or picture.stat().st_size > SMALL:
        raise SystemExit(f"{picture} is missing, or larger than {SMALL // 1000} kB.")
    print(f"{picture}, {picture.stat().st_size // 1000} kB")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(address: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until TensorBoard serves scalars; it reads the event files in the background."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if b"charts/" in answer.read():
                    return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            pass
        time.sleep(0.5)
    raise SystemExit("TensorBoard did not show a chart: is this the folder of a run that `dipo-lightning fit` made?")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="log folder of a run")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "assets" / "tensorboard.png"
    )
    arguments = parser.parse_args()
    screenshot(arguments.run, arguments.output)
