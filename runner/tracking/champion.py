"""The champion of a registered model: which version has the alias, also if several hosts register at the same time.

MLflow sets an alias whatever it was before, so a slow host may overwrite a better champion that it has not seen. It
has no lock, but it gives each version its number in one step. Hence a rule that all hosts follow:

- A new version stores with its creation what it is compared with (`ComparisonBase`), and is pending until its host has
  decided. If another version is pending at that time, its base is taken over: the alias may be about to change.
- The champion is the one that would result if the versions after the base had been registered one after another, in
  the order of their numbers.
- Who sets an alias reads all again, until the alias is what the rule gives. So the last who sets it has seen all
  versions. One that is killed in between is pending until its event is delivered again, or until the host of a version
  that is registered a while later has decided for both.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runner.config.choices import METRIC_NAMES
from runner.config.identity import MANIFEST_TAG
from runner.utils.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
"""The alias of an experiment's best model, by its validation score. `champion-DIGEST` is the best on the images and
split of that manifest, as scores on others cannot be compared; `champion` is one of them."""
SCORE_TAG = "runner.score"
"""Tag of a version: the name of the score by which it was chosen, and its value with all digits."""
STATE_TAG = "runner.champion_decision"
"""Tag of a version: whether its host has decided if it is the champion, `PENDING` or `DECIDED`."""
PENDING, DECIDED = "pending", "decided"
BEFORE_TAG, NEWEST_TAG = "runner.champion_before", "runner.newest_before"
ROUNDS = 20
"""How often a host sets the aliases and reads them again, as long as other hosts change them in between."""
LONGEST_PENDING = 24 * 3600.0
"""Seconds after which a pending version is not waited for: its host is lost. Far more than clocks differ."""
ABANDONED_AFTER = 600.0
"""Seconds between the registrations of two versions, by the server's clock, after which the host of the later one also
decides for the earlier one if that is still pending. Otherwise a choice by hand could be undone for a day."""


def champion_alias(manifest: str) -> str:
    """The alias of the best model on the images and split of a manifest, given its digest."""
    return f"{CHAMPION}-{manifest[:8]}"


@dataclass(frozen=True)
class ComparisonBase:
    """What a version is compared with: the champion before it, and all versions of its images after `newest`.

    Args:
        champion: Number of the version that was the champion of the same images; 0 if there was none.
        newest: Number of the newest version at that time.
    """

    champion: int
    newest: int

    def tags(self) -> dict[str, str]:
        """The tags of a new version that has this base and is pending."""
        return {BEFORE_TAG: str(self.champion), NEWEST_TAG: str(self.newest), STATE_TAG: PENDING}

    @classmethod
    def of(cls, version: ModelVersion) -> ComparisonBase | None:
        """The inverse of `tags`; None if the version has them not, or if somebody has changed them."""
        try:
            return cls(int(version.tags[BEFORE_TAG]), int(version.tags[NEWEST_TAG]))
        except (KeyError, ValueError):
            return None

    def is_consistent_with(self, champion: int) -> bool:
        """Whether a host with this base may have left this champion; otherwise somebody has chosen it by hand."""
        return champion in (0, self.champion) or champion > self.newest


@dataclass(frozen=True)
class Champions:
    """The versions that have the aliases: the overall champion, and that of a manifest."""

    overall: ModelVersion | None
    of_manifest: ModelVersion | None

    @property
    def number(self) -> int:
        """The number of the manifest's champion; 0 if there is none."""
        return int(self.of_manifest.version) if self.of_manifest else 0


def read_comparison_base(client: MlflowClient, name: str, manifest: str) -> ComparisonBase:
    """What a version that is registered next is compared with. The name must be registered."""
    # The order matters: what is registered after the first request is compared anyway, and what is not pending in the
    # second has changed the alias before the third.
    newest = max(
        (int(version.version) for version in client.get_registered_model(name).latest_versions or ()),
        default=0,
    )
    pending = _pending(client, name, manifest)
    champion = _read_champions(client, name, manifest).number
    oldest = time.time() - LONGEST_PENDING
    recent = [ComparisonBase.of(version) for version in pending if version.creation_timestamp / 1000 > oldest]
    bases = [base for base in recent if base is not None and base.is_consistent_with(champion)]
    return min(bases, key=lambda base: base.newest, default=ComparisonBase(champion, newest))


