"""The page as a person uses it, in headless Chromium; what it tells is compared with the arrays."""

import base64
import io
import json

import numpy as np
import pytest
from matplotlib.image import imread
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from medseg_brn.cases.label_description import Labels
from medseg_brn.reports.viewer.page import render_scene
from medseg_brn.reports.viewer.scene import make_scene
from medseg_brn.volumes.volume import Grid, Volume

SHAPE = (24, 20, 16)
LPS = np.array([[-1.5, 0, 0, 90], [0, -1, 0, 126], [0, 0, 2, -72], [0, 0, 0, 1.0]])
GRID = Grid(SHAPE, LPS)
NAMES = ("liver", "</script><script>document.title = 'owned'</script>")


def make_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Values all different; two blocks of classes."""
    image = np.random.default_rng(0).permutation(np.prod(SHAPE)).reshape(SHAPE).astype(np.int16)
    labels = np.zeros(SHAPE, np.uint8)
    labels[4:20, 4:16, 2:14] = 1
    labels[10:14, 8:12, 7:9] = 2
    return image, labels


def open_page(browser, path, image, labels=None, names=()) -> None:
    described = Labels(("background", *names), tuple(range(len(names) + 1)))
    scene = make_scene(
        Volume(image, GRID), None if labels is None else Volume(labels, GRID), labels=described
    )
    path.write_text(render_scene(scene, "scan"), encoding="utf-8")
    browser.get(path.as_uri())
    WebDriverWait(browser, 30).until(lambda _: not browser.find_element(By.ID, "status").is_displayed())


@pytest.fixture
def arrays(browser, tmp_path):
    image, labels = make_arrays()
    open_page(browser, tmp_path / "page.html", image, labels, NAMES)
    return image, labels


def read(browser, name: str) -> str:
    return browser.find_element(By.ID, name).text


def voxel(browser) -> tuple[int, ...]:
    """Its index in the file."""
    return tuple(int(index) for index in read(browser, "voxel").split(","))


def canvas(browser, plane: str):
    return browser.find_element(By.CSS_SELECTOR, f"#{plane} canvas")


def after_frame(browser) -> None:
    browser.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
    )


def pixels(browser, plane: str) -> np.ndarray:
    """(rows, columns, 3) of a canvas."""
    after_frame(browser)
    address = browser.execute_script("return arguments[0].toDataURL('image/png')", canvas(browser, plane))
    picture = imread(io.BytesIO(base64.b64decode(address.split(",")[1])))
    return np.rint(255 * picture[..., :3]).astype(int)


def check_reading(browser, image, labels) -> None:
    """What the page tells of the cross-hair's voxel is what the arrays hold there."""
    at = voxel(browser)
    assert int(read(browser, "value")) == image[at]
    assert read(browser, "class") == ("background", *NAMES)[labels[at]]
    told = [float(mm) for mm in read(browser, "place").split(",")]
    np.testing.assert_allclose(told, (LPS @ [*at, 1])[:3], atol=0.051)


def test_the_page_opens_in_the_largest_class_and_loads_nothing(browser, arrays):
    assert arrays[1][voxel(browser)] == 1
    check_reading(browser, *arrays)
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []
    assert browser.title == "scan"
    assert browser.execute_script("return document.scripts.length") == 2  # the facts and the page's own


def test_the_wheel_scrolls_slices_and_the_reading_follows(browser, arrays):
    before = voxel(browser)
    for plane, axis, towards in (("axial", 2, 1), ("coronal", 1, -1), ("sagittal", 0, -1)):
        origin = ScrollOrigin.from_element(canvas(browser, plane))
        ActionChains(browser).scroll_from_origin(origin, 0, -100).perform()  # up: towards head, front, right
        moved = np.subtract(voxel(browser), before)
        assert moved[axis] == towards and np.count_nonzero(moved) == 1
        check_reading(browser, *arrays)
        before = voxel(browser)


