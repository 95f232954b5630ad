"""Pages of results: what is in them, that nothing in them runs or leaks, and what a real browser shows."""

import hashlib
import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, find_browser

from medseg.errors import InputError
from medseg.evaluation import Settings, compare_files, evaluate_files
from medseg.io import write_instances, write_volume
from medseg.io.atomic import write_json
from medseg.io.failures import Failure, write_failures
from medseg.labels import Label, LabelTable
from medseg.metrics.measurement import measure
from medseg.reporting.case_report import case_warnings, describe_case, read_case, save_case
from medseg.reporting.cohort_index import forget_failure, save_index, without_paths
from medseg.reporting.evaluation_report import clear_report, is_evaluation, save_evaluation_report, save_worst_pictures
from medseg.reporting.html import for_script
from medseg.reporting.overlay import save_overlay
from medseg.reporting.tables import write_measurements_json
from medseg.reporting.training_report import is_training, save_training_report
from medseg.reporting.viewer import BUDGET, MAX_VOXELS, unpacked, viewer_data
from medseg.values.geometry import make_volume
from medseg.values.instances import Instance, InstanceSet

HARD = '</script><img src=x onerror="document.title=1">'
QUOTED = "\"'><script>document.title=2</script>&amp;"
LABELS = LabelTable(
    [
        Label(id=1, name="organ", colour=(230, 159, 0)),
        Label(id=2, name=HARD, colour=(0, 114, 178)),
        Label(id=3, name=QUOTED, colour=(0, 158, 115)),
        Label(id=4, name="speck", colour=(213, 94, 0), kind="ids"),
    ]
)
SHAPE = (15, 37, 43)


@pytest.fixture(scope="module")
def case():
    """An oblique CT of 3.0 x 1.4 x 1.2 mm: an organ, one object in it, one elsewhere at the border, and 99 specks."""
    turn = np.deg2rad([11.0, -7.0, 19.0])
    (a, b, c), (d, e, f) = np.cos(turn), np.sin(turn)
    about = (
        np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
        @ np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
        @ np.array([[1, 0, 0], [0, a, -d], [0, d, a]])
    )
    affine = np.eye(4)
    affine[:3, :3] = about @ np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]]) * [3.0, 1.4, 1.2]
    affine[:3, 3] = (-37.2, 51.9, -813.4)
    masks = np.zeros((3, *SHAPE), bool)
    masks[0, 3:12, 6:28, 5:26] = True
    masks[1, 5:9, 12:20, 9:17] = True
    masks[2, 6:15, 8:20, 30:40] = True
    array = np.full(SHAPE, -1000, np.int16)
    array[:, 2:35, 2:41] = 40
    volume = make_volume(array, affine, "volume")
    objects = [*InstanceSet.from_masks(zip((1, 2, 3), masks, strict=True), volume, LABELS)]
    # so many that colours are told apart only if each is looked up exactly
    objects += [
        Instance(id=1, label=4, mask=np.ones((1, 1, 1), bool), offset=(z, 35, 4 + x))
        for z in (0, 2, 4)
        for x in range(33)
    ]
    return volume, InstanceSet.build(objects, volume, LABELS)


RUN = {
    "case": "x",
    "patient_id": "DOE^JANE",
    "warnings": ["pixels of 9 mm are much coarser than the 2 mm of training"],
    "linking": {"doubtful_joins": [{"instance": 2, "point_lps_mm": [-13.7, 74.5, -795.2], "confidence": 0.61}]},
    "environment": {"medseg": "0.1.0"},
    "seconds": {"read": 0.5},
}


@pytest.fixture(scope="module")
def page(case, tmp_path_factory):
    """The report of the case, with a name that could break it."""
    folder = tmp_path_factory.mktemp("pages")
    return describe_case(HARD, *case, (-160.0, 240.0), RUN).save(folder / "report.html")


def embedded(text):
    return json.loads(re.search(r'id="viewer-data">(.*?)</script>', text, re.DOTALL)[1])


