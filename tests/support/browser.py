"""A page in Chromium, driven by Playwright, whose requests go to a loopback Hub and to files of npm alone."""

import re
import shutil
import subprocess
import tarfile
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from support.scripts import ROOT

PAGE = ROOT / "src/hf_vqvae/export/space"
RUNTIME = re.compile(r"https://cdn\.jsdelivr\.net/npm/(onnxruntime-web@[\d.]+)/dist/")
# Functions of the page's own modules; `state` is all that the page knows.
IMPORTS = """
const [app, sampling] = await Promise.all([import("/app.js"), import("/sampling.js")]);
const { state } = app, { model } = state;
const list = (values) => values && Array.from(values);
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
"""
# Until nothing is computed any more.
SETTLE = """
let [same, last] = [0, null];
while (same < 3) {
  await pause(80);
  const isDone = state.image && (!model.hasPrior || state.bits !== null);
  same = isDone && state.codes === last ? same + 1 : 0;
  last = state.codes;
}
"""
STATE = """
const values = {};
for (const name of ["codes", "pixels", "image", "nats", "erased"]) values[name] = list(state[name]);
for (const name of ["error", "bits", "cell", "label", "seed", "temperature", "topK", "topP", "guidance"]) {
  values[name] = state[name];
}
values.completions = state.completions.map(list);
return values;
"""


def unpack_runtime(folder: Path) -> Path:
    """Get the package of npm whose files the page has from its CDN, in the same version, and return them."""
    (package,) = set(RUNTIME.findall((PAGE / "hub.js").read_text("utf-8")))
    subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    return folder / "package" / "dist"


@contextmanager
def chromium():
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        yield browser
        browser.close()


class Visit:
    """A visitor with a page: what it asked for, and what the browser complained of.

    Args:
        address: of the page.
        hub: address of the Hub, which it may ask, too.
        runtime: the files of npm that stand for those of the CDN.
        options: of Playwright's contexts: size, colours, touch.
    """

    def __init__(self, browser, address: str, hub: str, runtime: Path, **options):
        self.address, self.runtime = address, runtime
        self.hosts = {urlsplit(url).netloc for url in (address, hub)}
        self.asked: set[str] = set()
        self.complaints: list[str] = []
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(60_000)
        self.context.route("**/*", self._answer)
        self.page = self.context.new_page()
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def __enter__(self) -> "Visit":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def _note(self, line) -> None:
        # A file that not every repo has is asked for all the same, and the browser says so.
        is_optional = "404" in line.text and line.location["url"].endswith(("test_images.png", "metrics.json"))
        if line.type == "error" and not is_optional:
            self.complaints.append(f"{line.text} ({line.location['url']})")

    def _answer(self, route) -> None:
        url = route.request.url
        self.asked.add(urlsplit(url).netloc)
        if RUNTIME.match(url):
            route.fulfill(path=self.runtime / url.rsplit("/", 1)[-1], headers={"Access-Control-Allow-Origin": "*"})
        elif urlsplit(url).netloc in self.hosts:
            route.continue_()
        else:
            route.abort()

    def open(self, query: str = "") -> "Visit":
        """Go to the page, and wait until it is ready or says why it is not."""
        self.page.goto("about:blank")  # a new hash alone would load nothing
        self.page.goto(self.address + query)
        self.page.evaluate("import('/app.js')")
        return self

    def __call__(self, code: str, argument=None):
        """Run code in the page, with `state`, its `model`, `app`, `sampling` and `argument`; returns its value."""
        return self.page.evaluate(f"async (argument) => {{ {IMPORTS} {code} }}", argument)

    def state(self) -> dict:
        """What the page knows, once it has computed all of it."""
        return self(SETTLE + STATE)

    def wait_for(self, text: str) -> str:
        """Wait until the page says a text, and return all that it says."""
        line = self.page.locator("#status[role=status]", has_text=text)
        line.wait_for()
        return line.inner_text()

    def failure(self) -> str:
        """The sentence that a page which cannot start shows."""
        assert not self.page.locator("main").is_visible() and not self.page.locator("progress").is_visible()
        return self.page.get_by_role("alert").inner_text()

    def check(self) -> None:
        """The browser has complained of nothing, and nobody else was asked."""
        assert not self.complaints, self.complaints
        assert self.asked <= self.hosts | {"cdn.jsdelivr.net"}, self.asked
