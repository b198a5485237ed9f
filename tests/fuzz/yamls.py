"""YAML texts that are difficult for a parser."""

from __future__ import annotations

from random import Random
from typing import Any

import yaml

from fuzz.damage import damaged, mutated

LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
"""9¹⁰ values in ten lines ("billion laughs")."""
MERGES = "b0: &b0 {x: 1}\n" + "".join(
    f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 9)}]}}\n" for n in range(1, 10)
)
MARK = "tests-fuzz-was-here"
"""A file that exists only if code in a document has run."""
CODE = f"!!python/object/apply:os.system ['touch {MARK}']"
CLASS = f"{{class_path: subprocess.Popen, init_args: {{args: [touch, {MARK}]}}}}"
"""A class that a parser which creates objects would instantiate."""
ALONE = (
    LAUGHS,
    MERGES,
    CODE,
    f"!!python/object/new:os.system ['touch {MARK}']",
    f"!!python/object/apply:subprocess.check_output [[touch, {MARK}]]",
    "[" * 5000,
    "{a: " * 5000,
    "- " * 5000 + "a",
    "".join(f"{' ' * n}a:\n" for n in range(2000)),
    "? " * 3000,
    "&a [*a]",
    "&a {b: *a}",
    "*a",
    "--- a\n--- b\n",
    "%YAML 9.9\n---\na: 1\n",
    "a: !!int x\n",
    "a: !!float x\n",
    "a: !!timestamp 2001-99-99\n",
    "a: 2001-99-99\n",
    "a: !!binary x\n",
    "a: !!set {b, c}\n",
    "a: !!omap [b: 1]\n",
    "? [a, b]\n: 1\n",
    "? {a: b}\n: 1\n",
    "null: 1\n",
    "1: 2\n",
    "=: 1\n",
    "a: =\n",
    "<<: 1\n",
    "a: !unknown x\n",
    "a: 0o9\n",
    "a: 1:2:99\n",
    "a: '\\ud800'\n",
    'a: "\\ud800"\n',
    'a: "\\U00110000"\n',
    "\ta: 1\n",
    "'",
    "a: |\n" + "x" * 300_000,
    "a" * 300_000 + ": 1\n",
    "a: " + "9" * 5000 + "\n",
    "true",
    "~",
    "",
)


def hostile(random: Random, seeds: list[bytes], trees: list[Any]) -> bytes:
    """Damaged bytes, a mutated tree, or a valid document with a difficult part."""
    kind = random.random()
    if kind < 0.35:
        return damaged(random, random.choice(seeds), random.choice(seeds))
    if kind < 0.8:
        return dumped(mutated(random, random.choice(trees)))
    return _trapped(random, random.choice(seeds).decode()).encode("utf-8", "surrogatepass")


def dumped(tree: Any) -> bytes:
    """A tree of plain values as YAML."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")


def _trapped(random: Random, text: str) -> str:
    trap = random.choice(ALONE)
    lines = text.splitlines(keepends=True)
    kind = random.randrange(5)
    if kind == 0:
        return trap
    if kind == 1:
        return text + "\n" + trap
    if kind == 2:
        return trap + "\n" + text
    named = [place for place, line in enumerate(lines) if ":" in line and not line.lstrip().startswith("#")]
    place = random.choice(named)
    line = lines[place]
    short = random.choice(
        (CODE, "&a [*a]", "*a", "!!binary x", "[" * 5000, "0o17", "1:30", "12e03", "2001-01-01", CLASS, "y")
    )
    if kind == 4:
        lines.insert(0, random.choice((LAUGHS, MERGES)))
        place, short = place + 1, random.choice(("*a9", "*b9", "*a2", "{<<: *b9}"))
    lines[place] = random.choice((line + line, line.split(":")[0] + f": {short}\n"))
    return "".join(lines)
