"""The project as a stranger finds it: layout, the two commands, the README's commands and the example configuration."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from inspectd.cli import app
from inspectd.errors import ConfigError
from inspectd.recipe import load_recipe
from inspectd.settings import load_settings

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = [ROOT / "config" / "inspectd.toml", *sorted((ROOT / "config" / "examples").glob("*.toml"))]
RECIPES = sorted((ROOT / "config" / "recipes").glob("*.toml"))
TOP_LEVEL = {"README.md", "pyproject.toml", "config", "inspectd", "systemd", "tests", "tools"}


def readme() -> str:
    return (ROOT / "README.md").read_text()


def readme_commands() -> list[str]:
    """The lines of the README's shell blocks that call inspectd, with continuations joined."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", readme(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition("  #")[0].strip() for line in lines if re.match(r"\s*(\S*/)?inspectd ", line)]


def options_of(words: list[str]) -> set[str]:
    """The options that the verb takes which these words of a command line call."""
    command: Any = typer.main.get_command(app)
    while (verbs := getattr(command, "commands", None)) is not None and words:
        name, *words = words
        assert name in verbs, f"no verb {name!r}"
        command = verbs[name]
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def uncommented(text: str) -> str:
    """A configuration with every `# key = value` line made a real one."""
    return re.sub(r"(?m)^# (?=[a-z_]+ = )", "", text)


def test_top_level_holds_what_the_design_names() -> None:
    """A file of a kind of its own at the top level needs a place in the design first."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    names = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_every_dependency_is_pinned() -> None:
    """Two set-ups a year apart give the same packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    pinned = dict(re.findall(r"(?m)^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / "tools" / "constraints.txt").read_text()))
    names = {re.split(r"[<>=\[ ]", each)[0] for each in wanted} | {"torchvision", "setuptools"}
    assert {name for name in names if not {name, name.replace("-", "_")} & pinned.keys()} == set()


@pytest.mark.parametrize("name", ["tools/demo", "tools/test", ".ci/run"])
def test_scripts_are_executable_and_parse(name: str) -> None:
    """The README's two commands and what CI runs."""
    assert os.access(ROOT / name, os.X_OK)
    assert subprocess.run(["bash", "-n", ROOT / name], capture_output=True, text=True, check=True).stderr == ""


def test_set_up_without_a_package_index_says_what_to_do(tmp_path: Path) -> None:
    """A step that fails ends with one line for the person who has to act, and nothing counts as done."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", tmp_path / ".venv"], check=True
    )
    nowhere = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")} | nowhere
    done = subprocess.run(
        [tmp_path / "tools" / "demo"], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("What to do: pip did not get a package")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / ".venv" / "setup.sha256").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_example_configuration_loads(path: Path) -> None:
    """What the README tells people to copy is accepted, and its recipe is there."""
    settings = load_settings(path)
    assert all(settings.recipe_path(name) in RECIPES for name in settings.cameras)


def test_an_example_for_every_kind_of_source() -> None:
    """Whoever has another kind of camera finds a file to start from."""
    kinds = {camera.source.kind for path in CONFIGS[1:] for camera in load_settings(path).cameras.values()}
    assert kinds == {"drop", "file", "folder", "genicam", "mjpeg", "rtsp", "v4l2"}


def test_defaults_in_comments_are_the_defaults(tmp_path: Path) -> None:
    """Taking the # away from a line of inspectd.toml changes nothing yet."""
    text = CONFIGS[0].read_text()
    copy = tmp_path / "inspectd.toml"
    copy.write_text(text)
    before = load_settings(copy)
    copy.write_text(uncommented(text))
    assert uncommented(text).count("\n# ") < text.count("\n# ") - 15
    assert load_settings(copy) == before


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_loads_and_needs_its_thresholds_measured(path: Path) -> None:
    """An example recipe carries no threshold: whose would it be?"""
    assert load_recipe(path, require_thresholds=False).name == path.stem
    with pytest.raises(ConfigError, match="inspectd calibrate"):
        load_recipe(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_comments_of_a_recipe_are_true(path: Path, tmp_path: Path) -> None:
    """Keys behind a # have their defaults; tables behind a # are examples that are accepted."""
    text = path.read_text()
    keys, tables = text.partition("\n# [")[0], re.sub(r"(?m)^# (?=\[[a-z.]+\]$)", "", text)
    copy = tmp_path / path.name
    copy.write_text(uncommented(keys))
    unlike = {"path", "sha256"}
    written = load_recipe(path, require_thresholds=False).model_dump(exclude=unlike)
    assert load_recipe(copy, require_thresholds=False).model_dump(exclude=unlike) == written
    copy.write_text(uncommented(tables))
    shown = load_recipe(copy, require_thresholds=False)
    assert None not in (shown.region, shown.references, shown.tiling)


def test_readme_names_commands() -> None:
    """The README shows the main verbs; otherwise the next test proves nothing."""
    verbs = {shlex.split(line)[1] for line in readme_commands()}
    assert {"run", "check", "watch", "calibrate", "weights"} <= verbs


@pytest.mark.parametrize("line", readme_commands())
def test_readme_commands_exist(line: str) -> None:
    """Every verb and option that the README shows is one that the command line knows."""
    words = shlex.split(line)[1:]
    assert {word for word in words if word.startswith("-")} <= options_of(words) | {"--help"}


def test_readme_paths_exist() -> None:
    """Every file of the project that the README names is there."""
    paths = set(re.findall(r"`((?:config|inspectd|systemd|tests|tools)/[\w./-]+)", readme()))
    paths |= set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme()))
    assert len(paths) > 5
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_readme_draws_the_layers_it_has() -> None:
    """The picture of the layers is the one that import-linter holds, less what is only planned."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    package = ROOT / "inspectd"
    there = {path.stem for path in (*package.glob("[a-z]*.py"), *package.glob("[a-z]*/"))}
    held = [there & set(re.findall(r"\w+", layer)) for layer in contracts[0]["layers"]]
    drawn = re.findall(r"```\n(cli\n.*?)```", readme(), re.DOTALL)[0].splitlines()
    assert [set(line.split(" | ")) for line in drawn] == [layer for layer in held if layer]
