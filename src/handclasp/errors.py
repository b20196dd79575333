"""The one domain error of Handclasp, and every kind it can have.

A kind is the machine-readable half of a refusal: it is what a client may branch on, what the log records, and what the outermost floor maps
to an HTTP status, a gRPC code or an exit code. Kinds are append-only: a released kind never changes its meaning.
"""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """Why something was refused or failed."""

    # What the caller sent cannot be used.
    BAD_REQUEST = "bad_request"
    BAD_CSR = "bad_csr"
    BAD_PROOF = "bad_proof_of_possession"
    BAD_NAME = "bad_name"
    BAD_POLICY = "bad_policy"
    BAD_PROFILE = "bad_profile"
    BAD_SETTING = "bad_setting"
    BAD_CERTIFICATE = "bad_certificate"
    BAD_KEY = "bad_key"
    TOO_LARGE = "too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    # The key is not one we certify.
    WEAK_KEY = "weak_key"
    BLOCKED_KEY = "blocked_key"
    REUSED_KEY = "reused_key"
    # The caller is not known, or is not who it must be.
    NOT_AUTHENTICATED = "not_authenticated"
    TOKEN_UNKNOWN = "token_unknown"  # noqa: S105  (a kind, not a secret)
    TOKEN_EXPIRED = "token_expired"  # noqa: S105
    TOKEN_SPENT = "token_spent"  # noqa: S105
    TOKEN_REVOKED = "token_revoked"  # noqa: S105
    # The caller is known, and may not.
    NOT_ALLOWED = "not_allowed"
    NAME_NOT_ALLOWED = "name_not_allowed"
    PROFILE_NOT_ALLOWED = "profile_not_allowed"
    LIFETIME_NOT_ALLOWED = "lifetime_not_allowed"
    SUPERSEDED = "superseded"
    REVOKED = "revoked"
    REPLAYED = "replayed"
    RATE_LIMITED = "rate_limited"
    # What was asked for is not there, or not in the right state.
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    UNKNOWN_PROFILE = "unknown_profile"
    UNKNOWN_AUTHORITY = "unknown_authority"
    CONFLICT = "conflict"
    # Our own rules or machinery stopped it.
    LINT_FAILED = "lint_failed"
    VERIFY_FAILED = "verify_failed"
    TAMPERED = "tampered"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    INTERNAL = "internal"
    DELIVERY_FAILED = "delivery_failed"


def problem_type(kind: Kind) -> str:
    """Return the ``type`` of the RFC 9457 problem of a kind: a name and not an address, so it depends on nobody's domain."""
    return f"urn:handclasp:problem:{kind.value}"


class HandclaspError(Exception):
    """One refusal or failure: a kind for machines, a sentence for people, and a hint about what to do next.

    ``detail`` never holds a secret: it is shown to the caller and written to the log.
    """

    def __init__(self, kind: Kind, detail: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.hint = hint
        self.retry_after = retry_after
        """Seconds after which the same request may work, where that is known."""

    def __str__(self) -> str:
        return f"{self.detail} ({self.kind.value})" + (f"\nhint: {self.hint}" if self.hint else "")
