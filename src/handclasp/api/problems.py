"""Kinds of error as HTTP answers: RFC 9457 problem documents. Nothing but the kind, the sentence and the hint crosses this line."""

from __future__ import annotations

from handclasp.errors import HandclaspError, Kind, problem_type
from handclasp.wire import Problem

STATUS: dict[Kind, int] = {
    Kind.BAD_REQUEST: 400,
    Kind.BAD_CSR: 400,
    Kind.BAD_PROOF: 400,
    Kind.BAD_NAME: 400,
    Kind.BAD_POLICY: 400,
    Kind.BAD_PROFILE: 400,
    Kind.BAD_SETTING: 400,
    Kind.BAD_CERTIFICATE: 400,
    Kind.BAD_KEY: 400,
    Kind.WEAK_KEY: 400,
    Kind.UNKNOWN_PROFILE: 400,
    Kind.UNKNOWN_AUTHORITY: 400,
    Kind.NOT_AUTHENTICATED: 401,
    Kind.TOKEN_UNKNOWN: 401,
    Kind.TOKEN_EXPIRED: 401,
    Kind.TOKEN_SPENT: 401,
    Kind.TOKEN_REVOKED: 401,
    Kind.BLOCKED_KEY: 403,
    Kind.REUSED_KEY: 403,
    Kind.NOT_ALLOWED: 403,
    Kind.NAME_NOT_ALLOWED: 403,
    Kind.PROFILE_NOT_ALLOWED: 403,
    Kind.LIFETIME_NOT_ALLOWED: 403,
    Kind.SUPERSEDED: 403,
    Kind.REVOKED: 403,
    Kind.REPLAYED: 403,
    Kind.LINT_FAILED: 403,
    Kind.NOT_FOUND: 404,
    Kind.METHOD_NOT_ALLOWED: 405,
    Kind.CONFLICT: 409,
    Kind.TOO_LARGE: 413,
    Kind.UNSUPPORTED_MEDIA_TYPE: 415,
    Kind.RATE_LIMITED: 429,
    Kind.VERIFY_FAILED: 500,
    Kind.TAMPERED: 500,
    Kind.INTERNAL: 500,
    Kind.UNAVAILABLE: 503,
    Kind.TIMEOUT: 504,
}
"""HTTP status of each kind; a test holds that no kind is missing."""

_SILENT = frozenset({Kind.INTERNAL, Kind.VERIFY_FAILED, Kind.TAMPERED})
"""Kinds whose detail is about our machinery: it goes to the server's log, not to the caller."""


def to_problem(error: HandclaspError, instance: str = "") -> Problem:
    """Return the problem document for an error."""
    silent = error.kind in _SILENT
    return Problem(
        type=problem_type(error.kind),
        title=error.kind.value.replace("_", " ").capitalize(),
        status=STATUS[error.kind],
        kind=error.kind.value,
        detail="something is wrong inside the server; its log says what" if silent else error.detail,
        hint=error.hint,
        instance=instance,
    )
