"""Screenshots of pages in Chromium, 1400 and 400 pixels wide, light and dark: to look at before a release.

    python scripts/screenshots.py small/slimrank/report.html docs/nats-lost.svg --out shots

Each picture is PAGE-WIDTH-light.png or PAGE-WIDTH-dark.png; --height is the screen's, the first one being what matters.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

WIDTHS = (1400, 400)
SCHEMES = {"light": "1", "dark": "0"}  # Blink's PreferredColorScheme
NARROWEST = 500  # pixels of a headless window


def shot(chromium: str, page: Path, width: int, height: int, scheme: str, out: Path) -> Path:
    """Write the picture of a page; one narrower than a window can be is shown in a frame of that width."""
    file = out / f"{page.stem}-{width}-{scheme}.png"
    address, frame = page.resolve().as_uri(), out / f".{page.stem}-{width}.html"
    if width < NARROWEST:
        style = f"border:0;width:{width}px;height:{height}px"
        frame.write_text(f'<body style="margin:0"><iframe src="{address}" style="{style}"></iframe>', encoding="utf-8")
        address = frame.resolve().as_uri()
    command = [
        *(
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--allow-file-access-from-files",
        ),
        *(f"--window-size={width},{height}", "--virtual-time-budget=15000", f"--screenshot={file}"),
        f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
        address,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        sys.exit(f"Chromium did not finish {page} in five minutes.")
    finally:
        frame.unlink(missing_ok=True)
    if done.returncode or not file.is_file():
        sys.exit(f"Chromium made no picture of {page}: {done.stderr.strip().splitlines()[-1:]}")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, help="HTML or SVG files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--chromium", default="chromium", help="the browser, by name or path")
    options = parser.parse_args()
    chromium = shutil.which(options.chromium)
    if chromium is None:
        sys.exit(f"--chromium {options.chromium} is not there: install Chromium or give its path.")
    for page in options.pages:
        if not page.is_file():
            sys.exit(f"{page} is no file: give an HTML or SVG file.")
    options.out.mkdir(parents=True, exist_ok=True)
    for page in options.pages:
        for width in WIDTHS:
            for scheme in SCHEMES:
                print(shot(chromium, page, width, options.height, scheme, options.out))


if __name__ == "__main__":
    main()
