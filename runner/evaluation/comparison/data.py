"""A comparison as CSV and as JSON: every digit of it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from runner.evaluation.comparison.values import Figure, Match, Seen, differing


def settings_csv(runs: Sequence[Seen]) -> str:
    """All settings, a column a run, with the word whether they differ."""
    unequal = differing(runs)
    names = sorted({name for run in runs for name in run.settings})
    rows = [
        (name, "yes" if name in unequal else "no", *(run.settings.get(name, "") for run in runs))
        for name in names
    ]
    return _csv(("setting", "differs", *(run.run_id for run in runs)), rows)


def figures_csv(runs: Sequence[Seen], found: Sequence[Figure]) -> str:
    """All metrics to the last digit, a column a run."""
    rows = [(each.name, *("" if value is None else repr(value) for value in each.values)) for each in found]
    return _csv(("metric", *(run.run_id for run in runs)), rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)  # lines end in \r\n (RFC 4180): so a value with \r or \n in it is quoted
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def as_json(
    runs: Sequence[Seen],
    found: Sequence[Figure],
    matches: Sequence[Match],
    notes: Sequence[str],
    folder: Path,
    logged: str | None,
) -> dict[str, Any]:
    """The comparison as JSON-like values; numbers that are not finite are null."""
    ids = [run.run_id for run in runs]
    unequal = differing(runs)
    return {
        "runs": [
            {
                "run": run.run_id,
                "name": run.name,
                "experiment": run.experiment,
                "status": run.status,
                "began": run.began,
                "seconds": run.seconds,
                "epochs": run.epochs,
            }
            for run in runs
        ],
        "settings": {
            "differing": {name: dict(zip(ids, values, strict=True)) for name, values in unequal.items()},
            "same": len({name for run in runs for name in run.settings}) - len(unequal),
        },
        "metrics": {
            each.name: {
                "values": dict(zip(ids, map(_finite, each.values), strict=True)),
                "best": [ids[place] for place in sorted(each.best)],
            }
            for each in found
        },
        "paired": [_match_as_json(ids[0], each) for each in matches],
        "notes": list(notes),
        "folder": str(folder),
        "artifacts": logged,
    }


def _match_as_json(first: str, match: Match) -> dict[str, Any]:
    about: dict[str, Any] = {"run": match.run.run_id, "against": first}
    it = match.result
    if it is None:
        return {**about, "fault": match.fault}
    return {
        **about,
        "images": it.images,
        "left_out": it.left_out,
        "only_first": it.first,
        "only_it": it.second,
        "difference": it.difference,
        "interval": it.interval,
        "p": it.p,
        "p_holm": match.p,
        "certain": match.certain,
        "classes": [
            {"class": each.label, "only_first": each.first, "only_it": each.second} for each in it.classes
        ],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
