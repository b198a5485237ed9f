"""Artifact stores other than a local folder: a bucket on S3, or whatever lies behind a tracking server."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from runner.utils.errors import UserError, error_chain
from runner.utils.redaction import error_line, redact

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

ROOT_VARIABLE = "MLFLOW_DEFAULT_ARTIFACT_ROOT"
"""MLflow's environment variable for the address under which new experiments keep their artifacts."""
ENDPOINT_VARIABLE = "MLFLOW_S3_ENDPOINT_URL"
CHECKED = frozenset({"s3", "mlflow-artifacts"})
"""Schemes of the stores that a run tries before it computes anything."""
CHECK_FILE = ".runner-write-check.txt"
"""Written to a store and removed again, to see whether it takes files."""
CONNECT_TIMEOUT, READ_TIMEOUT = 10, 20
"""Seconds that S3 has to accept a connection, and to answer."""
LIBRARIES = frozenset({"boto3", "botocore", "s3transfer"})
NO_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"}
)
REFUSED = frozenset(
    {
        *("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"),
        *(
            "ExpiredTokenException",
            "RequestTimeTooSkewed",
            "AllAccessDisabled",
            "AccountProblem",
            "401",
            "403",
        ),
    }
)
NO_ANSWER = frozenset({"HTTPClientError", "ConnectionError", "IncompleteReadError", "ResponseStreamingError"})
"""Names of botocore's errors, or codes of S3's answers."""


def artifact_root() -> str:
    """The address that MLFLOW_DEFAULT_ARTIFACT_ROOT names; empty if it is not set.

    Raises `UserError` if it is not the address of a bucket, or holds a login.
    """
    root = os.environ.get(ROOT_VARIABLE, "").strip().rstrip("/")
    if not root:
        return ""
    parts = urlsplit(root)
    bucket = parts.netloc
    if parts.scheme != "s3" or not bucket or parts.query or parts.fragment:
        raise UserError(
            f"{ROOT_VARIABLE} is {redact(root)!r}, which is not an address such as s3://bucket/folder; correct it, or"
            " unset it: artifacts then lie beside the records, in the folder that --tracking.root names."
        )
    if "@" in bucket or (":" in bucket and not bucket.startswith("arn:")):
        raise UserError(
            f"{ROOT_VARIABLE} holds a login, which MLflow would store with every run; give s3://bucket/folder, and set"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    return root


def location_in(root: str, folder: str) -> str:
    """The address of a folder under an artifact root, without the ? and # that MLflow refuses."""
    return f"{root}/{quote(folder)}"


def limit_waiting() -> None:
    """Give S3 seconds instead of minutes for its answers: a process waits for them even after SIGTERM."""
    from mlflow.store.artifact import artifact_repository_registry as registry

    registry._artifact_repository_registry.register("s3", _s3_repository)


def _s3_repository(*args: Any, **options: Any) -> ArtifactRepository:
    """MLflow's artifact repository for an s3: address; MLflow calls it when it first needs one."""
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    with suppress(ImportError):  # the first request says that boto3 is missing
        import boto3
        from botocore.config import Config
        from botocore.session import get_session

        if boto3.DEFAULT_SESSION is None:
            session = get_session()
            timeouts = Config(connect_timeout=CONNECT_TIMEOUT, read_timeout=READ_TIMEOUT)
            session.set_default_client_config(timeouts)
            boto3.setup_default_session(botocore_session=session)
    return S3ArtifactRepository(*args, **options)


@lru_cache
def check_takes_files(location: str, uri: str) -> None:
    """Store a small file in an artifact store and remove it, once in a process; local folders are not tried.

    Args:
        location: The address of an experiment's artifacts.
        uri: The tracking store, which may be the server that a relative `location` belongs to.

    Raises `UserError` if the store does not take it.
    """
    if urlsplit(location).scheme not in CHECKED:
        return
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        repository = get_artifact_repository(location, tracking_uri=uri)
        with tempfile.TemporaryDirectory(prefix="runner-") as folder:
            file = Path(folder) / CHECK_FILE
            file.write_text("This file may be removed.\n")
            repository.log_artifact(str(file))
    except Exception as error:  # each kind of artifact store raises its own
        if problem := explain(error):
            raise UserError(f"Artifacts cannot be stored in {location}: {problem}.") from None
        reason = "it answers with errors" if "error responses" in str(error) else error_line(error)
        try:
            repository.list_artifacts()  # of a failed listing a server tells more than of a failed upload
        except Exception as failure:
            reason = _answer(failure) or reason
        raise UserError(
            f"The tracking server {redact(uri)} cannot store artifacts ({reason}); its log tells more: mend the store"
            " that its option --artifacts-destination names."
        ) from None
    with suppress(Exception):  # who may write need not have the right to remove
        repository.delete_artifacts(CHECK_FILE)


def _answer(error: Exception) -> str:
    """The message in a server's answer; empty if there is none."""
    try:
        return error_line(error.response.json()["message"])  # type: ignore[attr-defined]
    except (AttributeError, ValueError, KeyError, TypeError):
        return ""


def describe(error: BaseException) -> str:
    """What is wrong with S3, without a period; empty if the error does not come from there."""
    return _diagnosis(error)[0]


def explain(error: BaseException) -> str:
    """What is wrong with S3, and how to mend it, without a period; empty if the error does not come from there."""
    return "; ".join(filter(None, _diagnosis(error)))


def _diagnosis(error: BaseException) -> tuple[str, str]:
    """What is wrong with S3, and how to mend it; both empty if the error does not come from there."""
    chain = error_chain(error)
    if any(isinstance(each, ImportError) and each.name in LIBRARIES for each in chain):
        return "S3 needs the package boto3", "pip install 'vgg-runner[s3]' installs it"
    ours = [each for each in chain if type(each).__module__.partition(".")[0] in LIBRARIES]
    reason = _reason(ours[-1] if ours else error)
    endpoint = redact(os.environ.get(ENDPOINT_VARIABLE, "")) or "Amazon S3"
    if not ours:
        is_endpoint = any(str(each).startswith("Invalid endpoint") for each in chain)
        return (reason, f"correct {ENDPOINT_VARIABLE}") if is_endpoint else ("", "")
    names = {
        name for each in ours for name in (*(base.__name__ for base in type(each).__mro__), s3_code(each))
    }
    if names & NO_CREDENTIALS:
        return reason, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if names & REFUSED:
        return (
            f"{endpoint} refuses the credentials ({reason})",
            "correct AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or give them the right to write"
            " there",
        )
    if "NoSuchBucket" in names:
        return f"{endpoint} has no such bucket ({reason})", "create it, or name another"
    if names & NO_ANSWER:
        return f"{endpoint} does not answer ({reason})", f"start it, or correct {ENDPOINT_VARIABLE}"
    return reason, "correct the address or the store"


def _reason(error: BaseException) -> str:
    """An error in one line; of an answer of S3 only its own words."""
    if not (code := s3_code(error)):
        return error_line(error)
    message = error.response["Error"].get("Message", "")  # type: ignore[attr-defined]
    return error_line(f"{code}: {message}").rstrip(".:")


def s3_code(error: BaseException) -> str:
    """The code of an answer of S3, as NoSuchBucket; empty if the error is none."""
    response = getattr(error, "response", None)
    found = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    return str(found)
