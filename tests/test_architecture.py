"""Rules about the project's own files that no other tool holds."""

import ast
import importlib.metadata
import json
import lzma
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from geoseg.config import register_resolvers
from geoseg.overrides import check_overrides

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("geoseg", "conf", "tests", "docs", "experiments", "notebooks", ".ci")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BINARY = (".safetensors", ".png", ".jpg", ".pyc")


def texts():
    """Every text file of the project with its content: what git knows or would add, else what lies in its folders."""
    git = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if git.returncode == 0:
        found = [ROOT / line for line in git.stdout.splitlines()]
    else:
        found = [*ROOT.iterdir(), *(path for place in PLACES for path in (ROOT / place).rglob("*"))]
    wanted = [path for path in found if path.is_file() and path.suffix not in BINARY]
    return {path.relative_to(ROOT).as_posix(): text_of(path) for path in wanted}


def text_of(path):
    """What a file says, all files of an archive one after the other."""
    return lzma.decompress(path.read_bytes()).decode() if path.suffix == ".xz" else path.read_text(encoding="utf-8")


def modules():
    return {path.relative_to(ROOT): ast.parse(path.read_text()) for path in sorted((ROOT / "geoseg").rglob("*.py"))}


# spelt so that this file does not hold what it looks for
HOSTS = re.compile(r"\b(pypi|pythonhosted|npmjs|conda-forge|anaconda|debian|ubuntu)[.](org|com)\b")
MACHINE = re.compile(r"(?<![\w.$}])/(work|farm|root|home/\w+|Users/\w+|tmp/\w+|opt/\w+)/")
OUTSIDE = re.compile(r"[.][.]/shared(?!/data)")


@pytest.mark.parametrize(
    ("pattern", "caught"),
    [
        (HOSTS, "https://files.pythonhosted" + ".org/x"),
        (MACHINE, "open('/wo" + "rk/main/x')"),
        (OUTSIDE, "../sha" + "red/x"),
    ],
)
def test_patterns_catch_what_they_should(pattern, caught):
    assert pattern.search(caught)


@pytest.mark.parametrize("pattern", [HOSTS, MACHINE, OUTSIDE])
def test_no_file_names_a_registry_or_a_place_on_one_machine(pattern):
    found = texts()
    assert {"Makefile", "requirements.lock", "geoseg/cli.py", ".ci/run"} <= found.keys()
    assert [f"{name}: {hit.group()}" for name, text in found.items() for hit in pattern.finditer(text)] == []


def test_modules_say_what_they_hold():
    empty = {"utils", "util", "helpers", "helper", "common", "base", "misc", "core", "tools"}
    assert [str(path) for path in modules() if {*path.parts[:-1], path.stem} & empty] == []


def test_every_third_party_import_is_a_declared_dependency():
    extras = [line for name, lines in PROJECT["optional-dependencies"].items() if name != "dev" for line in lines]
    declared = {Requirement(line).name.lower().replace("_", "-") for line in [*PROJECT["dependencies"], *extras]}
    owners = importlib.metadata.packages_distributions()
    undeclared = set()
    for path, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"geoseg"}:
                if not {owner.lower().replace("_", "-") for owner in owners.get(top, [])} & declared:
                    undeclared.add(f"{path} imports {top}")
    assert undeclared == set()


def locked(name):
    """Requirements of a lock file: name to (version, lines of hashes)."""
    pins: dict[str, list[tuple[Version, int]]] = {}
    for block in re.split(r"\n(?=\S)", (ROOT / name).read_text().strip()):
        head = re.match(r"([\w.-]+)==([\w.+]+)", block)
        assert head, f"{name} holds something that is no exact version: {block[:80]!r}"
        pins.setdefault(head[1].lower(), []).append((Version(head[2]), block.count("--hash=sha256:")))
    return pins


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-uv.txt"])
def test_locks_hold_exact_versions_with_hashes_and_no_address(name):
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert "index" not in re.sub(r"^\S+==", "", text, flags=re.MULTILINE)
    assert all(hashes for pins in locked(name).values() for _, hashes in pins)


def test_lock_fulfils_what_the_project_asks_for():
    pins = locked("requirements.lock")
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        wanted = Requirement(line)
        versions = [version for version, _ in pins.get(wanted.name.lower(), [])]
        assert versions, f"{wanted.name} is not locked; run make lock"
        assert all(version in wanted.specifier for version in versions), f"{line} against {versions}; run make lock"


def test_makefile_installs_the_locked_uv():
    pinned = re.search(r"^UV_VERSION := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [str(version) for version, _ in locked("requirements-uv.txt")["uv"]] == [pinned[1]]


def test_make_lists_its_targets():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets == set(re.findall(r"^  make ([a-z-]+)", listed, re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)$", README, re.MULTILINE)) <= targets


def test_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 200
    for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", README):
        assert (ROOT / link).exists(), link


def commands():
    """The words of every line in shell blocks of the README and two pages that calls geoseg run or geoseg demo."""
    pages = README + "".join((ROOT / "docs" / page).read_text("utf-8") for page in ("data.md", "reproduction.md"))
    blocks = re.findall(r"```bash\n(.*?)```", pages, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[2:] for line in words if line[:2] in (["geoseg", "run"], ["geoseg", "demo"])]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_readme_commands_name_settings_that_exist(words):
    register_resolvers()
    check_overrides([word for word in words if "=" in word], multirun="-m" in words)


def test_readme_shows_commands():
    assert len(commands()) > 5


def test_notebooks_carry_no_output():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        dirty = [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")]
        assert dirty == [], f"{path.name}: strip the outputs of {dirty}"
