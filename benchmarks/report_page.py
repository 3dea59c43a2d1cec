"""How large the page of a run of the paper's size is, and how long it takes to make and to open; or a picture of one.

    python benchmarks/report_page.py
    python benchmarks/report_page.py --picture_of output_models/first_run --picture docs/images/report.png

The records are made up, in texts that compress about as well as a model's: 20 iterations of 1,024 prompts with 8
responses each, 1,024 held-out prompts. The page is opened in a headless Chromium, where there is one.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from raft.arguments import argument, parse  # noqa: E402
from raft.reports.page.page import write_page  # noqa: E402
from raft.run_directory import write_json  # noqa: E402
from tests.reports.conftest import FLAGS, Screen, find_browser  # noqa: E402
from tests.reports.page_runs import write_align_run  # noqa: E402


@dataclass
class Measuring:
    """Measuring"""

    num_iterations: int = argument(20, "Iterations of the made-up run.")
    num_prompts: int = argument(1024, "Prompts of an iteration, and held-out prompts.")
    num_samples: int = argument(8, "Responses to a prompt.")
    num_words: int = argument(100, "Words of a response; 100 are about 128 tokens.")
    max_megabytes: float = argument(4.0, "What the page may take.")
    output_file: str = argument("benchmarks/results/report_page.json", "Where the numbers go.")
    picture_of: list[str] = argument([], "Take a picture of the page of these runs instead.", commas=False)
    picture: str = argument("docs/images/report.png", "Where the picture goes.")


@dataclass
class PageConfig:
    """Measure the page of a large made-up run, or take a picture of a real one."""

    measuring: Measuring = field(default_factory=Measuring)


def measure(config: Measuring) -> dict[str, Any]:
    """Write a run, make its page, open it; gives sizes in MB and times in seconds."""
    with tempfile.TemporaryDirectory() as home:
        run = write_align_run(
            Path(home) / "run",
            num_iterations=config.num_iterations,
            num_prompts=config.num_prompts,
            num_samples=config.num_samples,
            num_held_out=config.num_prompts,
            num_words=config.num_words,
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin, cpu = time.perf_counter(), time.process_time()
        page = write_page([run], max_megabytes=config.max_megabytes)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        found = {
            "num_samples": config.num_iterations * config.num_prompts * config.num_samples,
            "records_mb": sum(path.stat().st_size for path in run.rglob("*.jsonl")) / 1e6,
            "page_mb": page.stat().st_size / 1e6,
            "seconds_to_make": seconds,
            "cpu_seconds_to_make": cpu,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
            "peak_rss_before_mb": before / 1e3,
        }
        return found | opened(page)


def opened(page: Path) -> dict[str, Any]:
    """Open a page: how long until it is all there, until a search has its answer, and what it says it holds."""
    driver = start_browser()
    if driver is None:
        return {}
    screen = Screen(driver)
    begin = time.perf_counter()
    screen.open(page)
    seconds = time.perf_counter() - begin
    searching = "const t = performance.now(); Browser.current.set({query: 'question 12'}); return performance.now() - t"
    found = {
        "seconds_to_open": seconds,
        "milliseconds_to_search": screen.js(searching),
        "says": screen.text("#samples .lead"),
        "says_of_held_out": screen.text("#before-after [role=status]"),
    }
    driver.quit()
    return found


def start_browser() -> Any:
    """A headless Chromium, or None where there is none."""
    binary, chromedriver = find_browser()
    if not binary or not chromedriver:
        return None
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(chromedriver))


def take_picture(runs: list[str], file: Path) -> None:
    """The upper part of the page of some runs, as a PNG with a small palette."""
    from PIL import Image

    driver = start_browser()
    assert driver is not None, "a picture needs a Chromium with chromedriver"
    with tempfile.TemporaryDirectory() as home:
        screen = Screen(driver)
        screen.open(write_page(runs, Path(home) / "page.html"), width=1200, height=1500)
        time.sleep(0.5)
        raw = Path(home) / "picture.png"
        driver.save_screenshot(str(raw))
        driver.quit()
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.open(raw).convert("RGB").quantize(64).save(file, optimize=True)
    print(f"{file} ({file.stat().st_size / 1e3:.0f} kB)")


def main() -> None:
    """Measure or take a picture, as the flags say."""
    config = parse(PageConfig, sys.argv[1:], prog="python benchmarks/report_page.py").measuring
    if config.picture_of:
        take_picture(config.picture_of, Path(config.picture))
        return
    found = measure(config)
    write_json(Path(config.output_file), {"python": sys.version.split()[0], **found})
    for name, value in found.items():
        print(f"{name:<24}{value:>12,.2f}" if isinstance(value, float) else f"{name:<24}{value}")


if __name__ == "__main__":
    main()
