"""A headless browser for the tests that click and type."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-quic",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--window-size=1400,900",
)  # fmt: skip


def find_browser() -> tuple[str | None, str | None]:
    """Where Chromium and chromedriver are; None for one that is not installed."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None), shutil.which("chromedriver")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Chromium driven through chromedriver, for all tests; skips where one of the two is not installed."""
    pytest.importorskip("selenium", reason="selenium is not installed (pip install -e '.[dev]')")
    binary, driver = find_browser()
    if not binary or not driver:
        pytest.skip("no Chromium with chromedriver installed (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    started.set_page_load_timeout(60)
    yield started
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # closing a browser is not what is tested
        started.quit()


_SEEN = "(one) => one.checkVisibility({ visibilityProperty: true })"


class Screen:
    """One page in the browser: what a reader does with it and sees of it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, *, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        """Load a page in a window of a width, in light or dark, and wait until it is there."""
        from selenium.webdriver.support.ui import WebDriverWait

        self.driver.get_log("browser")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(page.resolve().as_uri())
        WebDriverWait(self.driver, 60).until(lambda _: self.js("return document.documentElement.dataset.ready"))

    def js(self, script: str, *arguments: Any) -> Any:
        """What a script returns that runs in the page."""
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        """The visible elements of a selector."""
        found = self.js(f"return [...document.querySelectorAll(arguments[0])].filter({_SEEN})", selector)
        return list(found)

    def one(self, selector: str) -> Any:
        """The first visible element of a selector."""
        return self.all(selector)[0]

    def text(self, selector: str) -> str:
        """The text of the first visible element of a selector."""
        return self.texts(selector)[0]

    def texts(self, selector: str) -> list[str]:
        """The texts of all visible elements of a selector."""
        read = f"return [...document.querySelectorAll(arguments[0])].filter({_SEEN}).map((one) => one.innerText.trim())"
        return list(self.js(read, selector))

    def click(self, selector: str, text: str = "") -> None:
        """Scroll to an element, the first that has the text, and click on it."""
        found = next(one for one in self.all(selector) if text in one.text)
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", found)
        found.click()

    def type(self, selector: str, text: str) -> None:
        """Replace what stands in a field by typing."""
        from selenium.webdriver.common.keys import Keys

        field = self.one(selector)
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", field)
        field.click()
        field.send_keys(Keys.CONTROL + "a", Keys.DELETE)
        field.send_keys(text)

    def choose(self, label: str, option: str) -> None:
        """Choose an option of the list with a label, in the sample browser."""
        from selenium.webdriver.support.ui import Select

        field = next(one for one in self.all("#samples label.field") if one.text.startswith(label))
        Select(field.find_element("css selector", "select")).select_by_visible_text(option)

    def wait(self, condition: Any) -> None:
        """Wait until a condition holds, for ten seconds at most."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 10).until(lambda _: condition())

    def complaints(self) -> list[str]:
        """What the browser's console has: errors, and violations of the page's policy."""
        return [str(entry["message"]) for entry in self.driver.get_log("browser")]


@pytest.fixture
def screen(chromium: Any) -> Screen:
    """A fresh view of the browser."""
    return Screen(chromium)
