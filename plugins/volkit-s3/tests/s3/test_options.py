"""What is refused before any server is asked, and what S3's answers stand for."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from volkit import ERRORS, InvalidArgument, NotFound, PermissionDenied, Unauthenticated, VolkitError, options
from volkit_s3.options import (
    Keys,
    Place,
    S3Parameters,
    S3Settings,
    by_path,
    endpoint_of,
    keys_of,
    name_of,
    region_of,
)
from volkit_s3.store import ERRORS as TABLE
from volkit_s3.store import asking, tagged

SETTINGS = S3Settings(endpoint="https://own.example", endpoints=("https://friend.example:8443",))


def test_huaweis_and_other_names_are_taken() -> None:
    given = {
        "obsEndpoint": "obs.cn-north-4.myhuaweicloud.com",
        "bucket": "b",
        "accessKey": "a",
        "secretKey": "s",
    }
    settings = options.read(S3Settings, given)
    endpoint = endpoint_of(settings.endpoint, settings)
    assert endpoint == "https://obs.cn-north-4.myhuaweicloud.com"
    assert region_of(endpoint, settings) == "cn-north-4"
    assert not by_path(endpoint, settings)
    assert by_path("https://10.0.0.1:9000", settings)
    assert region_of("", S3Settings()) == "us-east-1"
    assert endpoint_of("", S3Settings()) == ""
    for spelled in ({"access.key": "a", "secret.key": "s"}, {"accessKeyID": "a", "secretAccessKey": "s"}):
        assert keys_of(spelled, S3Settings()) == Keys("a", "s")
    assert keys_of({}, settings) == Keys("a", "s")
    assert keys_of({}, S3Settings()) is None
    with pytest.raises(Unauthenticated):
        keys_of({"secretKey": "s"}, S3Settings())


@pytest.mark.parametrize(
    "text",
    [
        *("ftp://own.example", "https://", "https://own.example/path", "https://user:hunter2@own.example"),
        *(
            "https://own.example?x=1",
            "https://own.example:99999",
            "https://own.example:0",
            "https://a b",
            "https://-a",
        ),
        *(
            "https://own.example#x",
            "//own.example",
            "file:///etc/passwd",
            "https://own.example\n",
            "https://[::1",
        ),
    ],
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        endpoint_of(text, SETTINGS)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "http://own.example",
        "https://169.254.169.254",
        "https://own.example.evil.example",
        "https://own.example:1",
    ],
)
def test_a_server_that_nobody_allowed(text: str) -> None:
    with pytest.raises(PermissionDenied):
        Place.checked("bucket", "", text, SETTINGS)
    with pytest.raises(PermissionDenied):
        Place.read(f"{text}/bucket", SETTINGS)


def test_a_place_and_its_id() -> None:
    for id_ in ("bucket", "bucket/a/b", "https://friend.example:8443/bucket/a ü"):
        assert Place.read(id_, SETTINGS).id == id_
    assert Place.read("https://OWN.example/bucket", SETTINGS).id == "bucket"
    assert Place.read("bucket/a/", SETTINGS).id == "bucket/a"


@pytest.mark.parametrize(
    "id_",
    [
        *(
            "",
            "ab",
            "a..b",
            "Bucket",
            "-bucket",
            "bucket-",
            "10.0.0.1",
            "xn--bucket",
            "b" * 64,
            "bu_cket",
            "bucket\n",
        ),
        *(
            "bucket//",
            "bucket/../x",
            "bucket//a",
            "bucket/./a",
            "bucket/a\x00b",
            "bucket/" + "x" * 301,
            "bucket/a\ud800",
        ),
        *("/bucket", "https://own.example", "https://own.example/"),
    ],
)
def test_what_is_no_volume(id_: str) -> None:
    with pytest.raises(NotFound):
        Place.read(id_, SETTINGS)


def test_volkits_own_keys_are_nobodys_prefix() -> None:
    for id_ in ("bucket/.volkit", "bucket/.volkit/x"):
        with pytest.raises(PermissionDenied):
            Place.read(id_, SETTINGS)


def test_names_are_told_apart_and_fit() -> None:
    names = ["A", "a", "a/b", "ü", "日本", "n" * 255, "", "-", "a'b"]
    made = [name_of(one, SETTINGS) for one in names]
    assert len(set(made)) == len(names)
    for one in made:
        assert Place.checked(one, "", "", SETTINGS).bucket == one


def test_tags_hold_any_name() -> None:
    assert tagged("pvc-1/a") == "pvc-1/a"
    assert tagged("a=b%") == "a=3Db=25"
    assert len(tagged("ü" * 255)) == 64


def test_every_code_has_a_class_and_no_answer_tells_what_was_sent() -> None:
    from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError

    assert set(TABLE) <= set(ERRORS)
    codes = [code for codes in TABLE.values() for code in codes.split()]
    assert len(set(codes)) == len(codes)
    answers: list[tuple[Exception, type[VolkitError]]] = [
        *((ClientError(answer(code), "Op"), cls) for cls, some in TABLE.items() for code in some.split()),
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
