"""A real browser for the tests of the run page: Debian's `chromium` and `chromium-driver`, driven by selenium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

SECONDS = 60  # the machine may be busy; what is waited for usually comes at once


class Browser:
    """A browser at one page after the other; what a person does with it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, address: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Opens a page anew, and waits until it is drawn."""
        media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        self.driver.get("about:blank")
        self.driver.get(address)
        self.until("document.documentElement.dataset.ready === 'true'")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: str, *arguments: Any) -> Any:
        """Waits until a JavaScript expression is true, and returns it."""
        return WebDriverWait(self.driver, SECONDS, 0.02).until(lambda driver: driver.execute_script(f"return {condition}", *arguments), condition)

    def texts(self, selector: str) -> list[str]:
        """The text of each element, as it stands in the document."""
        return self.run("return Array.from(document.querySelectorAll(arguments[0]), (node) => node.textContent)", selector)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def choose(self, label: str, value: str) -> None:
        """Sets the filter of this label, as a person would: the list is then drawn anew."""
        self.run(
            """const label = Array.from(document.querySelectorAll(".filters label")).find((each) => each.firstChild.textContent === arguments[0]);
            const field = label.lastChild;
            field.value = arguments[1];
            field.dispatchEvent(new Event(field.tagName === "SELECT" ? "change" : "input", {bubbles: true}));""",
            label,
            value,
        )

    def complaints(self) -> list[str]:
        """What the browser's console says, since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no Chromium with its driver: apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield started
    finally:
        started.quit()


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> Browser:
    found = Browser(chromium)
    found.complaints()
    return found
