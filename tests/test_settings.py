"""Settings and recipes as people write them: a key that there is not is one line that says which ones there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from inspectd.errors import ConfigError
from inspectd.recipe import load_recipe
from inspectd.settings import Settings, load_settings

CAMERA = '[cameras.{name}]\nrecipe = "part"\nsource = {{ kind = "drop", path = "in" }}\n'
TOP = "allowed: state_dir, runtime_dir, recipes_dir, endpoints, cameras, stations, worker, publisher, journal, evidence"
DROP = "kind, path, max_size_wh_px, settle_s, unreadable_after_s, frozen_after_s, index"


def mistake(path: Path, text: str) -> str:
    """What is said of a configuration or recipe with this text, behind the file's name."""
    path.write_text(text)
    load = load_settings if path.stem == "inspectd" else load_recipe
    with pytest.raises(ConfigError) as caught:
        load(path)
    file, _, said = str(caught.value).partition(": ")
    assert file == str(path)
    assert "\n" not in said
    return said


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ('state_folder = "s"', f"state_folder: unknown key; did you mean state_dir? {TOP}, weights, log"),
        ("_cli_parse_args = true", f"_cli_parse_args: unknown key; {TOP}, weights, log"),
        ("[publisher]\nfps = 2", "publisher.fps: unknown key; allowed: publish_reserve_ms, preview_fps"),
        ("[log]\nlevels = 2", "log.levels: unknown key; did you mean level? allowed: level, format"),
    ],
)
def test_an_unknown_key_is_told_the_known_ones_of_its_table(tmp_path: Path, written: str, says: str) -> None:
    """With the nearest one, where one is near."""
    assert mistake(tmp_path / "inspectd.toml", f"{written}\n{CAMERA.format(name='cam1')}") == says


@pytest.mark.parametrize("name", ["cam1", "source", "drop"])
def test_a_table_below_a_camera_has_its_own_keys(tmp_path: Path, name: str) -> None:
    """Those of the source's kind, whatever the camera is called."""
    path, camera = tmp_path / "inspectd.toml", CAMERA.format(name=name)
    said = mistake(path, camera.replace("path", "settle = 1, path"))
    assert said == f"cameras.{name}.source.settle: unknown key; did you mean settle_s? allowed: {DROP}"
    said = mistake(path, camera + "trigger = { every_n = 2 }")
    assert said.startswith(f"cameras.{name}.trigger.every_n: unknown key; did you mean every_nth? allowed: kind, ")
    said = mistake(path, camera + '[stations.gate]\nwindow = 1\nmatch = "trigger"\ncameras = ["a", "b"]')
    assert said == (
        "stations.gate.window: unknown key; did you mean window_ms? allowed: cameras, match, window_ms, offsets_ms"
    )


def test_a_key_that_is_misspelt_comes_before_the_one_that_is_missing(tmp_path: Path) -> None:
    """There are two mistakes, and the first one explains the other."""
    said = mistake(tmp_path / "inspectd.toml", CAMERA.format(name="cam1").replace("recipe", "recipee"))
    assert said == (
        "cameras.cam1.recipee: unknown key; did you mean recipe? "
        "allowed: source, recipe, trigger, frozen_tolerance_levels, slots (1 of 2 mistakes)"
    )


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("treshold = 1", "treshold: unknown key; allowed: object, prompts, model, detector, references, decision, "),
        ("[decision]\ntreshold = 1", "decision.treshold: unknown key; did you mean threshold? allowed: threshold, "),
        ('[references]\nfolders = "good"', "references.folders: unknown key; did you mean folder? allowed: folder, s"),
    ],
)
def test_a_recipe_is_told_the_same(tmp_path: Path, written: str, says: str) -> None:
    """Also in a table that a recipe may be without."""
    assert mistake(tmp_path / "part.toml", f'object = "part"\n{written}').startswith(says)