def test_keys_move_the_cross_hair_in_the_plane_with_the_focus(browser, arrays):
    # The screen's right is the patient's left, which LPS counts upwards; its top is the front.
    for plane, key, expected in (
        ("axial", Keys.ARROW_RIGHT, (1, 0, 0)),
        ("axial", Keys.ARROW_UP, (0, -1, 0)),
        ("coronal", Keys.ARROW_UP, (0, 0, 1)),
        ("sagittal", Keys.ARROW_RIGHT, (0, 1, 0)),
        ("sagittal", Keys.PAGE_UP, (-1, 0, 0)),
    ):
        before = voxel(browser)
        canvas(browser, plane).send_keys(key)
        assert tuple(np.subtract(voxel(browser), before)) == expected
        check_reading(browser, *arrays)
    canvas(browser, "axial").send_keys(Keys.PAGE_UP * SHAPE[2])
    assert voxel(browser)[2] == SHAPE[2] - 1


def test_a_click_goes_to_the_voxel_under_it(browser, arrays):
    target = canvas(browser, "axial")
    width, height = target.size["width"], target.size["height"]
    scale = min(width / (24 * 1.5), height / 20)  # the slice fills the canvas in mm
    # 6 voxels of 1.5 mm to the screen's right of the middle, 3 of 1 mm above it.
    ActionChains(browser).move_to_element_with_offset(
        target, round(6.5 * 1.5 * scale), round(-2.5 * scale)
    ).click().perform()
    assert voxel(browser)[:2] == (12 + 6, 10 - 3)
    check_reading(browser, *arrays)


def test_hiding_a_class_takes_its_colour_away_and_nothing_else(browser, arrays):
    browser.find_element(By.ID, "cross-hair").click()
    coloured = pixels(browser, "axial")
    boxes = browser.find_elements(By.CSS_SELECTOR, "#classes input")
    boxes[0].click()
    without_liver = pixels(browser, "axial")
    boxes[1].click()
    grey = pixels(browser, "axial")
    assert (np.ptp(grey, axis=-1) == 0).all()
    # The slice is fitted into the canvas in mm; on it the classes are the rectangles of `make_arrays`.
    rows, columns = grey.shape[:2]
    scale = min(columns / 36, rows / 20)
    x = (np.arange(columns) + 0.5 - (columns - 36 * scale) / 2) / (1.5 * scale)
    y = (np.arange(rows) + 0.5 - (rows - 20 * scale) / 2) / scale
    inside = np.ix_((y > 0) & (y < 20), (x > 0) & (x < 24))
    in_slice = np.ix_(y[(y > 0) & (y < 20)].astype(int), x[(x > 0) & (x < 24)].astype(int))
    found = np.zeros((rows, columns), np.uint8)
    found[inside] = arrays[1][:, :, voxel(browser)[2]].T[in_slice]
    # To which of two voxels a pixel across their border belongs is the browser's affair.
    away = np.ix_(np.abs(y - np.rint(y)) * scale > 1, np.abs(x - np.rint(x)) * 1.5 * scale > 1)
    assert found[away].size > 0.8 * found.size
    np.testing.assert_array_equal((coloured != without_liver).any(-1)[away], found[away] == 1)
    np.testing.assert_array_equal((without_liver != grey).any(-1)[away], found[away] == 2)
    browser.find_element(By.ID, "show-all").click()
    np.testing.assert_array_equal(pixels(browser, "axial"), coloured)


def test_keys_toggle_classes_and_change_their_opacity(browser, arrays):
    box = browser.find_elements(By.CSS_SELECTOR, "#classes input")[1]
    canvas(browser, "axial").send_keys("2")
    assert not box.is_selected()
    canvas(browser, "axial").send_keys("0")
    assert box.is_selected()
    canvas(browser, "axial").send_keys("]")
    assert float(browser.find_element(By.ID, "opacity").get_attribute("value")) == pytest.approx(0.5)


def test_the_button_of_a_class_goes_to_it(browser, arrays):
    browser.find_elements(By.CSS_SELECTOR, "#classes button")[1].click()
    assert arrays[1][voxel(browser)] == 2
    check_reading(browser, *arrays)


