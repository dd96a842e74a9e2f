"""What an answer over HTTP stands for."""

from __future__ import annotations

from volkit import Ambiguous, NotFound, Unavailable, error_of_status


def test_a_status_has_a_class() -> None:
    assert error_of_status(404) is NotFound
    for status in (0, 200, 302, 408, 418, 425, 429, 500, 502, 503, 504, 599):
        assert error_of_status(status) is Unavailable
    for status in (400, 401, 403, 404, 405, 409, 412, 501, 507):
        assert not issubclass(error_of_status(status), Ambiguous)