UNKNOWN = "unknown key; did you mean {near}? {TOP}, weights, log; two underscores lead from a table to its key"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("WORKER__THREAD", "2", "worker.thread: unknown key; did you mean threads? allowed: device, precision, max_b"),
        ("WORKER__DEVICE", "tpu", "worker.device: String should match pattern"),
        ("worker__max_batch", "0", "worker.max_batch: Input should be greater than or equal to 1 (got '0')"),
        ("WORKER__DEVICE__CUDA", "1", "worker.device: Input should be a valid string (got {'cuda': '1'})"),
        ("WORKER", "foo", "worker: Input should be a valid dictionary or instance of Worker (got 'foo')"),
        ("WORKER", '{"device": "tpu"}', "worker.device: String should match pattern"),
        ("CAMERAS", "[1", "cameras: Input should be a valid dictionary"),
        ("CAMERAS__CAM1__SOURCE", "foo", "cameras.cam1.source: "),
        ("CAMERAS__CAM2__RECIPE", "part", "cameras.cam2.source: Field required"),
        ("EVIDENCE__DECISIONS", "fail", "evidence.decisions: Input should be a valid tuple (got 'fail')"),
        ("JURNAL__STRICT_AUDIT", "true", UNKNOWN.format(near="journal", TOP=TOP)),
        ("WORKER_DEVICE", "cpu", UNKNOWN.format(near="worker", TOP=TOP)),
    ],
)
def test_a_mistake_in_the_environment_names_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    """And the key that it is for; the file has no part in it."""
    monkeypatch.setenv(f"INSPECTD_{variable}", value)
    (tmp_path / "inspectd.toml").write_text(CAMERA.format(name="cam1"))
    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path / "inspectd.toml")
    assert str(caught.value).startswith(f"INSPECTD_{variable}: {says}")