def test_window_and_level_make_the_greys(browser, tmp_path):
    image = np.zeros(SHAPE, np.int16)
    image[12, 10, 8] = 1000  # in the middle, where the page opens
    image[0, 0, 0] = -1000
    open_page(browser, tmp_path / "page.html", image)
    for name in ("smooth", "cross-hair"):
        browser.find_element(By.ID, name).click()
    for width, level, expected in ((4000, 0, 128), (2000, 1000, 0), (100, -200, 255)):
        for name, value in (("width", width), ("level", level)):
            field = browser.find_element(By.ID, name)
            field.clear()
            field.send_keys(str(value))
        shown = pixels(browser, "axial")
        rows, columns = shown.shape[:2]
        assert shown[rows // 2 + 60, columns // 2, 0] == expected
    preset = browser.find_element(By.ID, "preset")
    assert preset.get_attribute("value") == "own"
    preset.send_keys("CT bone")
    assert float(browser.find_element(By.ID, "width").get_attribute("value")) == 1800


def test_the_patient_s_right_is_at_the_left_until_it_is_turned(browser, tmp_path):
    image = np.zeros(SHAPE, np.int16)
    image[:6, :5, :] = 100  # LPS: right and front
    open_page(browser, tmp_path / "page.html", image)
    browser.find_element(By.ID, "cross-hair").click()

    def brightest(plane: str) -> tuple[bool, bool]:
        rows, columns = np.nonzero(pixels(browser, plane)[..., 0] > 200)
        shape = pixels(browser, plane).shape
        return bool(rows.mean() < shape[0] / 2), bool(columns.mean() < shape[1] / 2)

    letters = [browser.find_element(By.CSS_SELECTOR, f"#axial .{side}").text for side in ("left", "top")]
    assert letters == ["R", "A"]
    assert brightest("axial") == (True, True)
    browser.find_element(By.ID, "radiological").click()
    assert brightest("axial") == (True, False)
    assert browser.find_element(By.CSS_SELECTOR, "#axial .left").text == "L"


def test_fingers_move_the_cross_hair_and_zoom(browser, arrays):
    target = canvas(browser, "axial")
    x, y = (
        target.location[axis] + target.size[size] // 2 for axis, size in (("x", "width"), ("y", "height"))
    )

    def touch(kind: str, *points: tuple[float, float]) -> None:
        browser.execute_cdp_cmd(
            "Input.dispatchTouchEvent",
            {"type": kind, "touchPoints": [{"x": a, "y": b, "id": n} for n, (a, b) in enumerate(points)]},
        )

    touch("touchStart", (x, y))
    touch("touchMove", (x + 100, y))
    touch("touchEnd")
    one_finger = voxel(browser)
    assert one_finger[0] > 12
    check_reading(browser, *arrays)
    touch("touchStart", (x - 50, y))
    touch("touchStart", (x - 50, y), (x + 50, y))
    touch("touchMove", (x - 100, y), (x + 100, y))
    touch("touchEnd")
    ActionChains(browser).move_to_element_with_offset(target, 100, 0).click().perform()
    assert 12 <= voxel(browser)[0] < one_finger[0]  # the same place of the screen, nearer to the middle


def test_a_phone_shows_all_of_it_in_its_width(browser, arrays):
    metrics = {"width": 400, "height": 800, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        after_frame(browser)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
        assert browser.execute_script("return arguments[0].width", canvas(browser, "axial")) == 800
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_browser_that_cannot_unpack_says_so(browser, arrays):
    added = browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": "delete window.DecompressionStream"}
    )
    try:
        browser.refresh()
        told = WebDriverWait(browser, 10).until(lambda _: "too old" in read(browser, "status"))
        assert told
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_damaged_data_are_told_and_not_shown(browser, tmp_path):
    image, _ = make_arrays()
    html = render_scene(make_scene(Volume(image, GRID)), "scan")
    facts = {"shape": list(SHAPE)}
    damaged = html.replace(json.dumps(facts)[1:-1], '"shape": [24, 20, 17]')
    assert damaged != html
    path = tmp_path / "page.html"
    path.write_text(damaged, encoding="utf-8")
    browser.get(path.as_uri())
    WebDriverWait(browser, 10).until(lambda _: "fewer voxels" in read(browser, "status"))
