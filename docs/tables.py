"""Tables of the documentation, made from what exists: cards, cascades, commands, results."""

from __future__ import annotations

import dataclasses
import importlib
import json
import pkgutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from holdfast import registry
from holdfast.plan import cascades, load_cascade

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
IMAGES = Path(__file__).resolve().parent / "images"
NORM_ORDER = ("linf", "l2", "l1", "l0")


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _norms(norms: Iterable[str]) -> str:
    order = {name: i for i, name in enumerate(NORM_ORDER)}
    return ", ".join(sorted(norms, key=lambda name: order.get(name, len(order))))


def attacks() -> str:
    """Every attack: what it does, sees, and works with."""
    cards = [kind.card for kind in registry.attacks().values()]
    rows = (
        (f"[`{card.name}`](#attack-{card.name})", card.title, card.access.value, _norms(card.norms))
        for card in cards
    )
    return table(("name", "what it does", "needs", "norms"), rows)


def attack_cards() -> str:
    """Every attack with its paper and its options."""
    return "\n\n".join(_attack(kind) for kind in registry.attacks().values())


def _attack(kind: Any) -> str:
    card = kind.card
    facts = [
        f"{card.title[0].upper()}{card.title[1:]}.",
        f"*{card.paper}.*",
        f"Needs {card.access.value}; norms {_norms(card.norms)}; "
        f"{'draws random numbers' if card.is_stochastic else 'draws no random numbers'}"
        f"{'; looks for the smallest change' if card.is_minimal else ''}. "
        f"In Python: {{py:class}}`~{kind.__module__}.{kind.__name__}`.",
    ]
    meanings = _documented(kind.__doc__ or "")
    rows = (
        (f"`{field.name}`", f"`{field.default}`", meanings.get(field.name, ""))
        for field in dataclasses.fields(kind)
    )
    options = table(("option", "default", "meaning"), rows)
    return "\n\n".join([f"(attack-{card.name})=\n### {card.name}", *facts, options])


def recipes() -> str:
    """Every recipe: what it does, what an update costs, where it works."""
    kinds = registry.recipes().values()
    rows = (
        (
            f"[`{kind.card.name}`](#recipe-{kind.card.name})",
            kind.card.title,
            f"{kind().passes / 2 / kind().repeats:g}×",
            _norms(kind.card.norms) + ("; several at once" if kind.card.n_threats == 0 else ""),
        )
        for kind in kinds
    )
    return table(("name", "what it does", "cost", "norms"), rows)


def recipe_cards() -> str:
    """Every recipe with its paper and its options."""
    return "\n\n".join(_recipe(kind) for kind in registry.recipes().values())


def _recipe(kind: Any) -> str:
    card, made = kind.card, kind()
    facts = [
        f"{card.title[0].upper()}{card.title[1:]}.",
        f"*{card.paper}.*",
        f"Norms {_norms(card.norms)}; a batch costs {made.passes:g} passes per sample with the "
        f"default options. In Python: {{py:class}}`~{kind.__module__}.{kind.__name__}`.",
    ]
    meanings = _documented(kind.__doc__ or "")
    rows = (
        (f"`{field.name}`", f"`{_default(made, field.name)}`", meanings.get(field.name, ""))
        for field in dataclasses.fields(kind)
    )
    options = table(("option", "default", "meaning"), rows)
    return "\n\n".join([f"(recipe-{card.name})=\n### {card.name}", *facts, options])


def _default(made: Any, name: str) -> str:
    """A default as a plan writes it: attacks and recipes by their names and options."""
    text = made.describe()
    start = text.index(f"{name}=") + len(name) + 1
    depth = 0
    for i, letter in enumerate(text[start:], start):
        depth += (letter == "(") - (letter == ")")
        if depth < 0 or (depth == 0 and letter == ","):
            return text[start:i]
    return text[start:]


def recipe_modules() -> str:
    """Directives for the reference of every recipe's module."""
    return _directives("holdfast.defenses")


