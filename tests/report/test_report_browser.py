"""The page in a real browser: its script sorts, filters and pages, and hostile names stay text."""

import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from memfold.report import write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)
HOSTILE = "</script><script>document.title='hacked'</script><img src=x onerror=document.title='h'>"
DRIVER = """
const found = {};
const $ = (query) => document.querySelector(query);
const cells = (n) => [...document.querySelectorAll(`#table td:nth-child(${n})`)]
  .map((cell) => cell.textContent);
const header = (key) => $(`th[data-key="${key}"]`);
const press = (query) => $(query).click();
const visible = () => [...document.querySelectorAll("#cards .card")]
  .filter((card) => getComputedStyle(card).display !== "none").length;
found.start = $("#status").textContent;
found.cards = [visible(), (press("#more-cards"), visible()), (press("#more-cards"), visible())];
found.moreHidden = $("#more-cards").hidden;
press('#card-filter [data-verdict="data"]');
found.dataCards = visible();
press("#next");
found.second = $("#status").textContent;
header("model").querySelector("button").click();
found.rising = cells(3);
found.sorts = [header("model").ariaSort, header("id").ariaSort];
header("model").querySelector("button").click();
found.falling = cells(3);
found.fallingSort = header("model").ariaSort;
press('#verdict-filter [data-verdict="data"]');
found.verdicts = [...new Set(cells(2))];
found.filtered = $("#status").textContent;
found.pressed = $('#verdict-filter [data-verdict="data"]').ariaPressed;
press('#verdict-filter [data-verdict=""]');
$("#search").value = "IMAGE 001";
$("#search").dispatchEvent(new Event("input"));
found.searched = cells(1);
$("#search").value = "nowhere";
$("#search").dispatchEvent(new Event("input"));
found.nothing = $("#status").textContent;
location.hash = "#image-27";
window.dispatchEvent(new Event("hashchange"));
found.revealed = getComputedStyle($("#image-27")).display !== "none";
const result = document.createElement("pre");
result.id = "found";
result.textContent = JSON.stringify(found);
document.body.append(result);
"""


def dom(path: Path) -> str:
    """The document after its script has run."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", "--dump-dom"]
        command.append(path.as_uri())
        done = subprocess.run(command, capture_output=True, timeout=60, check=True)
    return done.stdout.decode()


@pytest.fixture(scope="module")
def found(make_audit, tmp_path_factory) -> dict:
    """What a driver appended to the page saw; the policy is lifted for it."""
    path = write(make_audit(tmp_path_factory.mktemp("driven"), n=110, overfitting=18, data=9))
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"<meta http-equiv=.*?>", "", text)
    path.write_text(text.replace("</body>", f"<script>{DRIVER}</script></body>"), encoding="utf-8")
    report = re.search(r'<pre id="found">(.*?)</pre>', dom(path), flags=re.DOTALL)[1]
    return json.loads(report.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def test_pages(found):
    assert found["start"] == "1 to 50 of 110"
    assert found["second"] == "51 to 100 of 110"


def test_sorts(found):
    rising, falling = ([float(v) for v in found[key]] for key in ("rising", "falling"))
    assert rising == sorted(rising)
    assert rising[-1] < 50
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] > 30
    assert found["sorts"] == ["ascending", "none"]
    assert found["fallingSort"] == "descending"


def test_filters(found):
    assert found["verdicts"] == ["Data"]
    assert found["filtered"] == "1 to 9 of 9"
    assert found["pressed"] == "true"
    assert len(found["searched"]) == 10
    assert all(name.startswith("image 001") for name in found["searched"])
    assert found["nothing"] == "No image matches"


def test_cards_come_by_the_page(found):
    assert found["cards"] == [24, 27, 27]
    assert found["moreHidden"]
    assert found["dataCards"] == 9
    assert found["revealed"]


@pytest.mark.parametrize("lifted", [False, True], ids=["policy", "no policy"])
def test_hostile_names_stay_text(make_audit, tmp_path, lifted):
    """The script runs under its own policy, and escaping holds without one."""

    def edit(audit, rows):
        audit["title"] = HOSTILE
        for row in rows:
            row["id"] = row["reason"] = row["nearest_id"] = row["truth"] = HOSTILE + row["id"]
            row["neighbors"] = [HOSTILE]

    path = write(make_audit(tmp_path, n=10, overfitting=2, data=2, edit=edit))
    if lifted:
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"<meta http-equiv=.*?>", "", text), encoding="utf-8")
    document = dom(path)
    assert "1 to 10 of 10" in document
    assert len(re.findall(r"<script[ >]", document)) == 2
    assert '<img src="x"' not in document
    title = re.search(r"<title>(.*?)</title>", document)[1]
    assert title.startswith("&lt;/script&gt;")
