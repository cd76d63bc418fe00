"""Each distribution builds, and works where it is installed with what it asks for and nothing else."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import Distribution, PathDistribution, distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PLUGINS = sorted(project.parent for project in (ROOT / "plugins").glob("*/pyproject.toml"))
FOLDERS = [ROOT, *PLUGINS]


def run(*command, **options):
    """What a command prints; it must succeed."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "STZOO_PLUGINS")}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=clean, **options)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def distribution_name(folder):
    return "stzoo" if folder == ROOT else folder.name


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A folder with the sdist of each distribution, and the wheel that was built from that sdist."""
    made = tmp_path_factory.mktemp("dist")
    for folder in FOLDERS:
        # a copy, because a build leaves files behind, and takes up those that an earlier one left
        copy = tmp_path_factory.mktemp("source") / distribution_name(folder)
        litter = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
        shutil.copytree(folder, copy, ignore=litter)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", made, copy)
    return made


@pytest.fixture(scope="module")
def wheels(dist):
    """Folder of a distribution -> its wheel."""
    found = {}
    for folder in FOLDERS:
        [found[folder]] = dist.glob(f"{distribution_name(folder).replace('-', '_')}-[0-9]*.whl")
    return found


def metadata(wheel) -> Distribution:
    [folder] = (entry for entry in zipfile.Path(wheel).iterdir() if entry.name.endswith(".dist-info"))
    return PathDistribution(folder)


def dependencies(wheels, extra):
    """What `pip install stzoo[EXTRA]` brings besides our own distributions, by what the metadata says."""
    ours = {distribution_name(folder): metadata(wheel) for folder, wheel in wheels.items()}
    seen, queue = set(), [("stzoo", extra)]
    while queue:
        name, extra = item = queue.pop()
        if item in seen:
            continue
        seen.add(item)
        for text in (ours.get(name) or distribution(name)).requires or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                queue += [(canonicalize_name(need.name), asked) for asked in ("", *need.extras)]
    return {name for name, _ in seen} - set(ours)


@pytest.fixture(scope="module")
def clean(dist, wheels, tmp_path_factory):
    """An environment with our distributions and their dependencies, linked, because torch alone is 1 GB."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "venv", symlinks=True)
    links, here = folder / "links", Path(sysconfig.get_path("purelib"))
    links.mkdir()
    installed = map(distribution, dependencies(wheels, "all"))
    for top in {file.parts[0] for each in installed for file in each.files or ()} - {"..", "__pycache__"}:
        (links / top).symlink_to(here / top)
    base = {"base": folder / "venv", "platbase": folder / "venv"}
    Path(sysconfig.get_path("purelib", vars=base), "links.pth").write_text(f"{links}\n")
    # The plugins come as what stzoo depends on; of everything else pip checks that it is there.
    install = ("install", "--no-index", "--find-links", dist, "--only-binary", ":all:", "stzoo")
    run(sys.executable, "-m", "pip", "--python", folder / "venv", *install, cwd=folder)
    return folder / "venv"


def test_installed_code_comes_from_the_distributions_alone(clean, tmp_path):
    modules = ["stzoo", *(folder.name.replace("-", "_") + ".recipes" for folder in PLUGINS)]
    code = f"import {', '.join(modules)}; print({', '.join(f'{m}.__file__' for m in modules)}, sep='\\n')"
    for path in run(clean / "bin/python", "-c", code, cwd=tmp_path).split("\n")[:-1]:
        assert Path(path).is_relative_to(clean)


def test_installed_command_shows_its_help(clean, tmp_path):
    assert "pretrain" in run(clean / "bin/stzoo", "--help", cwd=tmp_path)


def test_installed_command_finds_every_plugin_whole(clean, tmp_path):
    plugins = json.loads(run(clean / "bin/stzoo", "plugins", "--json", cwd=tmp_path))
    assert {plugin["distribution"] for plugin in plugins} == set(map(distribution_name, FOLDERS))
    assert [plugin["failures"] for plugin in plugins] == [[]] * len(plugins)


