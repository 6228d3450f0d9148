"""The README's tables of results, generated from ``benchmarks/results/*.json`` and the leaderboard between two markers.

Run: ``python -m pipelines.evaluation.results_readme`` writes, ``--check`` only says whether the README agrees (exit 1
when it does not). A claim that is not met stays in the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import DataError
from pipelines.evaluation.leaderboard_table import NOTE, read_records
from pipelines.evaluation.leaderboard_table import tables as tables_of_runs
from pipelines.run_folder import ROOT, write_text

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
GROUPS = {
    "front": "The front door",
    "container": "Container",
    "sasrec": "SASRec and RecBole",
    "hstu": "HSTU",
    "sid": "Semantic ids",
    "scaling": "Scaling",
    "drift": "Drift",
}
_NO_RUNS = (
    "No runs yet. `recpod leaderboard RECIPE... --seeds 1,2,3` trains recipes with several seeds and keeps one file a "
    "run; `recpod leaderboard --collect RUN_FOLDER...` takes runs that are finished and trains nothing. "
    "`python -m pipelines.evaluation.results_readme` then puts the tables here."
)
_KEYS = ("claim", "value", "unit", "target", "met", "peer", "command", "machine", "versions", "commit", "runs")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Every result file of ``folder``, by name.

    Raises:
        DataError: a file is not JSON, lacks a key, or is not named after its claim.
    """
    results = []
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"not valid JSON ({error})", where=str(path)) from error
        missing = [key for key in _KEYS if key not in result]
        if missing:
            raise DataError(f"the result lacks {', '.join(missing)}", where=str(path))
        if result["claim"] != path.stem:
            raise DataError(f"the claim is '{result['claim']}', the file says '{path.stem}'", where=str(path))
        if path.stem.partition("-")[0] not in GROUPS:
            raise DataError("the name begins with none of " + ", ".join(GROUPS), where=str(path))
        results.append(result)
    return results


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a table a group, in the order of :data:`GROUPS`."""
    parts = []
    for prefix, title in GROUPS.items():
        rows = [result for result in results if result["claim"].partition("-")[0] == prefix]
        if rows:
            parts.append(
                f"### {title}\n\n| claim | measured | target | met | against |\n|---|---|---|---|---|\n"
                + "\n".join(map(_row, rows))
            )
    return "\n\n".join(parts) if parts else "No results yet."


def leaderboard_section(results: Path) -> str:
    """Markdown: the leaderboard's tables, or how to make one.

    Args:
        results: the folder of the result files; the leaderboard's lie in its folder ``leaderboard``.

    Raises:
        RunError: a file there that is no leaderboard result.
    """
    found = read_records(results / "leaderboard")
    if not found:
        return f"### Leaderboard\n\n{_NO_RUNS}"
    shown = tables_of_runs(found, heading="####", files="benchmarks/results/leaderboard/")
    return f"### Leaderboard\n\n{NOTE}\n\n{shown}"


def _row(result: Mapping[str, Any]) -> str:
    claim = str(result["claim"])
    name = claim.partition("-")[2].replace("-", " ")
    cells = [
        f"[{name}](benchmarks/results/{claim}.json)",
        f"**{_figure(result['value'])}** {_plain(result['unit'])}",
        _plain(_figure(result["target"])),
        "yes" if result["met"] else "**no**",
        _plain(_figure(result["peer"])),
    ]
    return "| " + " | ".join(cells) + " |"


def _figure(value: Any) -> str:
    """Numbers as people write them, mappings as ``key value`` pairs."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_figure(inner)}" for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_figure, value))
    return "-" if value is None else str(value)


def _plain(text: str) -> str:
    """Text that cannot break out of its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def with_tables(readme: str, content: str) -> str:
    """``readme`` with what stands between the markers replaced.

    Raises:
        DataError: the markers are not there once each, in order.
    """
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in tail:
        raise DataError(f"the README needs {BEGIN} and {END} once each", where="README.md")
    return f"{head}{BEGIN}\n{content}\n{END}{tail}"


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write the tables, or check them; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the README does not agree")
    options = parser.parse_args(arguments)
    readme = root / "README.md"
    present = readme.read_text(encoding="utf-8")
    results = root / "benchmarks" / "results"
    wanted = with_tables(present, f"{tables(read_results(results))}\n\n{leaderboard_section(results)}")
    if options.check:
        agrees = present == wanted
        print(
            "README.md agrees with the results"
            if agrees
            else "README.md is stale: python -m pipelines.evaluation.results_readme"
        )
        return 0 if agrees else 1
    write_text(readme, wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
