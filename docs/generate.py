"""Makes the generated pages of docs/reference from the code: ``python docs/generate.py``.

``--check`` writes nothing and exits 1 when a page is not what the code gives; a test does the same.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main

from esper import errors
from esper.blueprints.ir import Blueprint, SymbolRange
from esper.blueprints.library import card, load_library, load_measured
from esper.blueprints.ops import OPS, RANK_AXES, TAILS, Attr
from esper.blueprints.rules import RULES
from esper.cli.failures import exit_code
from esper.cli.main import app
from esper.errors import EsperError
from esper.events.catalog import events_markdown, lifecycle_markdown
from esper.settings import CONFIG_VERSION, Settings

REFERENCE = Path(__file__).parent / "reference"
_HEADER = "<!-- Generated from the code by docs/generate.py. Do not edit. -->"
_WIDTH = 100

_SETTINGS = """\
# Settings

{header}

A flag (anywhere on the line: `esper log verify --home runs`) beats the environment, which beats the file, which beats
the default. The file is `./esper.toml`, or the one that `--config` or `ESPER_CONFIG` names. `esper config show` prints
every value and where it comes from, passwords masked.

| setting | environment | flag | default | meaning |
|---|---|---|---|---|
{rows}

The file may begin with `config_version = {version}`; a file of another version is refused (E-CFG-003). An unknown
key in the file and an unknown `ESPER_*` variable are refused (E-CFG-002) and told with the nearest name, because a
mistyped setting that is ignored costs a run.

```toml
config_version = {version}
home = "/data/esper"
log_level = "info"
```

Settings are about where things are and how they are shown. What decides how a run goes is the run's configuration
(`esper train --set`), which is a fact of the run.
"""

_ERRORS = """\
# Errors

{header}

Every error that Esper raises on purpose has a stable code and a stable name. The form in which a command tells one, in
text and in JSON, is in [cli-json.md](cli-json.md). An error is also of the Python type named in *is also*, so code that
knows nothing of Esper can catch it. The exit code is that of a command that ends with the error.

`E-USE-001` (UsageError, exit code 2) is a mistake on the command line itself; it is told by the command line and has no
class. `E-000` with "this was not foreseen" in its hint is a fault of Esper: please report it.

| code | name | exit code | is also | meaning |
|---|---|---|---|---|
{rows}

## Hints and details

A hint may be more exact where the error is raised; this is the one an error has otherwise. Details are attributes of
the exception and the `details` object in JSON.

{sections}
"""

_BLUEPRINTS = """\
# Blueprints: library, operators, rules

{header}

How to write one is in [../how-to/write-a-blueprint.md](../how-to/write-a-blueprint.md).

## The library

What ships in `esper/blueprints/library`; what each one is for and what it did stands on [its card](library.md). The
formulas are the ones each document claims; the verifier computes them again from the graph and refuses a document
whose claim differs. FLOPs are of one sample's forward pass; a multiply-accumulate counts 2. *Causal* blueprints keep
the order of positions and may stand at causal sites.

| name | kind | layouts | causal | parameters | FLOPs |
|---|---|---|---|---|---|
{library}

Letters in the formulas:

| name | symbols |
|---|---|
{symbols}

`noop` is a placebo: it is offered only where a run asks for it by name (`--set 'blueprints=["noop"]'`).

## Operators

The closed list. *Can be the tail*: initialised to zero it makes the branch zero at birth. *After a tail*: may follow a
zero tail, because it is zero at zero with a slope there.

- `split` gives part `index` of `parts` equal parts of the channels, counted from 0. Every part has to be read by some
  node; parts that do not come out even at a site make it unfit.
- `mean_pool` averages over `k` positions and keeps the number of positions: the window is centred, or with `causal` it
  ends at the position. What lies outside counts as zero. `gap` averages over all positions and gives one value.
- `sdpa` is scaled dot product attention of queries, keys and values, in that order. `heads` divides the channels. It
  costs 4 FLOPs for each channel of each pair of positions, causal or not. After a tail only its values may be zero.
- There is no `dropout`, since a branch computes the same in training and evaluation, and no `matmul_lowrank`, which is
  two `linear` nodes. Batch norms have a state and let samples see each other.

| operator | inputs | layouts | attributes | init | can be the tail | after a tail |
|---|---|---|---|---|---|---|
{operators}

## Rules

A document that breaks a rule is refused with `E-BP-002`; the error names the place and the rule. Names are stable.

| rule | what to do |
|---|---|
{rules}
"""

_LIBRARY = """\
# The library's cards

{header}

What each shipped blueprint is for, when to leave it, what it costs, and what it did when it was measured. Documents,
operators and rules are in [blueprints.md](blueprints.md). `esper blueprint show NAME` shows a card too.

Parameters and FLOPs are computed from the graph: formulas of the sizes of a site, one for all layouts where they
agree. FLOPs are of one sample's forward pass; a multiply-accumulate counts 2.

