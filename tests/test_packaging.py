"""What users install: the wheel and the source distribution, built from a copy of this tree and imported elsewhere."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import netaug_fx

ROOT = Path(__file__).resolve().parents[1]
LINKS = {"netaug_fx/passes": "../passes", "netaug_fx/models": "../models"}
# Where each code folder lands in the wheel.
INSTALLED_AS = {"netaug_fx": "netaug_fx", "passes": "netaug_fx/passes", "models": "netaug_fx/models"}

IMPORT_ALL = """
import importlib, importlib.metadata, json, sys
files = {name: importlib.import_module(name).__file__ for name in sys.argv[1:]}
(verb,) = importlib.metadata.entry_points(group="console_scripts", name="netaug-fx")
verb.load()
print(json.dumps(files))
"""


@dataclass(frozen=True)
class Built:
    """The three archives of one build: from the tree, its source, and from that source."""

    wheel: Path
    sdist: Path
    wheel_of_sdist: Path


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed; what it said is shown where it does not."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    shown = " ".join(str(part) for part in command[:4])
    assert done.returncode == 0, f"{shown} ... failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def git(*args: str) -> list[str]:
    """Paths printed by a git command; skips the test outside a clone (say, in an unpacked sdist)."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone: there is no list of the project's own files to compare with")
    return [path for path in run("git", *args, "-z", cwd=ROOT).split("\0") if path]


def tree() -> list[str]:
    """Files and links of the project, also those not committed yet, none that git ignores or that were deleted."""
    listed = git("ls-files", "--cached", "--others", "--exclude-standard")
    return sorted({path for path in listed if os.path.lexists(ROOT / path)})


def build(kind: str, source: Path, out: Path) -> Path:
    """The one archive that ``python -m build`` makes of a source folder, without fetching anything."""
    run(sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out, source, cwd=source)
    (archive,) = out.iterdir()
    return archive


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Archives built from a copy, so that a stale ``build/`` or ``*.egg-info`` of this checkout has no say."""
    base = tmp_path_factory.mktemp("packaging")
    source = base / "source"
    for path in tree():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, source / path, follow_symlinks=False)
    wheel = build("wheel", source, base / "wheel")
    shutil.rmtree(source / "build")
    sdist = build("sdist", source, base / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(base / "unpacked")
    (unpacked,) = (base / "unpacked").iterdir()
    return Built(wheel, sdist, build("wheel", unpacked, base / "wheel_of_sdist"))


def wheel_files(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def package_files(wheel: Path) -> list[str]:
    return [name for name in wheel_files(wheel) if ".dist-info/" not in name]


def modules(wheel: Path) -> list[str]:
    """Dotted names of a wheel's modules, without ``__main__``: importing that one means running it."""
    paths = [PurePosixPath(name) for name in package_files(wheel) if name.endswith(".py")]
    dotted = {".".join(path.parent.parts if path.stem == "__init__" else path.with_suffix("").parts) for path in paths}
    return sorted(name for name in dotted if not name.endswith(".__main__"))


def test_the_only_links_are_those_to_the_code_folders() -> None:
    tracked = git("ls-files", "--cached")
    assert {path: os.readlink(ROOT / path) for path in tracked if (ROOT / path).is_symlink()} == LINKS


def test_the_wheel_holds_every_file_of_the_code_folders_once(built: Built) -> None:
    expected = set()
    for path in tree():
        top, _, rest = path.partition("/")
        if top in INSTALLED_AS and path not in LINKS and not path.endswith(".md"):
            expected.add(f"{INSTALLED_AS[top]}/{rest}")
    found = package_files(built.wheel)
    hint = "list new folders under packages and new kinds of files under package-data in pyproject.toml"
    assert expected - set(found) == set(), hint
    assert set(found) - expected == set(), "these files are in the wheel and have no place in it"
    assert len(found) == len(set(found))
    assert "netaug_fx/py.typed" in found
    assert any(name.endswith(".html.j2") for name in found)


def test_the_sdist_holds_the_project_and_no_file_twice(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members), "links do not survive unpacking everywhere"
    files = [member.name.partition("/")[2] for member in members if member.isfile()]
    assert len(files) == len(set(files))
    assert not [name for name in files if name.startswith(tuple(f"{link}/" for link in LINKS))]
    wanted = {path for path in tree() if path not in LINKS and not path.startswith(".")}
    assert wanted - set(files) == set(), "list them in MANIFEST.in"


def test_the_sdist_builds_the_same_wheel(built: Built) -> None:
    assert wheel_files(built.wheel_of_sdist) == wheel_files(built.wheel)


def test_every_module_of_the_installed_wheel_imports(built: Built, tmp_path: Path) -> None:
    """In a new environment that has this wheel, and this environment's site-packages behind it for the dependencies.

    A folder named in a ``.pth`` file has its own ``.pth`` files ignored, so an editable install there stays unseen.
    """
    home = tmp_path / "env"
    venv.EnvBuilder(symlinks=os.name != "nt").create(home)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = Path(run(python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, built.wheel, cwd=tmp_path)
    outer = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (site / "dependencies.pth").write_text("\n".join(outer) + "\n")
    for shim in (Path(folder, "torchvision_shim.pth") for folder in outer):  # see benchmarks/zoos/torchvision_shim.py
        if shim.exists():
            shutil.copy(shim, site)

    (tmp_path / "import_all.py").write_text(IMPORT_ALL)

    names = modules(built.wheel)
    files = json.loads(run(python, "-I", "import_all.py", *names, cwd=tmp_path).splitlines()[-1])

    assert {"netaug_fx", "netaug_fx.cli", "netaug_fx.passes.rules", "netaug_fx.models"} <= set(names)
    assert [name for name in names if not Path(files[name]).is_relative_to(site)] == []


def test_every_direct_dependency_is_pinned(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    wanted = {canonicalize_name(Requirement(line).name) for line in metadata.get_all("Requires-Dist", [])}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert wanted - {canonicalize_name(pin.name) for pin in pins} == set()
    # A build name such as +cpu would tie the pin to the machines whose index has that build.
    assert [str(pin) for pin in pins if not re.fullmatch(r"==[0-9a-z.]+", str(pin.specifier))] == []


def test_the_version_is_the_same_everywhere() -> None:
    stated = {
        "pyproject.toml": re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE),
        "CITATION.cff": re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE),
    }
    expected = [netaug_fx.__version__]
    assert stated == {"pyproject.toml": expected, "CITATION.cff": expected}


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    machine = re.compile(r"(?<![\w.])/(?:work|root|farm)/")
    scratch = re.compile(r"(?<![\w.])/tmp/")
    found = []
    for path in git("ls-files", "--cached"):
        file = ROOT / path
        if path in LINKS or not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # A picture or an archive.
            continue
        patterns = [machine] if path.startswith("tests/") else [machine, scratch]
        found += [f"{path}: {match.group()}" for pattern in patterns for match in pattern.finditer(text)]
    assert found == []
