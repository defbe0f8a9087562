"""Opens a page of a report in headless Chromium and asks it questions.

    advae-host eval --classifier model_d --purifier advae --report page.html
    python check.py page.html [--chromium PATH] [--screenshot FOLDER]

Nothing may be said on the console, every image must show, a click on a heading must sort and a second one must turn the order round,
and on a phone nothing may stick out to the side. Ends with 1 where something does not hold.
"""

import argparse
import html
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Runs inside the page, at its end.
QUESTIONS = """
const answers = {};
const images = [...document.images];
answers.images = images.length;
answers.broken = images.filter(image => !(image.complete && image.naturalWidth > 0)).length;
answers.nameless = images.filter(image => !image.alt).length;
answers.wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
answers.sorted = [...document.querySelectorAll("table.sortable")].map(table => {
  const heads = [...table.tHead.rows[0].cells];
  const column = heads.findIndex(head => head.textContent.trim() === "robust");
  const values = () => [...table.tBodies[0].rows].map(row => Number(row.cells[column].dataset.sort));
  const rises = list => list.every((v, i) => i === 0 || list[i - 1] <= v);
  heads[column].querySelector("button").click();
  const up = rises(values()) && heads[column].getAttribute("aria-sort") === "ascending";
  heads[column].querySelector("button").click();
  return up && rises(values().reverse()) && heads[column].getAttribute("aria-sort") === "descending";
});
const said = document.createElement("pre");
said.id = "answers";
said.textContent = JSON.stringify(answers);
document.body.append(said);
"""
QUIET = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()


def ask(chromium, page, width, extra=()):
    """The page's answers at this width, and what was said on its console."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "page.html"
        script = f"<script>addEventListener('load', () => {{{QUESTIONS}}})</script></body>"
        copy.write_text(page.read_text().replace("</body>", script))
        command = [chromium, "--headless", "--no-sandbox", *QUIET, f"--user-data-dir={folder}/profile"]
        command += ["--enable-logging=stderr", "--virtual-time-budget=10000", f"--window-size={width},900", *extra]
        done = subprocess.run([*command, "--dump-dom", copy.as_uri()], capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="answers">(.*?)</pre>', done.stdout, re.S)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])) if found else None, console


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--chromium", default="chromium")
    parser.add_argument("--screenshot", type=Path, help="folder for pictures of the page, light and dark")
    options = parser.parse_args()
    failed = False
    for width in (500, 1200):
        answers, console = ask(options.chromium, options.page, width)
        fine = answers is not None and not console and answers["broken"] == answers["nameless"] == 0
        fine = fine and answers["wider"] <= 0 and answers["sorted"] and all(answers["sorted"])
        print(f"{width} pixels wide: {'holds' if fine else 'FAILS'}: {answers} {console or ''}")
        failed |= not fine
    if options.screenshot:
        options.screenshot.mkdir(parents=True, exist_ok=True)
        for name, dark in (("light", []), ("dark", ["--blink-settings=preferredColorScheme=0"])):
            shot = options.screenshot / f"{name}.png"
            command = [options.chromium, "--headless", "--no-sandbox", *QUIET, *dark, "--window-size=1200,1500", "--hide-scrollbars"]
            subprocess.run([*command, f"--screenshot={shot}", options.page.resolve().as_uri()], capture_output=True, timeout=300)
            print(shot)
    sys.exit(failed)


if __name__ == "__main__":
    main()