def _documented(docstring: str) -> dict[str, str]:
    """The entries of a docstring's ``Attributes:`` section."""
    found: dict[str, str] = {}
    name = ""
    for line in docstring.partition("Attributes:")[2].splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if indent == 8 and ":" in text:
            name, _, text = text.partition(":")
            found[name] = text.strip()
        elif indent > 8 and name:
            found[name] += f" {text}"
        elif text:
            break
    return {key: text.replace("``", "`") for key, text in found.items()}


def attack_modules() -> str:
    """Directives for the reference of every attack's module."""
    return _directives("holdfast.attacks")


def threat_modules() -> str:
    """Directives for the reference of every threat's module."""
    return _directives("holdfast.perturbations")


def engine_modules() -> str:
    """Directives for the reference of the engine."""
    return _directives("holdfast.engine")


def verifier_modules() -> str:
    """Directives for the reference of the verifiers."""
    return _directives("holdfast.verifiers")


def _directives(package: str) -> str:
    path = importlib.import_module(package).__path__
    names = [module.name for module in pkgutil.iter_modules(path)]
    names = [f".{name}" for name in names if not name.startswith("_")]
    lines = [f".. automodule:: {package}{name}" for name in ["", *names]]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def threats() -> str:
    """Every threat that can be written as text."""
    return table(
        ("write", "what may change"),
        ((f"`{name}:SIZE`", text) for name, text in registry.threats().items()),
    )


def cascade_tables() -> str:
    """Every named cascade with its stages."""
    return "\n\n".join(_cascade(name, summary) for name, summary in cascades().items())


def _cascade(name: str, summary: str) -> str:
    rows = (
        (i, f"`{stage.describe()}`", _norms(stage.norms) or "all that the attack can do")
        for i, stage in enumerate(load_cascade(name), start=1)
    )
    stages = table(("stage", "attack", "norms"), rows)
    return f"## {name}\n\n{summary[0].upper()}{summary[1:]}.\n\n{stages}"


def commands() -> str:
    """Every command of the command line with its options, as its own help tells them."""
    import typer.main

    from holdfast.cli import app

    group = typer.main.get_command(app)
    subcommands = getattr(group, "commands", {})
    return "\n\n".join(_command(name, command) for name, command in subcommands.items())


def _command(name: str, command: Any) -> str:
    parts = [f"### holdfast {name}", command.help or ""]
    rows = [_parameter(parameter) for parameter in command.params if parameter.name != "help"]
    if rows:
        parts.append(table(("argument or option", "meaning"), rows))
    if examples := (getattr(command, "epilog", None) or "").replace("\n\n", "\n"):
        parts.append(f"```text\n{examples}\n```")
    inner = getattr(command, "commands", {}).items()
    return "\n\n".join([*parts, *(_command(f"{name} {sub}", c) for sub, c in inner)])


def _parameter(parameter: Any) -> tuple[str, str]:
    value = getattr(parameter, "metavar", None) or ""
    is_option = parameter.param_type_name == "option"
    written = f"{', '.join(parameter.opts)} {value}" if is_option else value or parameter.name
    return f"`{written.strip().replace('|', ' or ')}`", getattr(parameter, "help", None) or ""


WHOLE = {
    "bounds": "`python benchmarks/bounds.py --auto-lirpa DIR --write`",
    "harden": "`python benchmarks/harden.py CASE --seeds 0` for each case, then `--collect`",
    "minimal": "`python benchmarks/minimal.py --advlib DIR`",
    "minimal_most": "`python benchmarks/minimal.py --advlib DIR --images 1000 --passes 200 --near "
    "1.3 --name minimal_most`",
    "recipes": "`python benchmarks/recipes.py --case CASE --recipes RECIPE ... --seeds 0 1 2` for "
    "each case, then `--collect`",
    "trust": "`python benchmarks/trust.py --n 100 --again`",
    "trust_standard": "`python benchmarks/trust.py --n 100 --cascade standard --only CASE ...`",
    "verify_vnn": "`python benchmarks/verify_vnn.py --cpu --again`",
    "wall_time": "`python benchmarks/wall_time.py --autoattack DIR`",
}
"""Results that are filled in several runs, and what measures all of their rows again."""


