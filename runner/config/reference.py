"""Settings in words: help, commented files, docs/settings.md, and a JSON Schema for editors.

python -m runner.config.reference > docs/settings.md
python -m runner.config.reference --json-schema > experiment.schema.json
"""

from __future__ import annotations

import json
import sys
from typing import Any

from runner.config.metadata import Setting, groups, table
from runner.config.schema import Experiment
from runner.config.tree import as_tree
from runner.utils.safe_yaml import dump_yaml

HEADER = """\
# Settings

Generated from `runner/config/` by `python -m runner.config.reference`; do not edit.

A setting is given in an experiment file (`optim: {lr: 0.001}`) or as a flag (`--optim.lr 0.001`), which overrides the
file. Short flags: `--name`, `--lr`, `--epochs`, `--batch-size`, `--seed` (of `seed.train`). `--print_config` prints all
settings of an experiment.

- **Default**: the value if neither the experiment file nor a flag gives one. Without `--config` the file is
  `experiments/folder.yaml` if images are named (`train IMAGES`, `--data.root`, `--data.kind`), else
  `experiments/quickstart.yaml`.
- **Changes results**: no means that a run may be resumed, and the workers of a study may differ, with another value.
- **Searchable**: whether a study may vary the setting (`./launch.sh search --space FILE`).
"""


def help_text(setting: Setting, *notes: str) -> str:
    """Meaning, values and unit in a paragraph, and notes behind them."""
    return f"{setting.help} ({'; '.join([setting.takes, *notes])})"


def commented_yaml(experiment: Experiment) -> str:
    """The experiment as a YAML file with the help of each setting in a comment. `--config` reads it back equal."""
    values = as_tree(experiment)
    lines = []
    for name, value in values.items():
        if name in groups():
            lines += ["", f"# {groups()[name]}.", f"{name}:"]
            for key, item in value.items():
                lines += [f"  # {help_text(table()[f'{name}.{key}'])}", f"  {_entry(key, item)}"]
        else:
            lines += ["", f"# {help_text(table()[name])}", _entry(name, value)]
    return "\n".join(lines[1:]) + "\n"


def markdown() -> str:
    """docs/settings.md: a table for each group."""
    lines = [HEADER]
    for group, title in {"": "The experiment", **groups()}.items():
        lines += [f"## {group or 'experiment'}", "", f"{title}.", ""]
        lines += [
            "| Setting | Values | Default | Meaning | Changes results | Searchable |",
            "|---|---|---|---|---|---|",
        ]
        for each in table().values():
            if each.name.rpartition(".")[0] == group:
                default = dump_yaml(each.default, flow=True)
                marks = ["yes" if mark else "no" for mark in (each.changes_results, each.searchable)]
                lines.append(
                    f"| {' | '.join([f'`{each.name}`', each.takes, f'`{default}`', each.help, *marks])} |"
                )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def json_schema() -> dict[str, Any]:
    """A JSON Schema of experiment files, with descriptions and choices."""
    from pydantic import TypeAdapter

    schema = TypeAdapter(Experiment).json_schema()
    for each in table().values():
        owner = schema if each.owner is Experiment else schema["$defs"][each.owner.__name__]
        field = owner["properties"][each.name.rpartition(".")[2]]
        field["description"] = each.help
        if each.choices is not None:
            field["examples" if each.choices.is_open else "enum"] = list(each.choices.choices)
    return schema


def _entry(name: str, value: Any) -> str:
    return f"{name}: {dump_yaml(value, flow=True)}"


if __name__ == "__main__":
    sys.stdout.write(
        f"{json.dumps(json_schema(), indent=2)}\n" if "--json-schema" in sys.argv else markdown()
    )