def test_a_mistake_in_the_file_is_the_files_whatever_the_environment_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a table that a variable has another key of; and tests have variables of their own."""
    monkeypatch.setenv("INSPECTD_TEST_FAULT", "none")
    monkeypatch.setenv("INSPECTD_WORKER", '{"device": "cpu"}')
    monkeypatch.setenv("INSPECTD_CAMERAS__CAM1__SLOTS", "4")
    camera = CAMERA.format(name="cam1")
    path = tmp_path / "inspectd.toml"
    assert mistake(path, f"[worker]\nthreads = 0\n{camera}").startswith("worker.threads: ")
    assert mistake(path, camera.replace('recipe = "part"', "")) == "cameras.cam1.recipe: Field required"
    path.write_text(camera)
    assert (load_settings(path).cameras["cam1"].slots, load_settings(path).worker.device) == (4, "cpu")


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (
            "[journal]\nkeep_days = 200000",
            "journal.keep_days: Input should be less than or equal to 36500 (got 200000)",
        ),
        ("[publisher]\npreview_fps = true", "publisher.preview_fps: expected a number, not true"),
        (
            '[stations.gate]\nmatch = "time"\ncameras = ["a", "b"]\nwindow_ms = 1\noffsets_ms = { a = true }',
            "stations.gate.offsets_ms: expected a number, not true",
        ),
        ("[worker]\nmax_batch = true", "worker.max_batch: expected a number, not true"),
        (
            '[endpoints]\nverdicts = "tcp://::1:5550"',
            "endpoints.verdicts: anything but loopback needs CURVE keys; use 127.0.0.1, [::1] or ipc:///absolute/path",
        ),
        ("[journal]\nkeep_days = inf", "journal.keep_days: Input should be a finite number (got inf)"),
    ],
)
def test_a_value_that_nothing_can_work_with_is_refused(tmp_path: Path, written: str, says: str) -> None:
    """Here, and not where it is used for the first time, an hour later."""
    assert mistake(tmp_path / "inspectd.toml", f"{written}\n{CAMERA.format(name='cam1')}") == says


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("[decision]\nthreshold = true", "decision.threshold: expected a number, not true"),
        ("[decision]\npixel_threshold = nan", "decision.pixel_threshold: Input should be a finite number (got nan)"),
        ("[detector]\nscales = [true, 2]", "detector.scales: expected a number, not true"),
        ("[prompts]\nnormal = [true]", "prompts.normal.0: Input should be a valid string (got True)"),
        ("[detector]\nscales = []", "detector.scales: expected different whole numbers from 1 to 15, at least one"),
        (
            "[region]\npolygon_px = [[0, 0], [inf, 0], [inf, 99]]",
            "region.polygon_px.1.0: Input should be a finite number (got inf) (1 of 2 mistakes)",
        ),
        (
            '[detector]\nkind = "clip-ac"\nmode = "localise_on_fail"',
            'detector.mode: "localise_on_fail" has nothing to localise with, kind = "clip-ac" gives no map; use "full"',
        ),
    ],
)
def test_a_recipe_that_nothing_can_work_with_is_refused(tmp_path: Path, written: str, says: str) -> None:
    """Before it is loaded into a model, or a part is judged by it."""
    assert mistake(tmp_path / "part.toml", f'object = "part"\n{written}') == says


HERE = "tcp://127.0.0.1:5550"


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (f'control = "{HERE}"', f"verdicts and control have one address, {HERE}"),
        ('control = "tcp://localhost:5550"', f"verdicts and control have one address, {HERE}"),
        ('verdicts = "ipc:///run/v"\ncontrol = "ipc:///run/../run/v"', "verdicts and control have one address, ipc://"),
        ('metrics = "127.0.0.1:5551"', "control and metrics have one address, tcp://127.0.0.1:5551"),
        (
            'verdicts = "tcp://[::1]:5550"\nmetrics = "[0:0::1]:5550"',
            "verdicts and metrics have one address, tcp://[::1]",
        ),
    ],
)
def test_endpoints_that_are_one_are_refused(tmp_path: Path, written: str, says: str) -> None:
    """Whatever way it is written; one of the two could never be bound."""
    said = mistake(tmp_path / "inspectd.toml", f"[endpoints]\n{written}\n{CAMERA.format(name='cam1')}")
    assert said.startswith(f"endpoints: {says}")
    assert said.endswith("; each needs its own")


@pytest.mark.parametrize("prompt", ["{} {a}", "{} {", "{} {}", "{:{}}", "{!r} {}", "{} {0}"])
@pytest.mark.parametrize("table", ["normal", "anomalous", "templates", "defects.scratch"])
def test_a_prompt_has_one_place_for_the_name(tmp_path: Path, table: str, prompt: str) -> None:
    """Whatever else stands in braces is told with its prompt."""
    other = 'defects.dent = ["{} with a dent"]' if "defects" in table else ""
    said = mistake(tmp_path / "part.toml", f'object = "part"\n[prompts]\n{other}\n{table} = ["{prompt}"]')
    assert said == f"prompts.{table}.0: expected {{}} once, where the object's name goes, and no other braces"


@pytest.mark.parametrize("mode", ["localise_on_fail", "image_only"])
@pytest.mark.parametrize(
    "written",
    ['[references]\nfolder = "."', '[decision]\nfail_on = "regions"', '[decision]\nfail_on = "either"'],
)
def test_a_mode_without_all_maps_is_for_scores_of_zero_shot_recipes(tmp_path: Path, mode: str, written: str) -> None:
    """References and regions need the map of every frame."""
    said = mistake(tmp_path / "part.toml", f'object = "part"\n{written}\n[detector]\nmode = "{mode}"')
    assert said.startswith(f'detector.mode = "{mode}" needs a zero-shot recipe with decision.fail_on = "score"')


def test_every_table_tells_its_keys(tmp_path: Path) -> None:
    """Whatever table is added to the settings."""
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            said = mistake(tmp_path / "inspectd.toml", f"[{name}]\nxyzzy = 1\n{CAMERA.format(name='cam1')}")
            assert said == f"{name}.xyzzy: unknown key; allowed: {', '.join(field.annotation.model_fields)}"
