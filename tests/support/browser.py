"""Debian's Chromium without a window, driven by Playwright, and a person in it at Airflow's own web UI."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from airpanda.core.secret import Secret
from support.need import need_program

PATIENCE_MS = 90_000
"""How long a page may take to show something: a whole Airflow runs beside it, and other tests, on two cores."""
expect.set_options(timeout=PATIENCE_MS)


@contextlib.contextmanager
def chromium(home: Path) -> Iterator[Browser]:
    """A browser of its own with its files in ``home``; it finds no other host than 127.0.0.1."""
    path = need_program("chromium", "chromium")
    options = [
        "--disable-dev-shm-usage",  # containers have little of it
        "--no-proxy-server",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]
    if os.geteuid() == 0:
        options.append("--no-sandbox")  # root gets no sandbox from Chromium
    environment: dict[str, str | float | bool] = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options, env=environment)
        try:
            yield browser
        finally:
            browser.close()


class WebUi:
    """What a person does on the pages of Airflow 3.3, and a picture of each page in ``pictures``."""

    def __init__(self, browser: Browser, url: str, pictures: Path) -> None:
        self.page: Page = browser.new_page(base_url=url, viewport={"width": 1400, "height": 1000})
        self.page.set_default_timeout(PATIENCE_MS)
        self._pictures = pictures
        self._taken = 0
        self._task = ""

    def picture(self, name: str) -> None:
        """Keep what is on the screen now."""
        self._taken += 1
        self.page.screenshot(path=self._pictures / f"{self._taken:02}-{name}.png")

    def sign_in(self, user: str, password: Secret[str]) -> None:
        """Send the form of the login page, which every page shows to a stranger."""
        self.page.get_by_label("Username").fill(user)
        self.page.get_by_label("Password").fill(password.reveal())
        self.page.get_by_role("button", name="Sign in").click()

    def open_form(self, dag_id: str) -> Locator:
        """The form behind the DAG's button "Trigger"."""
        self.page.goto(f"/dags/{dag_id}")
        self.page.get_by_test_id("trigger-dag-button").click()
        form = self.page.get_by_role("dialog")
        expect(form.get_by_text("Run Parameters").first).to_be_visible()
        return form

    @staticmethod
    def enter(form: Locator, field: str, text: str) -> None:
        """Fill in a field of the form, and leave it as a person does with the tabulator key."""
        place = form.locator(f"input[name=element_{field}]")
        place.fill(text)
        place.press("Tab")

    def trigger(self, form: Locator) -> str:
        """Send the form; the run's id, of the page that Airflow then shows."""
        form.get_by_test_id("trigger-dag-submit").click()
        self.page.wait_for_url(re.compile(r"/runs/[^/]+/?$"))
        return unquote(self.page.url.rstrip("/").rpartition("/")[2])

    def expect_conf(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> None:
        """The page of a run shows these in its configuration."""
        self.page.goto(f"/dags/{dag_id}/runs/{run_id}/details")
        shown = self.page.get_by_role("row", name=re.compile(r"^Conf")).locator(".view-lines")
        for name, value in conf.items():
            expect(shown).to_contain_text(f'"{name}": {json.dumps(value)}')

    def open_task(self, dag_id: str, run_id: str, task_id: str) -> None:
        """By its square in the grid of the DAG's page."""
        self.page.goto(f"/dags/{dag_id}")
        self._task = f"/dags/{dag_id}/runs/{run_id}/tasks/{task_id}"
        self.page.locator(f"a[href='{self._task}']").first.click()
        expect(self.page.get_by_role("heading", name=task_id)).to_be_visible()

    def expect_state(self, state: str) -> None:
        """The badge of the task instance that is open, which follows the state by itself."""
        expect(self.page.get_by_test_id("header-card").get_by_test_id("state-badge")).to_have_text(state)

    def log(self, *texts: str) -> str:
        """The log of the task instance that is open, as soon as it shows these texts."""
        self.page.get_by_role("link", name="Logs").click()
        shown = self.page.get_by_test_id("virtual-scroll-container")
        for text in texts:
            expect(shown).to_contain_text(text)
        return shown.inner_text()

    def clear(self) -> Sequence[str]:
        """The task instance that is open, by its button; the ids of all that Airflow says it clears with it."""
        self.page.get_by_role("button", name="Press shift+c to clear").click()
        dialog = self.page.get_by_role("dialog")
        expect(dialog.get_by_text(re.compile(r"Affected Tasks: [1-9]"))).to_be_visible()
        rows = dialog.get_by_role("row").filter(has_text="__")
        ids = [row.get_by_role("cell").nth(1).inner_text() for row in rows.all()]
        self.picture("clear")
        dialog.get_by_role("button", name="Confirm").click()
        expect(dialog).to_be_hidden()
        return ids

    def follow(self, *links: str) -> str:
        """The text of the page behind an extra link of the opened task instance, or behind further links from there."""
        self.page.goto(f"{self._task}/details")
        for name in links:
            with self.page.expect_navigation():
                self.page.get_by_role("link", name=name, exact=True).click()
        text = self.page.locator("body").inner_text()
        self.picture("-".join(links)[:40].replace(" ", "-").replace("/", "-"))
        return text
