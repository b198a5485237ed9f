"""Records that a tracking store can never take. They are set aside on disk, so that all others are delivered."""

from __future__ import annotations

import errno
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from runner.tracking.artifact_store import describe as describe_store_failure
from runner.tracking.artifact_store import s3_code
from runner.tracking.journal import Event, Journal
from runner.tracking.model_registry import MODEL_TAG
from runner.utils.atomic_files import write_text
from runner.utils.errors import error_chain
from runner.utils.redaction import error_line
from runner.utils.text import valid_unicode

if TYPE_CHECKING:
    from mlflow import MlflowClient

FOLDER = "refused"
"""The folder beside the journals: one folder per run."""
EVENTS = "events.jsonl"
"""In a run's folder: an event per line, with the `reason`. Its files lie beside it."""
REFUSED_TAG = "runner.refused"
"""Tag of a run: the records that its store did not take, and why."""
LONGEST_TAG = 5000
PERMANENT_CODES = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "ENDPOINT_NOT_FOUND"})
"""MLflow's error codes that a retry does not change."""
LOGIN_CODES = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"})
PERMANENT_ERRNO = frozenset({errno.ENAMETOOLONG, errno.EILSEQ, errno.ELOOP})
"""Errors of a file system that a retry does not change; others, as of a full disk, can be mended."""
PERMANENT_S3_CODES = frozenset({"KeyTooLongError", "EntityTooLarge", "MetadataTooLarge"})
"""Answers of S3 that a retry does not change; most others are about the bucket or who asks."""
TEMPORARY_CODES = frozenset({"TEMPORARILY_UNAVAILABLE", "RESOURCE_EXHAUSTED", "REQUEST_LIMIT_EXCEEDED"})
TEMPORARY_STATUS = frozenset({408, 425, 429})
"""HTTP statuses below 500 that ask for another attempt."""
UNREACHABLE = ("Max retries exceeded", "Connection aborted", "Connection refused", "timed out")
"""Texts in the errors of a library whose server does not answer."""
NO_ANSWER = "failed with exception"
"""Text in MLflow's error for a request that got no answer, whatever the reason."""
SERVER_ERRORS = "error responses"
"""Text in the error of a library whose server answers with errors."""


def is_permanent(error: BaseException) -> bool | None:
    """Whether a store will never take the record that it answered with this error.

    True: it will not. False: the store is away or full, or its login is missing or has ended. None: the error does
    not tell.
    """
    chain = error_chain(error)
    if wants_login(error):
        return False
    if any(isinstance(each, UnicodeError) or _is_refusal(each) for each in chain):
        return True
    text = str(error)
    if describe_store_failure(error) or any(
        each in text for each in (*UNREACHABLE, NO_ANSWER, SERVER_ERRORS)
    ):
        return False
    if any(isinstance(each, OSError) or _code(each) in TEMPORARY_CODES for each in chain):
        return False
    # Of other libraries, as that of an object store, we know only what is above.
    return None if _code(error) or isinstance(error, (ValueError, TypeError)) else False


def wants_login(error: BaseException) -> bool:
    """Whether a store refuses who asks, not what it is given."""
    return any(_status(each) in (401, 403) or _code(each) in LOGIN_CODES for each in error_chain(error))


def _is_refusal(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in PERMANENT_ERRNO:
        return True
    if code := s3_code(error):  # a wrong bucket, key or region can be mended
        return code in PERMANENT_S3_CODES
    status = _status(error)
    return (400 <= status < 500 and status not in TEMPORARY_STATUS) or _code(error) in PERMANENT_CODES


def _status(error: BaseException) -> int:
    """The HTTP status of an answer; 0 if the error is none."""
    response = getattr(error, "response", None)  # of requests; of botocore it is a dictionary
    status = getattr(response, "status_code", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else 0


def _code(error: BaseException) -> str | None:
    """The code of an MLflow error."""
    return getattr(error, "error_code", None)


def set_aside(event: Event, error: Exception, journal: Journal, client: MlflowClient) -> None:
    """Keep an event that the store refuses in the folder `refused`, and name it in a tag of its run.

    Raises whatever MLflow raises when the store does not answer: then the event is not set aside.
    """
    run_id, folder = journal.owner.run_id, refused_folder(journal)
    reason = error_line(error)
    entry = {**event, "reason": reason}
    entries = [*(each for each in read_refused(folder) if each != entry), entry]
    tag = valid_unicode("; ".join(f"{describe(each)}: {each['reason']}" for each in entries))
    client.set_tag(run_id, REFUSED_TAG, tag[:LONGEST_TAG])
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / EVENTS, "".join(json.dumps(each) + "\n" for each in entries))
    kept = f"; it is kept in {folder}"
    if event["kind"] == "artifact":
        _move(journal.artifact_path(event["file"]), folder / "files" / event["file"])
    elif event["kind"] == "model":
        if MODEL_TAG in client.get_run(run_id).data.tags:  # only the registry refused it
            shutil.rmtree(journal.folder / event["folder"], ignore_errors=True)
            kept = "; the run has it"
        else:
            _move(journal.folder / event["folder"], folder / event["folder"])
    journal.messages.append(f"MLflow does not take {describe(event)} of run {run_id[:8]} ({reason}){kept}")


def refused_folder(journal: Journal) -> Path:
    """Where the records of a run that its store refuses are kept."""
    return journal.folder.parent.with_name(FOLDER) / journal.folder.name


def read_refused(folder: Path) -> list[Event]:
    """The events in a run's folder, each with its `reason`; damaged lines are left out."""
    entries = []
    with suppress(OSError):
        for line in (folder / EVENTS).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                entries.append({**entry, "kind": str(entry["kind"]), "reason": str(entry["reason"])})
    return entries


def describe(event: Event) -> str:
    """An event for messages, as `params a, b`."""
    kind = event["kind"]
    if kind == "artifact":
        return f"the file {valid_unicode(str(event.get('file', '')))}"
    names = [str(name) for name in event.get("values", {})]
    if names:
        return f"{kind} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return {"input": "the data set", "model": "the model"}.get(kind, f"the record {kind!r}")


def _move(source: Path, target: Path) -> None:
    """Move a file or folder on one disk, in place of an earlier one; nothing if there is none."""
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        source.replace(target)
