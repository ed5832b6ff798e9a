"""Make the pictures of the report that the READMEs show: run the example twice, open its report, take pictures.

    python docs/pictures/make.py

Needs Chromium or Chrome on the PATH, and fonts with Korean. `flow.svg` beside this file is drawn by hand.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
_ROOT = _FOLDER.parent.parent

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

#: Of the page that is shown; what is below it a reader finds in the report itself.
_WIDTH, _HEIGHT = 920, 1180

#: A README should load fast.
_MOST_BYTES = 200_000

#: What Chromium calls the two colour schemes.
_SCHEMES = {"light": 1, "dark": 0}


def main() -> int:
    """Write report_light.png and report_dark.png; returns the exit code."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        print(f"error: there is none of {', '.join(_BROWSERS)} on the PATH. Install one.", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "example"
        for flags in ([], ["--fresh"]):  # the second run is compared with the first
            _run_example(output, *flags)
        for name, scheme in _SCHEMES.items():
            picture = _FOLDER / f"report_{name}.png"
            _take(browser, output / "report.html", picture, scheme)
            if picture.stat().st_size > _MOST_BYTES:
                print(
                    f"error: {picture} has {picture.stat().st_size:,} bytes, more than {_MOST_BYTES:,}", file=sys.stderr
                )
                return 1
            print(picture.relative_to(_ROOT))
    return 0


def _run_example(output: Path, *flags: str) -> None:
    prompts = str(_ROOT / "examples/prompts.jsonl")
    command = [sys.executable, "-m", "pipelines.run", "--prompts", prompts, "--output", str(output), *flags]
    subprocess.run(command, cwd=_ROOT, check=True, timeout=600)


def _take(browser: str, page: Path, picture: Path, scheme: int) -> None:
    command = [
        browser,
        "--headless",
        "--no-sandbox",  # Chromium cannot have one of its own in most containers; the page is ours
        "--disable-gpu",
        "--hide-scrollbars",
        f"--blink-settings=preferredColorScheme={scheme}",
        f"--window-size={_WIDTH},{_HEIGHT}",
        f"--screenshot={picture}",
        page.as_uri(),
    ]
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
