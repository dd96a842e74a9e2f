"""How a server is addressed, and what S3's answers stand for."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from volkit import ERRORS, AccessKey, NotFound, PermissionDenied, Unauthenticated, VolkitError, options
from volkit_s3.client import ERRORS as TABLE
from volkit_s3.client import asking
from volkit_s3.options import S3Parameters, S3Settings, Style


def test_huaweis_and_other_names_are_taken() -> None:
    given = {
        "obsEndpoint": "obs.cn-north-4.myhuaweicloud.com",
        "bucket": "b",
        "accessKey": "a",
        "secretKey": "s",
    }
    for name in ("obsEndpoint", "regionalEndpoint", "url", "endpoint"):
        settings = options.read(S3Settings, {name: given["obsEndpoint"], "accessKey": "a", "secretKey": "s"})
        endpoint = settings.allowed().own
        assert endpoint == "https://obs.cn-north-4.myhuaweicloud.com"
        assert settings.region_of(endpoint) == "cn-north-4"
        assert not settings.by_path(endpoint)
        assert settings.key() == AccessKey("a", "s")
    assert settings.by_path("https://10.0.0.1:9000")
    assert S3Settings(addressing=Style.PATH).by_path(endpoint)
    assert S3Settings().region_of("") == "us-east-1"
    assert S3Settings().allowed().own == ""
    assert options.read(S3Parameters, {"obsEndpoint": given["obsEndpoint"]}).endpoint == given["obsEndpoint"]


def test_every_code_has_a_class_and_no_answer_tells_what_was_sent() -> None:
    from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

    assert set(TABLE) <= set(ERRORS)
    codes = [code for codes in TABLE.values() for code in codes.split()]
    assert len(set(codes)) == len(codes)
    answers: list[tuple[Exception, type[VolkitError]]] = [
        *((ClientError(answer(code), "Op"), cls) for cls, some in TABLE.items() for code in some.split()),
        (ClientError(answer("404"), "Op"), NotFound),
        (ClientError(answer("", 403), "Op"), PermissionDenied),
        (NoCredentialsError(), Unauthenticated),
    ]
    for error, cls in answers:
        with pytest.raises(cls) as caught, asking("get of b"):
            raise error
        assert type(caught.value) is cls
        assert caught.value.__suppress_context__
        assert "AKIASECRET" not in str(caught.value)
    for away in (
        ClientError(answer("SlowDown", 503), "Op"),
        ClientError(answer("", 500), "Op"),
        ClientError(answer("", 429), "Op"),
        EndpointConnectionError(endpoint_url="https://x"),
        ReadTimeoutError(endpoint_url="https://x"),
    ):
        with pytest.raises(VolkitError) as caught, asking("get of b"):
            raise away
        assert type(caught.value).__name__ == "Unavailable"


def answer(code: str, status: int = 400) -> Any:
    number = int(code) if code.isdecimal() else status
    error = {"Code": code, "Message": "AKIASECRET is wrong", "AWSAccessKeyId": "AKIASECRET"}
    return {"Error": error, "ResponseMetadata": {"HTTPStatusCode": number}}


def test_the_libraries_log_no_requests() -> None:
    assert not logging.getLogger("botocore.auth").isEnabledFor(logging.DEBUG)


def test_every_option_says_what_it_is_for() -> None:
    for cls in (S3Settings, S3Parameters):
        assert all(one.help for one in options.declared(cls))