def result(name: str, columns: dict[str, str]) -> str:
    """A result file as a table, with where and how it was measured below it."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return f"*Not measured yet: `python benchmarks/{name}.py` writes the result.*"
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = ([_value(row.get(key, "")) for key in columns.values()] for row in content["rows"])
    machine = content["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    where += f", {machine['gpu']}" if machine["gpu"] else ", no GPU"
    if machine.get("load", 0) > machine["cores"]:
        where += f" (other work beside it: load {machine['load']:g}, so seconds are too long)"
    versions = ", ".join(f"{key} {value}" for key, value in content["versions"].items())
    when = f"{'Last measured' if name in WHOLE else 'Measured'} {content['measured']}"
    again = WHOLE.get(name, f"`{content['command']}`")
    note = f"{when} at commit `{content['commit']}` on {where}; {versions}. Again: {again}."
    return f"{table(columns, rows)}\n\n{note}"


def strength() -> str:
    """Ours beside the reference AutoAttack, a row per network, and what each broke alone."""
    content = json.loads((RESULTS / "strength.json").read_text(encoding="utf-8"))
    networks: dict[str, dict[str, Any]] = {}
    for row in content["rows"]:
        networks.setdefault(row["model"], {})[row["tool"]] = row
    rows = [
        [name + " ✓" * (runs["standard"]["used_for"] == "checking")]
        + [_found(runs[tool]) for tool in ("quick", "standard", "reference")]
        for name, runs in networks.items()
    ]
    ours = [runs["standard"] for runs in networks.values()]
    shared, alone, missed = (
        sum(number(run) for run in ours)
        for number in (
            lambda run: run["n_shared"],
            lambda run: len(run["only_this_broke"]),
            lambda run: len(run["only_reference_broke"]),
        )
    )
    header = ("network", "`quick`", "`standard`", "AutoAttack's code")
    return (
        f"{table(header, rows)}\n\nOn the {shared:,} images that both saw, `standard` broke "
        f"{alone} that AutoAttack did not, and missed {missed} that it broke."
    )


def copies() -> str:
    """What other libraries call AutoAttack, beside ours and the authors', on the same images."""
    content = json.loads((RESULTS / "strength.json").read_text(encoding="utf-8"))
    runs = {(row["model"], row["tool"]): row for row in content["rows"]}
    rows = []
    for name in sorted({model for model, tool in runs if tool in ("torchattacks", "art")}):
        theirs = [runs.get((name, tool)) for tool in ("torchattacks", "art")]
        n = min(run["n"] for run in theirs if run)
        row = [name, f"{n:,}"]
        row += [_left(runs[name, tool], n) for tool in ("standard", "reference")]
        row += [_costing(run, n) if run else "" for run in theirs]
        rows.append(row)
    header = ("network", "first images", "`standard`", "AutoAttack's code", "torchattacks", "ART")
    return table(header, rows)


def _costing(run: dict[str, Any], n: int) -> str:
    return f"{_left(run, n)} in {run['passes_per_sample']:,.0f}"


def _left(run: dict[str, Any], n: int) -> str:
    """Robust accuracy on the first ``n`` images."""
    return f"{run['fooled'][:n].count('0') / n:.3f}"


def _found(run: dict[str, Any]) -> str:
    passes = run.get("search_passes_per_sample", run["passes_per_sample"])
    cost = f"{passes:,.0f}" if passes >= 10 else f"{passes:.1f}"
    return f"{run['robust_accuracy']:.3f} in {cost} ({run['n']:,})"


def chart(name: str) -> str:
    """The chart of a result, where it was drawn."""
    file = IMAGES / f"{name}.svg"
    return f"![The table below as bars](images/{file.name})" if file.is_file() else ""


def _value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