def test_text_can_neither_end_a_script_nor_become_markup(page):
    text = page.read_text()
    assert HARD not in text and QUOTED not in text and "<img src=x" not in text
    assert [o["name"] for o in embedded(text)["objects"]][:3] == ["organ", HARD, QUOTED]
    assert "\u2028" not in for_script(["\u2028"]) and json.loads(for_script({"a": float("nan")})) == {"a": None}


def test_the_page_forbids_everything_but_its_own_scripts(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html.unescape(page.read_text()))[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data: blob:"
    assert all(source.startswith("'sha256-") for source in rules["script-src"].split())
    assert "http:" not in policy and "https:" not in policy


def test_what_a_report_says(page, case):
    text = page.read_text()
    assert text.count("Research use only") == 2
    assert "much coarser than the 2 mm of training" in text.replace("Pixels", "pixels")
    assert "confidence 0.61" in text and "DOE^" not in text
    warnings = case_warnings(case[1], [{"name": "organ", "touches_border": True}], {})
    assert warnings == [
        "Cut by the field of view, perhaps: organ reaches the edge of the image; sizes may be too small"
    ]
    empty = InstanceSet.build([], case[0], LABELS)
    assert case_warnings(empty, [], {}) == ["Nothing found"]
    assert "Nothing was found" in describe_case("x", case[0], empty, None).html()


def test_the_library_in_the_pages_is_the_one_that_its_readme_names(repository):
    folder = repository / "medseg" / "reporting" / "vendor" / "niivue"
    digest = hashlib.sha256((folder / "niivue.umd.js").read_bytes()).hexdigest()
    assert f"SHA-256: {digest}" in (folder / "README.md").read_text()
    assert "BSD 2-Clause" in (folder / "LICENSE").read_text()


def test_a_notebook_shows_pictures_and_objects(case):
    text = describe_case("x", *case, (-160.0, 240.0), RUN)._repr_html_()
    assert text.count("<img") >= 2 and "organ" in text and "<script" not in text


# What the viewer is given.


def paint(data):
    """Return the embedded objects as [object, slice, row, column] on the page's grid."""
    bits, start = np.frombuffer(unpacked(data["masks"]), np.uint8), 0
    painted = np.zeros((len(data["objects"]), *data["shape"][::-1]), bool)
    for target, entry in zip(painted, data["objects"], strict=True):
        x, y, z, nx, ny, nz = entry["box"]
        size = -(-nx * ny * nz // 8)
        mask = np.unpackbits(bits[start : start + size], bitorder="little")[: nx * ny * nz].reshape(nz, ny, nx)
        target[z : z + nz, y : y + ny, x : x + nx] = mask
        start += size
    return painted


def centres(data, painted):
    """Return the centroid of each object in RAS mm from its voxels and the embedded affine."""
    affine = np.array(data["affine"]).reshape(4, 4)
    return [affine[:3, :3] @ np.argwhere(mask)[:, ::-1].mean(axis=0) + affine[:3, 3] for mask in painted]


def test_objects_keep_their_voxels_overlap_and_place(case):
    volume, instances = case
    data = viewer_data(volume, instances, (-160.0, 240.0))
    painted = paint(data)
    assert data["factors"] == [1, 1, 1]
    assert [int(m.sum()) for m in painted] == [i.voxels for i in instances]
    assert int((painted[0] & painted[1]).sum()) == instances[2].voxels
    for instance, entry, centre in zip(instances, data["objects"], centres(data, painted), strict=True):
        index = np.argwhere(instance.mask).mean(axis=0) + instance.offset
        lps = volume.affine[:3, :3] @ index + volume.affine[:3, 3]
        np.testing.assert_allclose(entry["centroid"], lps * (-1, -1, 1), atol=1e-3)
        np.testing.assert_allclose(centre, entry["centroid"], atol=1e-2)
        assert entry["colour"] == list(instances.colours()[instance.id - 1])


def test_a_large_image_is_reduced_in_place_and_small_objects_stay(rng):
    shape = (3, 2100, 2200)
    affine = np.diag([5.0, 0.7, 0.6, 1.0])[[2, 1, 0, 3]][:, [0, 1, 2, 3]]
    volume = make_volume(rng.integers(-200, 300, shape).astype(np.int16), affine, "large")
    mask = np.zeros(shape, bool)
    mask[1, 1201, 701] = True
    data = viewer_data(volume, InstanceSet.from_masks([(1, mask)], volume, LABELS), (-160.0, 240.0))
    assert max(data["factors"][:2]) > 1 and data["factors"][2] == 1
    assert np.prod(data["shape"]) <= MAX_VOXELS and len(data["image"]) <= 1.4 * BUDGET
    painted = paint(data)
    assert painted.sum() == 1
    # the one voxel lies within the reduced one
    difference = np.abs(centres(data, painted)[0] - data["objects"][0]["centroid"])
    assert (difference <= np.array([0.6, 0.7, 5.0]) * data["factors"] / 2).all()


def test_grey_levels_follow_the_scale(case):
    volume, instances = case
    data = viewer_data(volume, instances, (-160.0, 240.0))
    grey = np.frombuffer(unpacked(data["image"]), np.uint8)
    assert len(np.unique(grey)) == 2
    name, black, white = data["windows"][0]
    # 40 HU is the middle of -160 to 240
    assert name == "As in the pictures" and abs((grey.max() - black) / (white - black) - 0.5) < 0.01
    assert viewer_data(volume, instances, None)["windows"][0] == ["Full range", 0.0, 255.0]


# Folders of results.


def save_results(folder, case, names):
    """Write what `medseg predict` leaves of a case that reports are made from (without torch, which takes seconds)."""
    volume, instances = case
    run = {"patient_id": "DOE^JANE", "display_window": [-160.0, 240.0], "warnings": [], "seconds": {"read": 1.0}}
    for name in names:
        write_instances(folder / name / f"{name}.seg.nrrd", instances)
        write_measurements_json(measure(instances, volume), folder / name / f"{name}_measurements.json")
        save_overlay(folder / name / f"{name}_overlay.png", volume, instances, columns=1)
        write_json(folder / name / "run.json", {"case": name, **run})
    return run


def test_a_report_is_rebuilt_from_the_saved_files(case, tmp_path):
    volume, instances = case
    run = save_results(tmp_path, case, ["x"])
    path = save_case(read_case(tmp_path / "x", volume), tmp_path / "x")
    assert path == tmp_path / "x" / "report.html" and (tmp_path / "x" / "x_thumbnail.jpg").is_file()
    assert describe_case("x", *case, (-160.0, 240.0), run).html() == path.read_text()
    without = read_case(tmp_path / "x").html()
    assert "viewer-data" not in without and "data:image/png" in without and "DOE^" not in without
    (tmp_path / "x" / "x_measurements.json").write_text('{"measurements": []}')
    with pytest.raises(InputError, match="not about the objects"):
        read_case(tmp_path / "x")


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("/data/DOE JANE/study/1.dcm: truncated", "(file): truncated"),
        ("cannot read /mnt/DOE^JANE/x.nii.gz (broken)", "cannot read (file) (broken)"),
        ("../DOE/x.nii: 3 of 4 slices; 2.0 mm", "(file): 3 of 4 slices; 2.0 mm"),
        (r"C:\scans\DOE\1.dcm: empty", "(file): empty"),
    ],
)
def test_reasons_lose_their_paths(reason, expected, tmp_path):
    assert without_paths(reason, [Path("/data/DOE JANE/study")]) == expected