def test_installed_command_pretrains_with_an_objective_of_a_plugin(clean, base, corpus, tmp_path):
    objectives = run(clean / "bin/stzoo", "list", "objectives", cwd=tmp_path)
    assert all(name in objectives for name in ("retromae", "dupmae", "master"))
    given = ("--base", base, "--objective", "retromae", "--corpus", corpus, "--batch-size", 2)
    run(clean / "bin/stzoo", "pretrain", *given, "--max-steps", 1, "--output", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_installed_report_and_registry_have_their_files(clean, tmp_path):
    command = ("report", ROOT / "benchmarks/results", "--output", tmp_path / "report.html")
    assert "report.csv" in run(clean / "bin/stzoo", *command, cwd=tmp_path)
    code = "from stzoo.data import registry; print(registry.entries()['scifact'].documents)"
    assert run(clean / "bin/python", "-c", code, cwd=tmp_path).strip() == "5183"


def test_installed_recipes_can_be_read(clean, tmp_path):
    code = (
        "from stzoo.plugins import manager\n"
        "for name in manager.all('recipe'): assert manager.recipe_text(name); print(name)"
    )
    count = len([*ROOT.glob("plugins/*/stzoo_*/recipes/*.yaml"), *ROOT.glob("stzoo/recipes/*.yaml")])
    assert len(run(clean / "bin/python", "-c", code, cwd=tmp_path).split()) >= count > 0


@pytest.mark.parametrize("folder", FOLDERS, ids=distribution_name)
def test_wheel_holds_the_code_and_its_data_and_no_tests(folder, wheels):
    package = folder / distribution_name(folder).replace("-", "_")
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {path.relative_to(folder).as_posix() for path in files}
    names = zipfile.ZipFile(wheels[folder]).namelist()
    assert {name for name in names if ".dist-info/" not in name} == expected


@pytest.mark.parametrize("folder", FOLDERS, ids=distribution_name)
def test_metadata_tells_licence_readme_and_python(folder, wheels):
    told = metadata(wheels[folder]).metadata
    assert told["Name"] == distribution_name(folder)
    assert told["License-Expression"] == "Apache-2.0"
    assert told["Requires-Python"] == ">=3.11"
    assert told["Description-Content-Type"] == "text/markdown"
    assert told["Description"].strip() == (folder / "README.md").read_text(encoding="utf-8").strip()
    [licence] = (name for name in zipfile.ZipFile(wheels[folder]).namelist() if name.endswith("/LICENSE"))
    assert zipfile.ZipFile(wheels[folder]).read(licence) == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("folder", PLUGINS, ids=distribution_name)
def test_plugin_and_root_move_in_lock_step(folder, wheels):
    root, plugin = metadata(wheels[ROOT]), metadata(wheels[folder])
    series = ".".join(root.version.split(".")[:2])
    assert plugin.version == root.version
    assert f"stzoo=={series}.*" in plugin.requires
    assert [point.name for point in plugin.entry_points.select(group="stzoo")] == [
        folder.name.removeprefix("stzoo-")
    ]
    assert f"{folder.name}=={series}.*" in root.requires


def pinned(file):
    """Name -> version of a file of constraints."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    pins = (line.partition("==") for line in lines)
    return {canonicalize_name(name): version for name, equal, version in pins if equal}


def test_constraints_pin_every_dependency(wheels):
    assert dependencies(wheels, "dev") - pinned("constraints.txt").keys() == set()


def test_the_lowest_versions_that_are_allowed_are_those_that_are_tested(wheels):
    pins = pinned("constraints-lowest.txt")
    for need in map(Requirement, metadata(wheels[ROOT]).requires):
        if need.name.startswith("stzoo") or (
            need.marker and {"dev", "docs", "test"} & set(str(need.marker).split('"'))
        ):
            continue
        [lowest] = [Version(one.version) for one in need.specifier if one.operator in (">=", "==")]
        tested = Version(pins[canonicalize_name(need.name)])
        assert lowest == tested or (need.name == "torch" and lowest < tested), need


def test_the_citation_names_the_version(wheels):
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == metadata(wheels[ROOT]).version


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
def test_the_dockerfile_has_no_fault_that_hadolint_finds():
    run("hadolint", ROOT / "Dockerfile")