_PEER_COLUMNS = {
    "model": "model",
    "attack": "attack",
    "library": "library",
    "seconds": "seconds",
    "forward passes per sample": "forward_per_sample",
    "backward passes per sample": "backward_per_sample",
    "fooled": "success",
}
_TRUST_COLUMNS = {
    "model": "case",
    "": "kind",
    "threat": "threat",
    "first number": "first_number",
    "robust accuracy": "robust_accuracy",
    "undefended": "undefended_robust_accuracy",
    "told of the defence": "adaptive",
    "fixed draws": "fixed_draws",
    "verdict": "verdict",
    "because": "because",
    "passes: checks, attacks": "passes",
}
_MINIMAL_COLUMNS = {
    "model": "model",
    "looked at while choosing": "role",
    "norm": "norm",
    "passes": "budget",
    "samples": "n",
    "median, ours": "ours",
    "median, best peer": "best_peer_median",
    "best peer": "best_peer",
    "ours / best peer": "ratio",
}
_RESULTS: dict[str, dict[str, str]] = {
    "engine_cost": {
        "device": "device",
        "": "library",
        "seconds": "seconds",
        "bare loop = 1": "ratio",
    },
    "retirement": {
        "model": "model",
        "": "way",
        "passes per sample": "passes_per_sample",
        "share of fixed": "share_of_fixed",
        "fooled": "success",
        "seconds": "seconds",
    },
    "peers": _PEER_COLUMNS,
    "wall_time": {
        "network": "model",
        "threat": "threat",
        "images": "n",
        "`standard`, s": "seconds",
        "AutoAttack's code, s": "reference_seconds",
        "times faster": "times_faster",
        "robust accuracy": "robust_accuracy",
        "AutoAttack's": "reference_robust_accuracy",
    },
    "recipes": {
        "data and threat": "case",
        "recipe": "run",
        "seeds": "n_seeds",
        "images: PGD-50, audit": "images",
        "clean": "clean",
        "PGD-50": "pgd50",
        "standard": "standard",
        "proven, intervals": "verified_interval",
        "proven, linear": "verified_crown",
        "ms per update": "step_ms",
    },
    "harden": {
        "case": "what",
        "seed": "seed",
        "asked": "asked",
        "measured": "measured",
        "python benchmarks/...": "again",
    },
    "minimal": _MINIMAL_COLUMNS,
    "minimal_most": _MINIMAL_COLUMNS,
    "trust": _TRUST_COLUMNS,
    "trust_standard": _TRUST_COLUMNS,
    "verdicts": {"what": "what", "asked": "asked", "measured": "value"},
    "verify_vnn": {
        "benchmark": "benchmark",
        "tried": "instances",
        "decided": "solved",
        "sat": "sat",
        "unsat": "unsat",
        "wrong": "n_wrong",
        "median CPU s": "median_cpu_s",
        "CPU s": "cpu_s",
        "longest limit, s": "longest_limit_s",
    },
    "bounds": {
        "network": "network",
        "bounds": "method",
        "looser by": "looser_by",
        "rows looser": "rows_looser",
        "tighter by": "tighter_by",
        "CPU s": "ours_s",
        "auto_LiRPA": "theirs_s",
        "ratio": "ratio",
        "both float32": "ratio_float32",
        "both float64": "ratio_float64",
        "commit": "commit",
    },
    "verify_images_cifar_cnn_a_mix": {
        "model": "model",
        "threat": "threat",
        "images": "images",
        "proven by CROWN alone": "verified_by_bounds",
        "proven": "verified",
        "not broken": "not_broken",
        "open": "open",
        "CPU s of search": "search_cpu_s",
    },
}


def all_tables() -> dict[str, str]:
    """Every table by the name that pages write in double braces."""
    makers: list[Callable[[], str]] = [
        attacks,
        attack_cards,
        attack_modules,
        recipes,
        recipe_cards,
        recipe_modules,
        threats,
        threat_modules,
        engine_modules,
        verifier_modules,
        cascade_tables,
        strength,
        copies,
        commands,
    ]
    tables = {maker.__name__: maker() for maker in makers}
    tables |= {f"chart_{name}": chart(name) for name in _RESULTS}
    return tables | {f"result_{name}": result(name, columns) for name, columns in _RESULTS.items()}
