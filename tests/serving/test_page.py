"""The page in a real browser: a script uses it as a person does and leaves what it saw in the document."""

import base64
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detection.serving import app as server_app
from detection.serving.limits import Limits
from detection.serving.model_source import ModelSource
from tests.serving.test_server import png, serving, write_detector

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
SCRIPT = """
<pre id="seen"></pre>
<script>
const seen = {}, visible = id => get(id).offsetParent !== null;
function drop(...files) {
  const transfer = new DataTransfer();
  for (const [name, content] of files) {
    transfer.items.add(new File([Uint8Array.from(atob(content), char => char.charCodeAt(0))], name));
  }
  get("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
}
async function until(check) { while (!check()) await new Promise(resolve => setTimeout(resolve, 20)); }
const answered = () => until(() => / of /.test(get("count").textContent));
const slide = value => { get("threshold").value = value; get("threshold").dispatchEvent(new Event("input")); };
const rows = () => get("rows").rows.length;
const downloaded = () => fetch(get("download").href).then(response => response.json());
const colored = () => {  // pixels of the colors that boxes have, on an image of gray
  const {data} = get("canvas").getContext("2d").getImageData(0, 0, get("canvas").width, get("canvas").height);
  let count = 0;
  for (let i = 0; i < data.length; i += 4) count += Math.abs(data[i] - data[i + 1]) > 60;
  return count;
};
(async () => {
  await until(() => get("title").textContent.includes(": "));
  seen.title = get("title").textContent;
  drop(["one.png", IMAGE]); await answered();
  slide(0.01); seen.low = [rows(), colored() > 0];
  slide(1); seen.high = [rows(), colored() > 0, visible("table")];
  slide(0.01); seen.json = await downloaded();
  drop(["bad.png", "aGVsbG8="]); await until(() => get("error").textContent);
  seen.error = [get("error").textContent, visible("canvas"), visible("download"), visible("table")];
  drop(["one.png", IMAGE], ["two.png", IMAGE]); await answered();
  seen.several = [...get("which").options].map(option => option.text);
  seen.both = (await downloaded()).map(image => image.file);
  seen.cleared = get("error").textContent;
  seen.overflow = document.documentElement.scrollWidth > innerWidth;
  get("seen").textContent = JSON.stringify(seen);
})().catch(error => { get("seen").textContent = JSON.stringify({failed: String(error)}); });
</script>
"""


def gray_png() -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png())).convert("L").convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_images_are_dropped_and_the_threshold_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CHROMIUM
    script = SCRIPT.replace("IMAGE", json.dumps(base64.b64encode(gray_png()).decode()))
    page = tmp_path / "page.html"
    page.write_text(server_app.PAGE.read_text("utf-8").replace("</html>", script + "</html>"), "utf-8")
    monkeypatch.setattr(server_app, "PAGE", page)
    write_detector(tmp_path / "detector.pt", seed=0)
    with serving(ModelSource(str(tmp_path / "detector.pt"), "cpu"), Limits()) as port:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--window-size=500,800", "--timeout=60000", "--virtual-time-budget=60000", "--dump-dom"]
        command.append(f"http://127.0.0.1:{port}/")
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'<pre id="seen">(.+?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    seen: dict[str, Any] = json.loads(found[1])
    assert "failed" not in seen, seen
    assert seen["title"] == "retinanet_resnet18: ring, cross, leaf"
    count = len(seen["json"]["detections"])
    assert seen["low"] == [count, True]
    assert count > 0
    assert seen["high"] == [0, False, False]
    assert (seen["json"]["file"], seen["json"]["width"]) == ("one.png", 80)
    assert seen["error"] == ["bad.png is not an image of a known type", False, False, False]
    assert seen["several"] == seen["both"] == ["one.png", "two.png"]
    assert seen["cleared"] == ""
    assert not seen["overflow"]