## How it was measured

`python -m benchmarks LIBRARY`: {where}.

For each task a host is trained a little. Then the blueprint is grafted at the first site it fits, and both train on
together; the placebo `noop` gets the same host, batches and steps. Losses are of validation data, in nats (`bytelm`:
per byte; 0.6931 nats are one bit).

| column | meaning |
|---|---|
| jump | how far one Adam step at 0.001 moves the branch, as a share of the site's output: the crucible's measure |
| worst rise | most that a batch's train loss lay above the placebo's while alpha rose, in nats: the median over seeds |
| dead | share of the branch's hidden units that are above zero for no validation sample, at the end |
| latency | forward pass with the branch over the one without |
| loss with `noop` | the placebo's validation loss at the end |
| fall | by how much the blueprint's loss is lower: the mean, and the least and the most of the seeds |

A fall below zero is growth that did not help there. That is an answer too: these are a few hundred steps at one site
of a small host, with {seeds} seeds a task, so they say that a blueprint learns and what it disturbs, not which is
best. Latencies on a host this small are mostly the price of calling a few more operators.

{cards}
"""


def cli_markdown() -> str:
    """Return the reference of the command line: the help of every command, in the order of `esper --help`."""
    lines = [
        "# The command line",
        "",
        _HEADER,
        "",
        "What `--json` writes, the form of errors and the exit codes are in [cli-json.md](cli-json.md); settings are in"
        " [settings.md](settings.md).",
    ]
    for path, text in commands():
        lines += ["", f"{'#' * min(4, path.count(' ') + 2)} {path}", "", "```text", text, "```"]
    return "\n".join(lines) + "\n"


def commands() -> Iterator[tuple[str, str]]:
    """Yield every command's full name and help text."""
    yield from _walk(typer.main.get_command(app), "esper", None)


def _walk(command: Any, path: str, parent: Any) -> Iterator[tuple[str, str]]:
    context = command.context_class(
        command,
        info_name=path.rpartition(" ")[2],
        parent=parent,
        terminal_width=_WIDTH,
        max_content_width=_WIDTH,
        **command.context_settings,
    )
    yield path, command.get_help(context).strip()
    if hasattr(command, "list_commands"):
        for name in command.list_commands(context):
            yield from _walk(command.get_command(context, name), f"{path} {name}", context)


def settings_markdown() -> str:
    """Return the reference of the settings."""
    rows = [
        f"| `{name}` | `ESPER_{name.upper()}` | `{_flag(name)}` | {_default(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return _SETTINGS.format(header=_HEADER, rows="\n".join(rows), version=CONFIG_VERSION)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _default(field: Any) -> str:
    return f"`{field.default}`" if field.default != "" else "from `home`"


def errors_markdown() -> str:
    """Return the reference of the errors, in the order of the drawn tree."""
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, EsperError)]
    return _ERRORS.format(
        header=_HEADER,
        rows="\n".join(_error_row(kind) for kind in kinds),
        sections="\n\n".join(filter(None, map(_error_section, kinds))),
    )


def _error_row(kind: type[EsperError]) -> str:
    named = {base for one in kind.__mro__ for base in one.__bases__ if issubclass(one, EsperError)}
    also = sorted(base.__name__ for base in named if base.__module__ == "builtins" and base is not Exception)
    known_as = ", ".join(f"`{name}`" for name in also)
    meaning = (kind.__doc__ or "").strip().split("\n")[0]
    return f"| `{kind.code}` | {kind.__name__} | {exit_code(kind())} | {known_as} | {meaning} |"


def _error_section(kind: type[EsperError]) -> str:
    """Return hint and attributes of an error, or nothing where it has neither."""
    hint = kind.__dict__.get("hint")
    lines = [f"- Hint: {hint}."] if hint else []
    _, found, attributes = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    for line in inspect.cleandoc(attributes).splitlines() if found else ():
        name, _, meaning = line.partition(": ")
        lines.append(f"- `{name}`: {meaning}".replace("``", "`"))
    return f"### {kind.code} {kind.__name__}\n\n" + "\n".join(lines) if lines else ""


def blueprints_markdown() -> str:
    """Return the reference of the shipped blueprints, the operators and the rules."""
    library = load_library()
    return _BLUEPRINTS.format(
        header=_HEADER,
        library="\n".join(_library_row(name, blueprint) for name, blueprint in library.items()),
        symbols="\n".join(f"| `{name}` | {_symbols(blueprint)} |" for name, blueprint in library.items()),
        operators="\n".join(_operator_row(name) for name in OPS),
        rules="\n".join(f"| `{name}` | {hint} |" for name, hint in RULES.items()),
    )


