"""The run of a study in MLflow, parent of its trials' runs: one, whoever works on the study, and never a lie."""

from __future__ import annotations

from optuna.trial import TrialState

from runner.config.schema import as_tree, as_yaml, flatten
from runner.study import storage as storages
from runner.study.plan import Plan
from runner.study.study import Study
from runner.tracking.journal import is_alive, me, this_host
from runner.tracking.sessions import Records
from runner.tracking.tracker import Tracker, tracked
from runner.utils.errors import UserError
from runner.utils.redaction import redact


class Parent(Tracker):
    """What trials need to know of the study's run."""

    def __init__(self, run_id: str, name: str) -> None:
        self.run_id = run_id
        self.name = name


def open_parent(study: Study, records: Records, owns: bool = True) -> Parent:
    """The study's run, RUNNING: made by the first who works on the study, found by the others.

    `owns` says whether this process answers for it; workers leave that to what started them.

    Raises `UserError` where the study's records are kept elsewhere.
    """
    plan, server, client = study.plan, records.server, records.client
    assert client is not None  # noqa: S101 (for types: rank 0 has one)
    with study.alone():
        kept = study.optuna.user_attrs
        _check_same_records(plan, kept.get("records"), server.uri, server.embedded)
        owner = me(server.uri, "")
        tags = {"runner.host": owner.host, "runner.pid": str(owner.pid), "runner.started": str(owner.started)}
        if run_id := kept.get("run"):
            if not owns:
                return Parent(run_id, plan.name)
            if _is_there(run_id, records):
                client.update_run(run_id, status="RUNNING")
                for name, value in tags.items():
                    client.set_tag(run_id, name, value)
                return Parent(run_id, plan.name)
            records.terminal.warn(f"the study's run {run_id[:8]} is gone from MLflow; making another one")
        with tracked(server, client, plan.baseline.name, f"study {plan.name}", records.terminal) as tracker:
            tracker.tags({"runner.study": plan.name})
            tracker.params(flatten(as_tree(plan.baseline)))
            tracker.params(
                {
                    "study.space": ", ".join(each.setting for each in plan.space.dimensions),
                    "study.objective": plan.objective,
                    "study.fits": plan.fits,
                    "study.storage": storages.hidden(plan.storage),
                }
            )
            tracker.text("baseline.yaml", as_yaml(plan.baseline))
        client.update_run(tracker.run_id, status="RUNNING")
        study.optuna.set_user_attr("records", [redact(server.uri), this_host()])
        study.optuna.set_user_attr("run", tracker.run_id)
        return Parent(tracker.run_id, plan.name)


def close_parent(study: Study, records: Records, parent: Parent, status: str) -> None:
    """End the study's run, unless others still work on the study: then it is theirs."""
    client = records.client
    assert client is not None  # noqa: S101 (for types: rank 0 has one)
    with study.alone():
        study.sweep()
        for trial in study.trials():
            if trial.state == TrialState.RUNNING and "owner" in trial.user_attrs:
                host, pid, started = trial.user_attrs["owner"]
                if host != this_host() or is_alive(pid, started):
                    for name, value in (("host", host), ("pid", pid), ("started", started)):
                        client.set_tag(parent.run_id, f"runner.{name}", str(value))
                    return
        client.set_terminated(parent.run_id, status)


def _is_there(run_id: str, records: Records) -> bool:
    from mlflow.exceptions import MlflowException

    assert records.client is not None  # noqa: S101 (for types: rank 0 has one)
    try:
        return str(records.client.get_run(run_id).info.lifecycle_stage) == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _check_same_records(plan: Plan, kept: list[str] | None, uri: str, embedded: bool) -> None:
    if kept is None:
        return
    stored, host = redact(kept[0]), kept[1]  # all who can read the storage can read it
    uri = redact(uri)
    if embedded and host != this_host() and not storages.is_local(plan.storage):
        raise UserError(
            f"The records of the study {plan.name!r} are in a database file on {host}; several hosts need an MLflow"
            " server: start one there, and set MLFLOW_TRACKING_URI for every worker."
        )
    if stored != uri:
        raise UserError(
            f"The records of the study {plan.name!r} are in {stored}, not in {uri}; set tracking.root or"
            " MLFLOW_TRACKING_URI to it, or choose another --study."
        )
