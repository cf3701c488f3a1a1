"""How large the viewer's page of a CT is, how long it takes to write, to open, and to draw anew.

    python tests/benchmarks/benchmark_view.py -o /tmp/view [--shape 256,256,160]

A phantom CT with three dense classes. Needs chromium and chromedriver, which run headless and without a
graphics processor, and Linux: processor time, of all of the browser's processes, is read from /proc. A redraw
is the page's script in a frame; pixels are scaled and composed after it, which only the processor time has.
"""

import argparse
import os
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
from inference.subjects import make_ct
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from medseg_brn.reports.viewer.page import render_scene
from medseg_brn.reports.viewer.scene import make_scene
from medseg_brn.volumes.reading import read_volume
from medseg_brn.volumes.volume import Volume

FRAMES = 30
ACTIONS = {
    "axial slice": ("axial", "PageDown", "PageUp"),
    "coronal slice": ("coronal", "PageDown", "PageUp"),
    "sagittal slice": ("sagittal", "PageDown", "PageUp"),
    "window": ("axial", "w", "W"),
    "class on or off": ("axial", "2", "2"),
    "opacity": ("axial", "]", "["),
}
MEASURE = """
const [plane, keys, frames, done] = arguments;
const target = document.querySelector(`#${plane} canvas`);
const request = window.requestAnimationFrame.bind(window);
const times = [];
window.requestAnimationFrame = (draw) => request((now) => {
  const start = performance.now();
  draw(now);
  times.push(performance.now() - start);
});
const step = (number) => {
  if (number === frames) {
    window.requestAnimationFrame = request;
    return done(times);
  }
  // There and back: no end of the volume is reached.
  const key = keys[Math.floor(number / 5) % 2];
  target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  request(() => request(() => step(number + 1)));
};
step(0);
"""


def main() -> None:
    """Make the CT, write its page, open it and print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--shape", default="256,256,160")
    arguments = parser.parse_args()
    shape = tuple(map(int, arguments.shape.split(",")))
    page = arguments.output / "page.html"
    write_page(arguments.output / "ct.nii.gz", shape, page)
    measure_frames(page)


def write_page(scan: Path, shape: tuple[int, ...], page: Path) -> None:
    """Write the page and print its size, and the seconds that it took."""
    if not scan.exists():
        make_ct(scan, shape, (1.5, 1.5, 2.0))
    image = read_volume(scan)
    labels = Volume(np.digitize(image.array, (-900, -100, 150)).astype(np.uint8), image.grid)
    start, start_cpu = time.perf_counter(), time.process_time()
    page.write_text(render_scene(make_scene(image, labels), scan.name), encoding="utf-8")
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    print(f"{shape} voxels, {np.prod(shape) / 1e6:.1f} million: {page.stat().st_size / 1e6:.1f} MB")
    print(f"written in {seconds:.1f} s, {cpu_seconds:.1f} s of processor time")


def measure_frames(page: Path) -> None:
    """Open the page and print the seconds until it is shown, and the milliseconds of a frame by action."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1400,900"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    browser.set_script_timeout(300)
    try:
        process = browser.service.process.pid
        start, start_cpu = time.perf_counter(), sum_cpu_seconds(process)
        browser.get(page.absolute().as_uri())
        WebDriverWait(browser, 120, 0.02).until(
            lambda _: not browser.find_element("id", "status").is_displayed()
        )
        cpu_seconds = sum_cpu_seconds(process) - start_cpu
        print(f"opened in {time.perf_counter() - start:.1f} s, {cpu_seconds:.1f} s of processor time")
        for name, (plane, *keys) in ACTIONS.items():
            start_cpu = sum_cpu_seconds(process)
            times = browser.execute_async_script(MEASURE, plane, keys, FRAMES)
            cpu_ms = 1000 * (sum_cpu_seconds(process) - start_cpu) / FRAMES
            low, median, high = min(times), statistics.median(times), max(times)
            print(
                f"{name:<16} redraw {median:.1f} ms ({low:.1f} to {high:.1f} over {len(times)} frames), "
                f"{cpu_ms:.0f} ms of processor time a frame",
                flush=True,
            )
    finally:
        browser.quit()


def sum_cpu_seconds(process: int) -> float:
    """Return the processor time of all processes that descend from one."""
    children: dict[int, list[tuple[int, int]]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended
            continue
        children.setdefault(int(fields[1]), []).append(
            (int(path.parent.name), int(fields[11]) + int(fields[12]))
        )
    ticks, waiting = 0, [process]
    while waiting:
        for child, own in children.get(waiting.pop(), []):
            ticks += own
            waiting.append(child)
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