def decide_champion(client: MlflowClient, version: ModelVersion) -> str:
    """Make a version the champion of its images if there is none, or if its score is better. Returns a sentence.

    Raises whatever MLflow raises when the server does not answer or refuses; then it may be called again.
    """
    name, manifest = version.name, version.tags.get(MANIFEST_TAG, "")
    if version.tags.get(STATE_TAG) == DECIDED:  # its event is delivered again
        return _sentence_afterwards(version, _read_champions(client, name, manifest))
    base = _own_base(client, version)
    for _ in range(ROUNDS):
        champions = _read_champions(client, name, manifest)
        entrants = _versions_after(client, name, manifest, base.newest)
        if not base.is_consistent_with(champions.number) or not _is_pending(version, entrants):
            _mark_decided(client, [version])  # somebody has chosen another one meanwhile
            return _sentence_afterwards(version, champions)
        winner, outcome = _replay(_version(client, name, base.champion), entrants, version)
        changes = _changes(champions, winner, base, manifest) if winner else []
        if not winner or not changes:
            _mark_decided(client, [version, *_abandoned(entrants, version)])
            return _sentence(version, *outcome, champions)
        for alias in changes:
            _set_alias(client, alias, winner)
    return (
        f"{_label(version)} is registered; other hosts keep changing the champion:"
        f" ./launch.sh runs champion {_run(version)} makes it this one"
    )


def _own_base(client: MlflowClient, version: ModelVersion) -> ComparisonBase:
    """The base of a version; one that an earlier version of this program registered gets it now."""
    base = ComparisonBase.of(version) if version.tags.get(STATE_TAG) == PENDING else None
    if base is None:
        now = read_comparison_base(client, version.name, version.tags.get(MANIFEST_TAG, ""))
        base = ComparisonBase(now.champion, min(now.newest, int(version.version) - 1))
        for tag, value in base.tags().items():
            client.set_model_version_tag(version.name, str(version.version), tag, value)
    return base


def _is_pending(version: ModelVersion, entrants: list[ModelVersion]) -> bool:
    """Whether it is still up to this host to decide, according to a version's tags among the entrants."""
    own = [each for each in entrants if int(each.version) == int(version.version)]
    return any(each.tags.get(STATE_TAG) == PENDING for each in own)


def _abandoned(entrants: list[ModelVersion], version: ModelVersion) -> list[ModelVersion]:
    """The entrants that have been pending for so long that their hosts are lost."""
    latest = version.creation_timestamp - ABANDONED_AFTER * 1000
    return [
        entrant
        for entrant in entrants
        if entrant.tags.get(STATE_TAG) == PENDING and entrant.creation_timestamp < latest
    ]


def _changes(champions: Champions, winner: ModelVersion, base: ComparisonBase, manifest: str) -> list[str]:
    """The aliases that the winner is to get."""
    overall, number = champions.overall, int(winner.version)
    aliases = [] if champions.number == number else [champion_alias(manifest)]
    if overall is None:  # there is no champion yet, or somebody has removed the alias
        return [*aliases, CHAMPION]
    moved = number != base.champion or int(overall.version) > base.newest
    if overall.tags.get(MANIFEST_TAG) == manifest and moved and int(overall.version) != number:
        aliases.append(CHAMPION)
    return aliases


def _replay(
    before: ModelVersion | None, entrants: list[ModelVersion], version: ModelVersion
) -> tuple[ModelVersion | None, tuple[bool, str]]:
    """The champion after all entrants, and what became of one of them: whether it is the champion, and how."""
    champion, outcome = before, (False, "")
    for entrant in entrants:
        better, how = _compare(entrant, champion)
        if int(entrant.version) == int(version.version):
            outcome = better, how
        if better:
            champion = entrant
    if outcome[0] and champion is not None and int(champion.version) != int(version.version):
        outcome = False, _compare_with_later(version, champion)
    return champion, outcome


def _sentence(version: ModelVersion, better: bool, how: str, champions: Champions) -> str:
    """What became of a version."""
    overall, name, manifest = champions.overall, version.name, version.tags.get(MANIFEST_TAG, "")
    if not better:
        return f"{_label(version)} is registered; the champion {how}"
    if overall is None or overall.tags.get(MANIFEST_TAG) == manifest:
        return f"{_label(version)} is the {how}"
    return (
        f"{_label(version)} is the {how} of its images, {name}@{champion_alias(manifest)}; {name}@{CHAMPION} is still"
        f" version {overall.version}, which has other images or another split:"
        f" ./launch.sh runs champion {_run(version)} makes it this one"
    )


def _sentence_afterwards(version: ModelVersion, champions: Champions) -> str:
    """What became of a version about which it is decided already."""
    champion = champions.of_manifest
    if champion is None:
        return f"{_label(version)} is registered; somebody has removed the champion"
    if int(champion.version) != int(version.version):
        return _sentence(version, False, _compare_with_later(version, champion), champions)
    return _sentence(version, *_compare(version, champion), champions)


def _compare_with_later(version: ModelVersion, champion: ModelVersion) -> str:
    """How it is said that another version is the champion now, be it by its score or by somebody's choice."""
    better, how = _compare(version, champion)
    return f"is version {champion.version} now" if better else how