@pytest.fixture(scope="module")
def index(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    save_results(folder, case, ["b case", "a#1"])
    save_case(read_case(folder / "b case", case[0]), folder / "b case")
    write_failures(folder, {"lost": Failure(stage="read", reason=HARD)})
    return save_index(folder)


def test_an_index_lists_cases_totals_and_failures(index):
    text = index.read_text()
    assert 'href="b%20case/report.html"' in text and ">a#1<" in text and "DOE^" not in text
    assert text.count("data:image/jpeg") == 1 and "<img src=x" not in text and "lost" in text
    forget_failure(index.parent, "another")
    assert ">lost</b>" in save_index(index.parent).read_text()
    forget_failure(index.parent, "lost")
    assert not (index.parent / "failures.csv").exists()
    assert "Failed</h2>" not in save_index(index.parent).read_text()


# Evaluations and trainings.


@pytest.fixture(scope="module")
def evaluated(case, tmp_path_factory):
    """Folders of an evaluation and of a comparison; one case is on its image, one has none, one is not there."""
    folder = tmp_path_factory.mktemp("DOE^JANE")
    volume, truth = case
    truth = InstanceSet.build(truth.instances[:3], volume, LABELS)
    less = InstanceSet.build(truth.instances[:2], volume, LABELS)
    write_volume(folder / "image.nii.gz", volume)
    rows = ["case,image,label"]
    for name, image in (("a", "image.nii.gz"), (HARD[:9], "none.nii.gz"), ("lost", "none.nii.gz")):
        name = name.replace("/", "_")
        write_instances(folder / f"{name}.truth.seg.nrrd", truth)
        rows.append(f"{name},{image},{name}.truth.seg.nrrd")
        for number, found in ((1, truth), (2, less)):
            if name != "lost":
                write_instances(folder / f"p{number}" / f"{name}.seg.nrrd", found)
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    settings = Settings(surface=None, resamples=20)
    one = evaluate_files(folder / "cohort.csv", folder / "p2", folder / "one", settings=settings)
    save_worst_pictures([one], folder / "one")
    both = compare_files(folder / "cohort.csv", (folder / "p1", folder / "p2"), folder / "both", settings=settings)
    save_worst_pictures(both.evaluations, folder / "both")
    return folder


def test_an_evaluation_shows_its_scores_and_its_worst_cases(evaluated):
    text = save_evaluation_report(evaluated / "one").read_text()
    assert text.count("data:image/jpeg") == 2 and "<script>document" not in text and "DOE^" not in text
    assert "lost</b> was not evaluated: no prediction in (file)" in text
    # of the two cases with objects of three classes each, one class was never found
    summary = json.loads((evaluated / "one" / "summary.json").read_text())
    assert summary["objects"]["tp"] == 4 and "4 / 2 / 0" in text
    assert "[0.667, 0.667]" in text


def test_two_predictions_stand_side_by_side(evaluated):
    text = save_evaluation_report(evaluated / "both").read_text()
    assert text.count("reference, first prediction, second prediction") == 2 * 2  # alt and caption
    assert "Second minus first" in text and ">1.000<" in text
    assert "-0.333" in text


def test_an_evaluation_is_not_taken_for_a_comparison_before(evaluated, tmp_path):
    for folder in ("both", "one"):
        shutil.copytree(evaluated / folder, tmp_path, dirs_exist_ok=True)
    clear_report(tmp_path, compared=True)
    assert "Two predictions compared" in save_evaluation_report(tmp_path).read_text()
    clear_report(tmp_path, compared=False)
    assert not (tmp_path / "report.html").exists()
    assert save_evaluation_report(tmp_path).read_bytes() == save_evaluation_report(evaluated / "one").read_bytes()


def test_of_two_predictions_it_is_said_which_lacks_a_case(evaluated, tmp_path):
    shutil.copytree(evaluated / "both", tmp_path, dirs_exist_ok=True)
    for number, failures in ((1, {"lost": "same", "x": "why"}), (2, {"lost": "same"})):
        path = tmp_path / f"prediction_{number}" / "summary.json"
        extra = {"failures": failures, "predictions_without_reference": ["y"][: 2 - number]}
        write_json(path, json.loads(path.read_text()) | extra)
    text = save_evaluation_report(tmp_path).read_text()
    assert "lost</b> was not evaluated: same<" in text and "x</b> was not evaluated: first prediction: why<" in text
    assert "First prediction: Predicted, but without a reference: y<" in text


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    from network_fixtures import tiny_plan

    folder = tmp_path_factory.mktemp("run")
    plan = tiny_plan().model_copy(update={"reasons": {"input.spacing_mm": f"small objects {HARD}"}})
    (folder / "plan.yaml").write_text(plan.to_yaml())
    (folder / "metrics.csv").write_text("step\n1\n")
    classes = {QUOTED: {"dice": 0.8125, "f1": None, "pq": 0.5}}
    run = {"status": "finished", "steps": 20, "best_step": 10, "best_score": 0.75, "cases": {"training": 3}}
    run |= {"validation": {"cases": 2, "iou_threshold": 0.5, "classes": classes}, "environment": {"torch": "2.15.0"}}
    (folder / "run.json").write_text(json.dumps(run))
    return save_training_report(folder)


def test_a_training_shows_its_plan_with_reasons_and_its_scores(training):
    text = training.read_text()
    assert "[2.0, 2.0]" in text and "small objects &lt;/script&gt;" in text and "<img src=x" not in text
    assert "0.750 at step 10" in text and "0.812" in text and "2.15.0" in text
    assert is_training(training.parent) and not is_evaluation(training.parent)


# In a browser.


@pytest.fixture(scope="module")
def browser():
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on this machine (Debian, Ubuntu: apt install chromium)")
    running = Browser(program)
    running.size(700, 600)
    yield running
    running.close()


@pytest.fixture(scope="module")
def opened(browser, page):
    browser.open(page, "document.documentElement.dataset.viewer === 'ready'")
    return browser


def crosshair(browser):
    return browser.evaluate("Array.from(medsegViewer.frac2mm(medsegViewer.scene.crosshairPos, 0, true)).slice(0, 3)")


def test_the_viewer_opens_without_complaint_or_request(opened):
    assert opened.complaints() == [] and opened.requests() == []
    assert opened.evaluate("document.title") == HARD
    assert opened.evaluate("document.images.length && [...document.images].every((i) => i.naturalWidth > 0)")
    names = opened.evaluate("[...document.querySelectorAll('td.name')].map((cell) => cell.textContent)")
    assert names[:3] == ["organ", HARD, QUOTED] and len(names) == 102
    assert not opened.evaluate("document.querySelectorAll('img[onerror]').length")


@pytest.mark.parametrize("number", [3, 1, 2])
def test_a_click_on_a_row_goes_to_the_object(opened, page, number):
    opened.evaluate(f"document.querySelector('tr [data-go=\"{number}\"]').click()")
    expected = embedded(page.read_text())["objects"][number - 1]
    np.testing.assert_allclose(crosshair(opened), expected["centroid"], atol=0.05)
    assert opened.evaluate("document.querySelector('tr.chosen').dataset.object") == str(number)
    if number > 1:  # the centroid of the organ lies within the object inside it
        assert opened.evaluate("document.getElementById('place').textContent").endswith(f": {expected['name']}")


def test_a_doubtful_join_is_a_click_away(opened):
    opened.evaluate("document.querySelector('.warnings [data-go]').click()")
    np.testing.assert_allclose(crosshair(opened), (13.7, -74.5, -795.2), atol=0.05)


def colour_at(browser, tmp_path, point):
    """Return the screen's colour where the axial view shows a point (RAS mm)."""
    from matplotlib.image import imread

    browser.frame()
    x, y = browser.evaluate(
        f"""(() => {{
            const place = medsegViewer.frac2canvasPos(medsegViewer.mm2frac({point}, 0, true));
            const canvas = document.getElementById("canvas"), box = canvas.getBoundingClientRect();
            return [box.left + place[0] * box.width / canvas.width, box.top + place[1] * box.height / canvas.height];
        }})()"""
    )
    browser.screenshot(tmp_path / "screen.png")
    return imread(tmp_path / "screen.png")[round(y), round(x), :3] * 255


def test_the_canvas_shows_an_object_in_its_colour(opened, page, tmp_path):
    inner = embedded(page.read_text())["objects"][1]
    opened.evaluate("document.querySelector('tr [data-go=\"2\"]').click()")
    opened.evaluate("document.querySelector('[data-view=axial]').click()")
    opened.evaluate("medsegViewer.setCrosshairWidth(0)")
    opened.evaluate("document.getElementById('screen').scrollIntoView()")
    slider = "document.getElementById('opacity')"
    opened.evaluate(f"{slider}.value = 100, {slider}.dispatchEvent(new Event('input'))")
    np.testing.assert_allclose(colour_at(opened, tmp_path, inner["centroid"]), inner["colour"], atol=12)
    # hidden, it gives way to the organ around it, and that to the grey of 40 HU
    for number, expected in ((2, (230, 159, 0)), (1, (128, 128, 128))):
        opened.evaluate(f"document.querySelector('[data-show=\"{number}\"]').click()")
        np.testing.assert_allclose(colour_at(opened, tmp_path, inner["centroid"]), expected, atol=12)
    assert opened.complaints() == []


def test_keys_move_the_cross_hair_and_everything_has_a_name(opened):
    opened.evaluate("document.querySelector('tr [data-go=\"1\"]').click()")
    before = np.array(crosshair(opened))
    opened.evaluate("document.getElementById('canvas').focus()")
    for kind in ("keyDown", "keyUp"):
        opened.send("Input.dispatchKeyEvent", type=kind, key="PageUp", code="PageUp", windowsVirtualKeyCode=33)
    assert np.linalg.norm(crosshair(opened) - before) < 4.6 and crosshair(opened)[2] > before[2] + 1.4
    opened.evaluate("document.querySelector('tr [data-go=\"3\"]').focus()")
    for kind in ("keyDown", "keyUp"):
        opened.send("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
    assert opened.evaluate("document.querySelector('tr.chosen').dataset.object") == "3"
    roles = {"button", "link", "checkbox", "slider", "combobox", "image", "img", "application", "region"}
    for node in opened.send("Accessibility.getFullAXTree")["nodes"]:
        if not node["ignored"] and node.get("role", {}).get("value") in roles:
            assert node["name"]["value"].strip(), node


def assert_no_sideways_scroll(browser):
    for width in (390, 1280):
        browser.size(width, 500)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_a_case_does_not_scroll_sideways(opened):
    opened.evaluate("document.querySelector('[data-view=axial]').click()")
    assert_no_sideways_scroll(opened)


def test_without_webgl_the_pictures_remain(browser, page):
    blind = "HTMLCanvasElement.prototype.getContext = () => null"
    script = browser.send("Page.addScriptToEvaluateOnNewDocument", source=blind)["identifier"]
    browser.open(page, "document.getElementById('viewer-state').textContent.includes('WebGL')")
    browser.send("Page.removeScriptToEvaluateOnNewDocument", identifier=script)
    assert "offers no WebGL 2" in browser.evaluate("document.getElementById('viewer-state').textContent")
    assert (
        browser.evaluate("[...document.images].filter((i) => i.naturalWidth > 300 && i.offsetHeight > 100).length") >= 3
    )
    assert not browser.evaluate("document.getElementById('canvas').checkVisibility()")
    assert browser.evaluate("[...document.querySelectorAll('[data-go]')].every((button) => button.disabled)")
    assert browser.complaints() == [] and browser.requests() == []


def test_pages_with_tables_fit(browser, evaluated, training):
    for path in (save_evaluation_report(evaluated / "both"), training):
        browser.open(path)
        assert_no_sideways_scroll(browser)
        assert browser.complaints() == [] and browser.requests() == []


def test_an_index_fits_and_is_sorted_by_a_click(browser, index):
    browser.open(index)
    assert_no_sideways_scroll(browser)
    assert browser.complaints() == [] and browser.requests() == []
    cases = "[...document.querySelectorAll('td.name a, tbody tr td.name')].map((c) => c.textContent)"
    button = "[...document.querySelectorAll('button.sort')].find((b) => b.textContent === 'Case').click()"
    browser.evaluate(button)
    first = browser.evaluate(cases)
    browser.evaluate(button)
    assert first != browser.evaluate(cases)
    assert browser.evaluate("document.querySelector('th[aria-sort]').ariaSort") == "descending"
