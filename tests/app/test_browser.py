"""The page in a real browser: pick, drag, compare, save, reload, on a tiny model that answers with
what would be markup. With UNREFUSE_SHOTS=FOLDER it leaves a picture of every step."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests import talker

pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
from selenium.common.exceptions import TimeoutException  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

pytestmark = [
    pytest.mark.timeout(1800),  # a minute on a free machine
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("chromedriver"), reason="needs chromium and chromedriver"),
]
UNREFUSE = Path(sys.executable).parent / "unrefuse"
MARKUP = ["<img/src=x/onerror=document.title='owned'>", "${document.title='owned'}", "{{model}}"]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(talker, "ANSWER", ["Sure,", *MARKUP, "short", "answer."])
    talker.build(tmp_path / "talker")
    talker.write_prompts(tmp_path)
    return tmp_path


@pytest.fixture
def link(folder):
    served = subprocess.Popen([UNREFUSE, "app", folder / "mine"], stdout=subprocess.PIPE, text=True)
    yield re.search(r"http://\S+", served.stdout.readline()).group()
    served.send_signal(signal.SIGINT)
    assert served.wait(180) == 0


@pytest.fixture
def browser(tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    for flag in (*FLAGS, "--window-size=1300,1100", f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


class Page:
    def __init__(self, browser):
        self.browser, self.shots = browser, 0

    def find(self, css):
        return self.until(lambda b: b.find_elements(By.CSS_SELECTOR, css))[0]

    def until(self, holds, seconds=300):
        try:
            return WebDriverWait(self.browser, seconds, 0.2).until(holds)
        except TimeoutException:
            self.shot()
            raise

    def says(self, css, text, seconds=300):
        said = "return (document.querySelector(arguments[0])?.textContent ?? '')"
        self.until(lambda b: text in b.execute_script(said, css), seconds)

    def tab(self, name):
        self.find("button[role=tab]")
        tabs = self.browser.find_elements(By.CSS_SELECTOR, "button[role=tab]")
        next(tab for tab in tabs if tab.text == name).click()

    def fill(self, css, text, *keys):
        field = self.find(css)
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text, *keys)

    def click(self, css):
        self.until(lambda b: self.find(css).is_displayed())
        self.browser.execute_script(
            "arguments[0].scrollIntoView({block: 'center'})", self.find(css)
        )
        self.find(css).click()

    def drag(self, css, share):
        slider = self.find(f"{css} input[type=range]")
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
        low, high, now = (float(slider.get_attribute(a)) for a in ("min", "max", "value"))
        wide = slider.size["width"] - 16  # less a thumb
        by = wide * (share - (now - low) / (high - low))
        start = wide * ((now - low) / (high - low) - 0.5)
        drag = ActionChains(self.browser).move_to_element_with_offset(slider, round(start), 0)
        drag.click_and_hold().move_by_offset(round(by / 2), 0).move_by_offset(round(by / 2), 0)
        drag.release().perform()

    def shot(self):
        if folder := os.environ.get("UNREFUSE_SHOTS"):
            self.shots += 1
            self.browser.save_screenshot(f"{folder}/{self.shots}.png")


def status_of(url):
    try:
        return urllib.request.urlopen(url).status  # noqa: S310
    except urllib.error.HTTPError as error:
        return error.code


def test_pick_drag_compare_save_reload(folder, link, browser):
    assert status_of(link.split("?")[0]) == 403
    page, mine = Page(browser), folder / "mine"
    browser.get(link)
    page.fill("#model input", str(folder / "talker"), Keys.ENTER)
    page.says("#fit", "parameters")
    page.fill("#limit input", "40")
    page.click("#own button")
    for name in talker.MARKS:
        page.fill(f"#own-{name} textarea, #own-{name} input", str(folder / f"{name}.txt"))
    page.shot()
    page.click("#look")
    page.until(lambda b: page.find("#status .un-running"))
    page.shot()
    page.says("#status", "done")
    page.says("#analysis", "could be answered")
    page.shot()

    page.tab("Compare")
    page.fill("#prompt textarea", "q5 q9 B")
    page.click("#ask")
    page.says("#original .un-text", " ".join(["Sure,", *MARKUP, "short", "answer."]))
    page.fill("#prompt textarea", "q5 q9 T")
    page.click("#ask")
    page.says("#original .un-grade", "refused")
    page.says("#edited .un-grade", "answered")
    page.says("#margins", "says something else")
    page.shot()
    page.drag("#strength", 0)
    page.says("#edited .un-grade", "refused")
    page.says("#margins", "still says them")
    page.shot()
    page.drag("#strength", 1 / 6)
    page.says("#edited .un-grade", "answered")

    page.click("#add")
    page.until(lambda b: (mine / "target.jsonl").exists())
    page.click("#grade-edited input")
    page.until(lambda b: b.find_elements(By.CSS_SELECTOR, "[role=option]"))
    options = browser.find_elements(By.CSS_SELECTOR, "[role=option]")
    next(option for option in options if option.text.endswith("partly")).click()
    page.click("#wrong-edited")
    page.until(lambda b: (mine / "corrections.jsonl").exists())
    row = json.loads((mine / "corrections.jsonl").read_text(encoding="utf-8"))
    assert (row["prompt"], row["grade"], row["label"]) == ("q5 q9 T", "answered", "partly")

    page.tab("Edit and save")
    page.fill("#name textarea, #name input", "edited")
    page.click("#save")
    page.says("#result", "Saved to")
    page.shot()
    assert (mine / "edited" / "model.safetensors").is_file()
    report = "<script>document.title = 'a report ' + (self.origin === 'null')</script>"
    (mine / "edited" / "report.html").write_text(report)

    browser.refresh()
    page.tab("Compare")
    page.says("#edited .un-grade", "answered")
    assert page.find("#prompt textarea").get_attribute("value") == "q5 q9 T"
    page.tab("Runs")
    page.says("#runs", "edited")
    page.shot()
    page.click("#runs a")
    browser.switch_to.window(browser.window_handles[-1])
    page.until(lambda b: b.title == "a report true")  # in an origin of its own
    browser.switch_to.window(browser.window_handles[0])
    assert browser.title == "unrefuse"
    assert hosts(browser) == {link.split("/")[2]}


def hosts(browser):
    """Where the browser has asked for anything."""
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    sent = (e["params"] for e in events if e["method"] == "Network.requestWillBeSent")
    asked = (params["request"]["url"] for params in sent)
    return {url.split("/")[2] for url in asked if url.startswith(("http:", "https:", "ws"))}
