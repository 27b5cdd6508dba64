"""The package as a whole: what it exports, how it imports, whether what it says of itself holds."""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import holdfast

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "holdfast"
PUBLIC = [
    "APGD",
    "FGSM",
    "PGD",
    "TRADES",
    "Access",
    "Ball",
    "Budget",
    "CarliniWagner",
    "Domain",
    "Goal",
    "HoldfastError",
    "Model",
    "Plan",
    "Report",
    "Square",
    "__version__",
    "audit",
    "bounds",
    "certified_radius",
    "frontier",
    "harden",
    "minimal_distances",
    "parse_threat",
    "smooth",
]
TESTED = re.compile(r"<!-- tested -->\n```python\n(.*?)```", re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _run(code: str) -> str:
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def _tracked() -> list[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name]


# ------------------------------------------------------------------ the public surface


def test_the_public_surface_is_pinned():
    assert holdfast.__all__ == PUBLIC  # ruff keeps both sorted
    assert len(holdfast.__all__) <= 30
    assert set(holdfast.__all__) <= set(dir(holdfast))


def test_no_public_name_is_a_modules_name():
    # importing holdfast.audit would put the module where the function of that name belongs
    modules = {module.name for module in pkgutil.iter_modules(holdfast.__path__)}
    assert modules.isdisjoint(holdfast.__all__)


def test_every_module_can_be_imported_alone_and_says_what_it_is_for():
    for path in sorted(SOURCE.rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        has_code = any(not isinstance(node, ast.Expr) for node in module.body)
        assert ast.get_docstring(module) or not has_code, f"{path} has no docstring"


# ------------------------------------------------------------------ the import

IMPORT = """
import json, random, sys, time, warnings
import numpy, scipy.special, torch  # scipy adds a filter for its own warning
warnings.simplefilter("error")

def settings():
    return [
        warnings.filters, torch.get_num_threads(), torch.get_default_dtype(),
        torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().tolist(), random.getstate(), numpy.random.get_state()[1].tolist(),
        torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision(), sys.excepthook,
    ]

before = repr(settings())
start = time.process_time()
import holdfast
for name in holdfast.__all__:  # names are resolved when they are used: use them all
    getattr(holdfast, name)
seconds = time.process_time() - start
heavy = ["matplotlib", "pandas", "onnx", "onnxruntime", "sklearn", "typer"]
heavy = [name for name in heavy if name in sys.modules]
print(json.dumps({"seconds": seconds, "same": repr(settings()) == before, "heavy": heavy}))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, object]:
    output = _run(IMPORT)
    assert output.count("\n") == 1, f"importing prints: {output}"
    return json.loads(output)


def test_import_takes_less_than_two_seconds_beyond_torch(imported: dict[str, float]):
    assert imported["seconds"] < 2


def test_import_changes_nothing_global(imported: dict[str, object]):
    assert imported["same"]


def test_import_leaves_heavy_packages_to_those_who_need_them(imported: dict[str, object]):
    assert imported["heavy"] == []


# ------------------------------------------------------------------ the source


def _calls(path: Path) -> list[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    return [call.id for call in calls if isinstance(call, ast.Name)]


def test_library_code_prints_nothing():
    for path in SOURCE.rglob("*.py"):
        if "cli" not in path.relative_to(SOURCE).parts:
            assert "print" not in _calls(path), f"{path} prints"


def test_there_are_no_star_imports():
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_star = isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
            assert not is_star, f"{path} imports *"


def test_no_file_names_a_place_on_somebodys_machine():
    home = re.compile(rb"/(?:home|Users|work|root)/\w+|/opt/(?:pypi|wheels)|[A-Z]:\\Users")
    allowed = {Path(__file__).resolve()}
    for path in _tracked():
        if path.is_file() and path not in allowed:
            found = home.search(path.read_bytes())
            assert found is None, f"{path.relative_to(ROOT)} names {found and found[0]!r}"


# ------------------------------------------------------------------ the documentation


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if TESTED.search(page.read_text(encoding="utf-8"))],
    ids=lambda page: page.stem,
)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("example", None))
    monkeypatch.setitem(sys.modules, "example", module)
    for block in TESTED.findall(page.read_text(encoding="utf-8")):
        exec(compile(block, str(page), "exec"), vars(module))


def test_every_python_block_is_valid_python():
    for page in PAGES:
        for block in re.findall(
            r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL
        ):
            ast.parse(block, str(page))


def test_plans_in_the_documentation_can_be_read():
    page = ROOT / "docs" / "guides" / "plans.md"
    blocks = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        assert holdfast.Plan.from_toml(block).resolved_stages


def test_commands_in_the_documentation_exist_with_their_options():
    import typer.main

    from holdfast.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    flags = {name: {f for p in c.params for f in p.opts} for name, c in commands.items()}
    for page in PAGES:
        blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for name, rest in re.findall(r"^ *holdfast (\w+)([^#\n]*)", "".join(blocks), re.MULTILINE):
            unknown = set(re.findall(r"--[\w-]+", rest)) - flags[name]
            assert not unknown, f"{page.relative_to(ROOT)}: holdfast {name} has no {unknown}"


def test_links_between_pages_lead_somewhere():
    link = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
    for page in PAGES:
        for target in link.findall(page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_the_readmes_figures_are_those_that_were_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    charts = importlib.import_module("charts")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert charts.START in text
    assert charts.readme(text) == text, "run `python benchmarks/charts.py`"
