"""Talking to S3: the URL of a place there, the client with its bounds, and what each refusal means.

Belongs here: everything that is about the protocol and not about what is kept. Does not belong here: keeping bytes
(``s3``). Credentials come from the environment that every AWS program reads, never from a URL.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from esper.artifacts.shelf import is_name
from esper.errors import ArtifactDamaged, ArtifactError, ArtifactStoreUnavailable, ConfigError
from esper.redact import mask_text

#: Seconds until a connection stands.
CONNECT_TIMEOUT_S = 5.0
#: Seconds without a byte until a request is given up.
READ_TIMEOUT_S = 30.0
#: Tries of one request, the first among them; the pauses between them grow from one second to at most 20.
ATTEMPTS = 4

_FORM = "use s3://bucket/prefix?endpoint_url=http://host:port&region=name; both parameters may be left out"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PARAMETERS = ("endpoint_url", "region")
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
#: Answers that ask to come back later, besides every status from 500 up.
_LATER = {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "Throttling", "ThrottlingException", "TooManyRequests"}
_DENIED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403", "401"}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}


class S3Place(NamedTuple):
    """A bucket and the beginning that every key there gets.

    Attributes:
        bucket: Name of the bucket.
        prefix: Beginning of the keys: empty, or with a slash at its end.
        endpoint_url: Server to ask instead of the one of AWS, or None.
        region: Region of the bucket, or None for that of the environment.
    """

    bucket: str
    prefix: str
    endpoint_url: str | None
    region: str | None

    @property
    def url(self) -> str:
        """What messages call the place."""
        return mask_text(f"s3://{self.bucket}/{self.prefix}".rstrip("/"))


def parse_s3_url(url: str) -> S3Place:
    """Read ``s3://bucket/prefix?endpoint_url=...&region=...``.

    Raises:
        ConfigError: It has another form, a parameter that is not known, or credentials in it.
    """
    shown = repr(mask_text(url))
    try:
        parts = urlsplit(url)
        parameters = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        server = urlsplit(parameters.get("endpoint_url", "")).netloc
    except ValueError as error:
        raise ConfigError(f"{shown} does not name a place on S3: {error}", hint=_FORM) from None
    for name in parameters:
        if name not in _PARAMETERS:
            # The value is not shown: whoever writes a secret key here must not find it in a log file.
            raise ConfigError(f"a URL of S3 has no parameter {name!r}", hint=_FORM)
    if "@" in parts.netloc or "@" in server:
        raise ConfigError(
            "a URL of S3 holds no credentials",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; change those that stood in the URL",
        )
    prefix = unquote(parts.path).strip("/")
    if parts.scheme != "s3" or parts.fragment or not _BUCKET.fullmatch(parts.netloc):
        raise ConfigError(f"{shown} does not name a place on S3", hint=_FORM)
    if prefix and not is_name(prefix):
        raise ConfigError(f"{shown}: {prefix!r} cannot be the beginning of names", hint=_FORM)
    endpoint_url = parameters.get("endpoint_url") or None
    if endpoint_url is not None and not re.match(r"https?://[^/]", endpoint_url):
        raise ConfigError(f"{shown}: endpoint_url begins with http:// or https://", hint=_FORM)
    return S3Place(parts.netloc, f"{prefix}/" if prefix else "", endpoint_url, parameters.get("region") or None)


def connect(
    place: S3Place,
    *,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    read_timeout_s: float = READ_TIMEOUT_S,
    attempts: int = ATTEMPTS,
) -> Any:
    """Return a client for a place; nothing is asked of the server yet.

    Raises:
        ConfigError: The environment's AWS settings cannot be used.
        ModuleNotFoundError: boto3 is not installed.
    """
    import boto3.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    elsewhere = place.endpoint_url or next(filter(None, map(os.environ.get, _ENDPOINT_VARIABLES)), None)
    config = Config(
        connect_timeout=connect_timeout_s,
        read_timeout=read_timeout_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        # Other servers than AWS's seldom have a host name for each bucket.
        s3={"addressing_style": "path" if elsewhere else "auto"},
        # Every put brings its own SHA-256; what else the client could add, not every server understands. Every get
        # asks for the checksum, and what arrives is compared with it.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_supported",
    )
    try:
        client = boto3.session.Session().client(
            "s3", endpoint_url=place.endpoint_url, region_name=place.region, config=config
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigError(
            f"{place.url} cannot be opened: {error}", hint="check the AWS settings of the environment"
        ) from error
    _spread_tries_by_own_numbers(client, attempts)
    return client


def _spread_tries_by_own_numbers(client: Any, attempts: int) -> None:
    """Let a client wait between its tries as botocore does, but draw from a generator of its own.

    botocore draws from the global one, which belongs to the run that trains: it is in checkpoints, and kernels are
    fetched on other threads while training draws from it.
    """
    from botocore.retries import standard

    service, events = client.meta.service_model.service_id.hyphenize(), client.meta.events
    events.unregister(f"needs-retry.{service}", unique_id=f"retry-config-{service}")
    quota = standard.RetryQuotaChecker(standard.quota.RetryQuota())
    handler = standard.RetryHandler(
        retry_policy=standard.RetryPolicy(
            retry_checker=standard.StandardRetryConditions(max_attempts=attempts),
            retry_backoff=standard.ExponentialBackoff(random=random.Random().random),  # noqa: S311 - spreads tries
        ),
        retry_event_adapter=standard.RetryEventAdapter(),
        retry_quota=quota,
    )
    events.register(f"after-call.{service}", quota.release_retry_quota)
    events.register(f"needs-retry.{service}", handler.needs_retry)


class NameFree(ArtifactError):
    """Nothing has the name: an answer, which whoever asks for a name expects."""


class NameTaken(ArtifactError):
    """Something has the name already: an answer, which whoever wants a free name expects."""


class RangeEmpty(ArtifactError):
    """The object has none of the bytes that were asked for: an answer too."""


class AskAgain(ArtifactError):
    """Another writer was at the same name, or the bytes changed on their way; nothing was kept."""


@contextmanager
def asking(place: S3Place, verb: str, name: str = "") -> Iterator[None]:
    """Turn what goes wrong while S3 is asked into errors of Esper.

    Args:
        place: Where.
        verb: What cannot be done, e.g. ``read``.
        name: To which object; none for the place itself.

    Raises:
        NameFree: Nothing has the name.
        NameTaken: The name was to be free and is not.
        RangeEmpty: The object ends before the bytes that were asked for.
        AskAgain: The same request may succeed at once.
        ArtifactDamaged: What arrived is not what was stored.
        ArtifactStoreUnavailable: There was no connection or no answer, or the server asks to come back later.
        ArtifactError: The server refuses.
    """
    from botocore import exceptions as boto

    told = f"{place.url}{'/' if name else ''}{name} cannot be {verb}: "
    try:
        yield
    except boto.ClientError as error:
        raise _refusal(place, told + _plain(error), error.response) from error
    except (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError) as error:
        raise ArtifactStoreUnavailable(
            told + _plain(error), hint="nothing was lost; check network, endpoint_url and proxy, then try again"
        ) from error
    except boto.FlexibleChecksumError as error:
        raise ArtifactDamaged(
            told + _plain(error), hint="restore the object from a version or a backup, or run again what made it"
        ) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
        raise ArtifactError(
            told + _plain(error),
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; they never stand in the URL",
        ) from error
    except boto.BotoCoreError as error:
        raise ArtifactError(told + _plain(error), hint="check the AWS settings of the environment") from error


def _refusal(place: S3Place, told: str, response: Mapping[str, Any]) -> ArtifactError:
    """Return what an answer of the server means."""
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _ANSWERS:
        return _ANSWERS[code](told)
    if status >= 500 or code in _LATER:
        return ArtifactStoreUnavailable(told)
    hint = "check the URL and the bucket's settings"
    if code == "NoSuchBucket":
        hint = f"make the bucket {place.bucket}, or check the URL: Esper makes no buckets"
    elif code in _DENIED:
        hint = (
            "check the AWS credentials; they must allow s3:ListBucket, s3:GetObject and s3:PutObject, and "
            "s3:DeleteObject for `esper artifact gc`"
        )
    elif code in _ELSEWHERE:
        hint = "the bucket is in another region: add ?region=NAME to the URL"
    return ArtifactError(told, hint=hint)


def _plain(error: Exception) -> str:
    return mask_text(str(error)).rstrip(".")


#: Error code -> what it answers. A HEAD request has a status only.
_ANSWERS: dict[str, type[ArtifactError]] = {
    "NoSuchKey": NameFree,
    "404": NameFree,
    "PreconditionFailed": NameTaken,
    "412": NameTaken,
    "InvalidRange": RangeEmpty,
    "ConditionalRequestConflict": AskAgain,
    "OperationAborted": AskAgain,
    "BadDigest": AskAgain,
    "XAmzContentChecksumMismatch": AskAgain,
    # The answer to an upload that was completed may be lost; asked again, the server knows the upload no more.
    "NoSuchUpload": AskAgain,
}