def _compare(version: ModelVersion, champion: ModelVersion | None) -> tuple[bool, str]:
    """Whether a version takes a champion's place, and how that is said."""
    name, _, _ = version.tags.get(SCORE_TAG, "").rpartition(" ")
    if (value := _score(version, name)) is None:  # somebody has changed its tags
        return False, "stays, as this one has no score to compare"
    score = f"{name} {value:.4f}"
    if champion is None:
        return True, f"champion, as the first ({score})"
    if int(champion.version) == int(version.version):
        return True, f"champion ({score})"
    if (other := _score(champion, name)) is None:
        advice = f"./launch.sh runs champion {_run(version)} makes it this one"
        return False, f"is still version {champion.version}, which has no {name} to compare: {advice}"
    comparison = f"{score} against {other:.4f} of version {champion.version}"
    better = value < other if _smaller_is_better(name) else value > other
    return (True, f"new champion ({comparison})") if better else (False, f"stays ({comparison})")


def _smaller_is_better(score: str) -> bool:
    metric = METRIC_NAMES.choices.get(score.rpartition("/")[2])
    return metric is not None and metric.implementation.direction == "minimize"


def _score(version: ModelVersion, name: str) -> float | None:
    """A version's score with all digits, or with those of its tag if it was chosen by another score."""
    known, _, value = version.tags.get(SCORE_TAG, "").rpartition(" ")
    try:
        return float(value if known == name else version.tags[name])
    except (KeyError, ValueError):
        return None


def make_champion(client: MlflowClient, run_id: str) -> str:
    """Give a run's registered model the alias `champion`. Returns a sentence; raises `UserError` if it has none."""
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    if not versions:
        raise UserError(
            f"Run {run_id[:8]} has no registered model; train it without --tracking.register false."
        )
    version = versions[0]
    aliases = [CHAMPION]
    if manifest := version.tags.get(MANIFEST_TAG):  # later models of its images are compared with it
        aliases.append(champion_alias(manifest))
        _mark_decided(client, _pending(client, version.name, manifest))  # they do not undo this choice
    for alias in aliases:
        _set_alias(client, alias, version)
    return f"model {version.name!r} version {version.version} of run {run_id[:8]} is the champion"


# Reading and writing the registry


def _read_champions(client: MlflowClient, name: str, manifest: str) -> Champions:
    aliases = client.get_registered_model(name).aliases
    overall = _version(client, name, int(aliases.get(CHAMPION, 0)))
    of_manifest = _version(client, name, int(aliases.get(champion_alias(manifest), 0)))
    if of_manifest is None and overall is not None and overall.tags.get(MANIFEST_TAG) == manifest:
        of_manifest = overall
    return Champions(overall, of_manifest)


def _version(client: MlflowClient, name: str, number: int) -> ModelVersion | None:
    """A version by its number; None if there is none, or if somebody has deleted it."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, str(number)) if number else None
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _versions_after(client: MlflowClient, name: str, manifest: str, newest: int) -> list[ModelVersion]:
    """The versions of a manifest that have a score and a higher number than `newest`, the earliest first."""
    found = _search(client, name, f"tags.`{MANIFEST_TAG}` = '{manifest}'")
    later = [each for each in found if int(each.version) > newest and SCORE_TAG in each.tags]
    return sorted(later, key=lambda each: int(each.version))


def _pending(client: MlflowClient, name: str, manifest: str) -> list[ModelVersion]:
    """The versions of a manifest of which it is not decided whether they are the champion."""
    condition = f"tags.`{MANIFEST_TAG}` = '{manifest}' AND tags.`{STATE_TAG}` = '{PENDING}'"
    return _search(client, name, condition)


def _search(client: MlflowClient, name: str, condition: str) -> list[ModelVersion]:
    # Names are compared here, not in the query: a name may contain a quote.
    found = client.search_model_versions(condition, order_by=["version_number DESC"])
    return [version for version in found if version.name == name]


def _set_alias(client: MlflowClient, alias: str, version: ModelVersion) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(version.name, alias, version.version)
    except MlflowException:  # of two hosts that set a new alias at once, MLflow refuses one
        if alias not in client.get_registered_model(version.name).aliases:
            raise
        client.set_registered_model_alias(version.name, alias, version.version)


def _mark_decided(client: MlflowClient, versions: Iterable[ModelVersion]) -> None:
    """Note that it is decided whether these are the champion."""
    for version in versions:
        client.set_model_version_tag(version.name, str(version.version), STATE_TAG, DECIDED)


def _label(version: ModelVersion) -> str:
    return f"model {version.name!r} version {version.version}"


def _run(version: ModelVersion) -> str:
    """The short id of a version's run."""
    return (version.run_id or "")[:8]