def library_markdown() -> str:
    """Return the cards of the shipped blueprints."""
    measured = load_measured()
    where = "on {measured_on}, {toolchain}, {hardware}, threads: {threads}".format(**measured.where)
    seeds = sorted({row["seeds"] for row in measured.rows})
    return _LIBRARY.format(
        header=_HEADER,
        where=where,
        seeds=" or ".join(map(str, seeds)),
        cards="\n\n".join(_card(card(name)) for name in load_library()),
    )


def _card(found: dict[str, Any]) -> str:
    """Return one blueprint's card."""
    letters = "; ".join(f"`{letter}` = {meaning}" for letter, meaning in found["symbols"].items())
    lines = [
        f"## {found['name']}",
        "",
        found["for"],
        "",
        f"- Not for: {found['not_for']}",
        f"- Kind: {found['kind']}. Sites: {found['sites']} ({', '.join(found['ranks'])})"
        f"{'; causal ones too' if found['causal'] else '; not causal ones'}.",
        f"- Parameters: {_formulas(found['parameters'])}. FLOPs: {_formulas(found['flops'])}.",
        f"- {letters}.",
    ]
    if found["sources"]:
        lines.append(f"- From: {'; '.join(found['sources'])}.")
    if found["measured"]:
        lines += ["", *_measured_rows(found["measured"])]
    return "\n".join(lines)


def _formulas(by_rank: dict[str, str]) -> str:
    """Return the formulas of a cost, each with the layouts it holds for where there are several."""
    ranks: dict[str, list[str]] = {}
    for rank, formula in by_rank.items():
        ranks.setdefault(formula, []).append(rank)
    if len(ranks) == 1:
        return f"`{next(iter(ranks))}`"
    return ", ".join(f"`{formula}` ({', '.join(names)})" for formula, names in ranks.items())


def _measured_rows(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| task | site | parameters | FLOPs | jump | worst rise | dead | latency | loss with `noop` | fall |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        dead = "" if row["dead_frac"] is None else f"{100 * row['dead_frac']:.0f} %"
        yield (
            f"| {row['task']} | `{row['site']}` | {row['parameters']:,} | {row['flops']:,} "
            f"| {100 * row['jump_frac']:.2f} % | {row['worst_rise']:+.2f} | {dead} | {row['latency_ratio']:.2f} "
            f"| {row['placebo_loss']:.3f} | {row['fall']:+.3f} [{row['fall_least']:+.3f}, {row['fall_most']:+.3f}] |"
        )


def _library_row(name: str, blueprint: Blueprint) -> str:
    claims, site = blueprint.claims, blueprint.site
    return (
        f"| `{name}` | {blueprint.kind} | {', '.join(site.rank)} | {_yes(site.causal)} "
        f"| `{claims.params}` | `{claims.flops}` |"
    )


def _symbols(blueprint: Blueprint) -> str:
    told = []
    for name, symbol in sorted(blueprint.symbols.items()):
        if isinstance(symbol, SymbolRange):
            rounded = f", rounded up to a multiple of {symbol.bucket}" if symbol.bucket > 1 else ""
            told.append(f"`{name}` = `{symbol.default}`{rounded}, from `{symbol.low}` to `{symbol.high}`")
        else:
            told.append(f"`{name}` = `{symbol}`")
    return "; ".join(told)


def _operator_row(name: str) -> str:
    op = OPS[name]
    low, high = op.arity
    inputs = str(low) if low == high else f"{low} to {high}"
    ranks = "all" if op.ranks == set(RANK_AXES) else ", ".join(rank for rank in RANK_AXES if rank in op.ranks)
    attributes = "; ".join(_attribute(key, attr) for key, attr in op.attrs.items())
    inits = ", ".join(op.inits)
    tail, after = _yes(name in TAILS), _yes(bool(op.slope))
    return f"| `{name}` | {inputs} | {ranks} | {attributes} | {inits} | {tail} | {after} |"


def _attribute(key: str, attr: Attr) -> str:
    kinds = {
        "size": "a size",
        "int": f"{attr.low:g} to {attr.high:g}",
        "real": f"{attr.low:g} to {attr.high:g}",
        "flag": "true or false",
    }
    default = "" if attr.default is None else f", default {str(attr.default).lower()}"
    return f"`{key}` {kinds[attr.type]}{default}"


def _yes(value: bool) -> str:
    return "yes" if value else ""


PAGES: dict[str, Callable[[], str]] = {
    "blueprints.md": blueprints_markdown,
    "cli.md": cli_markdown,
    "errors.md": errors_markdown,
    "events.md": events_markdown,
    "library.md": library_markdown,
    "lifecycle.md": lifecycle_markdown,
    "settings.md": settings_markdown,
}


def main() -> int:
    """Write every page, or with ``--check`` name the ones that are out of date."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, page in PAGES.items():
        path = REFERENCE / name
        text = page()
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8", newline="\n")
    if stale:
        sys.stderr.write(f"{'out of date' if check else 'written'}: {', '.join(stale)}\n")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
