"""Every setting of the server: one list, from which flags, environment variables, the configuration file and the reference page come.

Order of precedence: flag, environment variable (``HANDCLASP_…``), configuration file (TOML), default. A setting is turned into its type
once, at start, and a bad one stops the start; it cannot reach a request.
"""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from handclasp.access.roles import Roles
from handclasp.clock import parse_duration
from handclasp.errors import HandclaspError, Kind
from handclasp.pki.keys import KEY_TYPES
from handclasp.pki.names import check_dns, check_trust_domain

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("json", "text", "auto")


@dataclass(frozen=True)
class Setting:
    """One setting, as documentation, command line and parser see it."""

    name: str
    type: str
    """``text``, ``list``, ``number``, ``duration``, ``flag`` or ``path``."""
    default: Any
    help: str

    @property
    def flag(self) -> str:
        """The command-line flag."""
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        """The environment variable."""
        return "HANDCLASP_" + self.name.upper()


def _setting(type_: str, default: Any, help_: str) -> Any:
    metadata = {"type": type_, "help": help_, "default": default}
    if type_ == "list":
        return field(default_factory=lambda: tuple(default), metadata=metadata)
    if type_ == "path":
        return field(default_factory=lambda: Path(default).expanduser() if default else None, metadata=metadata)
    if type_ == "duration":
        return field(default_factory=lambda: parse_duration(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The server's settings, validated."""

    data: Path = _setting("path", "~/.local/share/handclasp", "Data directory: database, keys, log tiles, admin token.")
    database: str = _setting(
        "text", "", "Database URL: postgresql://USER@HOST/NAME, or sqlite:///PATH (default: handclasp.db in the data directory)."
    )
    trust_domain: str = _setting("text", "", "Trust domain of a new installation, such as example.org (up: default handclasp.internal).")
    dns_zone: tuple[str, ...] = _setting(
        "list", (), "DNS zone that issuing authorities are constrained to (repeatable; none: no constraint)."
    )
    uri_constraint: bool = _setting(
        "flag", False, "Also put the trust domain into the issuing authority as a URI name constraint (some verifiers refuse such chains)."
    )
    offline_root: bool = _setting(
        "flag", False, "Make no authorities at initialisation: root and issuing authority are imported (handclasp ca import)."
    )
    key_type: str = _setting(
        "text", "p256", "Key type of new authorities: p256, p384, ed25519, rsa3072, rsa4096, ml-dsa-44, ml-dsa-65, ml-dsa-87."
    )
    root_lifetime: float = _setting("duration", "3650d", "Lifetime of a new root.")
    issuing_lifetime: float = _setting("duration", "730d", "Lifetime of a new issuing authority.")
    https: str = _setting("text", "127.0.0.1:8443", "HTTPS listener, HOST:PORT (port 0: a free one) or off.")
    http: str = _setting("text", "127.0.0.1:8080", "HTTP listener for CRLs, CA certificates and health, HOST:PORT or off.")
    name: tuple[str, ...] = _setting(
        "list", (), "DNS name or IP address that clients use for this server (repeatable; default: host name, localhost, 127.0.0.1)."
    )
    grpc: str = _setting("text", "off", "gRPC listener for the CA protocols of meshes, HOST:PORT (8444 is usual) or off.")
    http_url: str = _setting("text", "", "Public address of the HTTP listener, put into certificates for CRLs (default: http://NAME:PORT).")
    workers: int = _setting("number", 1, "Server processes; more than one needs PostgreSQL.")
    ready_file: Path | None = _setting("path", None, "File to write once everything listens: addresses, CA file, admin token file (JSON).")
    passphrase_file: Path | None = _setting(
        "path",
        None,
        "File with the passphrase of the authorities' keys (default: systemd credential handclasp-passphrase, else one is made in data).",
    )
    pkcs11_module: str = _setting("text", "", "PKCS#11 library for keys in an HSM.")
    crl_shards: int = _setting("number", 16, "CRL shards of a new issuing authority; fixed for its life.")
    crl_lifetime: float = _setting("duration", "24h", "Time a CRL is valid; it is renewed at half of it.")
    server_cert_lifetime: float = _setting("duration", "24h", "Lifetime of the server's own certificate, 24h at most.")
    renewal_grace: float = _setting(
        "duration", "10m", "How long a superseded certificate may still be used to renew, for an answer that got lost."
    )
    commit_window: float = _setting("duration", "1ms", "How long a commit waits for others to share its sync.")
    max_body: int = _setting("number", 1_048_576, "Largest request body, bytes; single issuances are limited to 64 KiB.")
    request_timeout: float = _setting("duration", "30s", "Longest time one request may take.")
    rate_principal: float = _setting("number", 10_000, "Requests a second that one principal may make.")
    rate_refused: float = _setting(
        "number", 20, "Refused requests a second from one address; beyond it they get 429 and are no longer logged one by one."
    )
    retention: float = _setting(
        "duration",
        "30d",
        "How long certificates, and what was seen of them, are kept after their end; 0s: for ever. Log entries always are.",
    )
    tls12: bool = _setting("flag", False, "Also accept TLS 1.2.")
    witness: tuple[str, ...] = _setting(
        "list", (), "Witness to ask for a cosignature of each checkpoint: its verifier key, a space, its URL (repeatable)."
    )
    oidc_allow_http: bool = _setting("flag", False, "Allow OIDC issuers on plain HTTP and loopback addresses (test set-ups).")
    cluster_tokens: Path | None = _setting(
        "path",
        None,
        "Directory of the token files that the policy's clusters name, for their API servers (default: clusters in the data directory).",
    )
    bundle_refresh_hint: float = _setting(
        "duration", "5m", "How often others should fetch our bundles; a key of JWT-SVIDs is in them for four times as long before it signs."
    )
    jwt_key_period: float = _setting("duration", "7d", "How long a key signs JWT-SVIDs before its successor takes over.")
    web_name: str = _setting("text", "", "Name under which the HTTPS listener shows a Web PKI certificate; for others it has its own.")
    web_certificate: Path | None = _setting("path", None, "The certificate for web_name with its chain, PEM; read again when it changes.")
    web_key: Path | None = _setting("path", None, "The private key of web_certificate, PEM.")
    federation_ca: Path | None = _setting(
        "path", None, "CA certificates (PEM) to trust for https_web bundle endpoints besides the system's, such as a private Web PKI."
    )
    federation_allow_local: bool = _setting("flag", False, "Allow bundle endpoints of federation on loopback addresses (test set-ups).")
    console_roles: tuple[str, ...] = _setting(
        "list",
        (),
        "Who may do what in the console, WHO=ROLE: a client certificate's identity (spiffe://td/person/*) or an OIDC claim "
        "(claim:groups:platform), and admin, operator, auditor or team:NAME (repeatable).",
    )
    console_idle: float = _setting("duration", "30m", "A session of the console ends after this time without a request.")
    console_lifetime: float = _setting("duration", "12h", "A session of the console ends after this time in any case.")
    console_oidc_issuer: str = _setting("text", "", "OIDC provider by which people sign in to the console: its issuer URL.")
    console_oidc_client_id: str = _setting("text", "", "What the console is called at that provider.")
    console_oidc_secret_file: Path | None = _setting(
        "path", None, "File with the console's secret at that provider (none: a public client)."
    )
    console_oidc_scope: tuple[str, ...] = _setting(
        "list", ("openid", "profile", "email"), "What is asked of that provider; add groups where it takes it (repeatable)."
    )
    confirm_every: float = _setting(
        "duration", "180d", "How long it counts that an owner confirmed an identity; then it is overdue, and asked about again."
    )
    discovery_workers: int = _setting("number", 4, "Parts of scans that one process reads at once; 0: this process reads none.")
    discovery_files: Path | None = _setting(
        "path", None, "Directory of the files that settings of sources name: tokens, certificates, kubeconfigs (default: DATA/sources)."
    )
    agent_locations: int = _setting("number", 10_000, "Places that one agent may have in the inventory, in each source; 0: any number.")
    agent_certificates: int = _setting(
        "number", 20_000, "Certificates that nobody saw before that one agent may bring into the inventory in a day; 0: any number."
    )
    source_locations: int = _setting("number", 5_000_000, "Places that one source may have in the inventory; 0: any number.")
    source_certificates: int = _setting(
        "number", 5_000_000, "Certificates that nobody saw before that one source may bring into the inventory in a day; 0: any number."
    )
    unseen_after: float = _setting("duration", "1h", "A certificate that was issued so long ago and never seen anywhere counts as unseen.")
    old_after: float = _setting("duration", "10m", "How long a certificate may be seen beside its successor before it counts as old.")
    log_level: str = _setting("text", "info", "debug, info, warning or error.")
    log_format: str = _setting("text", "auto", "json, text, or auto: text on a terminal.")

    @property
    def database_url(self) -> str:
        """The database to use."""
        return self.database or f"sqlite:///{self.data / 'handclasp.db'}"

    @property
    def names(self) -> tuple[str, ...]:
        """What the server's own certificate is made out to."""
        return self.name or tuple(dict.fromkeys((_host_name(), "localhost", "127.0.0.1", "::1")))

    @classmethod
    def load(
        cls, flags: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None, config_file: Path | str | None = None
    ) -> Settings:
        """Return the settings in force; raise ``bad_setting`` naming each one that cannot be used and where it came from."""
        given: dict[str, tuple[str, Any]] = {}
        if config_file is not None:
            given |= {name: (str(config_file), value) for name, value in _read_file(Path(config_file)).items()}
        for setting in SETTINGS:
            value = (os.environ if env is None else env).get(setting.env)
            if value is not None:
                given[setting.name] = (setting.env, value)
        known = {setting.name for setting in SETTINGS}
        for name, value in (flags or {}).items():
            if name in known and value is not None and value != ():
                given[name] = ("--" + name.replace("_", "-"), value)
        values: dict[str, Any] = {}
        problems: list[str] = []
        for setting in SETTINGS:
            if setting.name in given:
                origin, raw = given[setting.name]
                try:
                    values[setting.name] = _CONVERT[setting.type](raw)
                except (ValueError, TypeError, HandclaspError) as error:
                    problems.append(f"{origin}: {raw!r} is not a {setting.type} ({error.args[0]})")
        if not problems:
            settings = cls(**values)
            settings.check()
            return settings
        raise _bad(problems)

    def check(self) -> None:
        """Raise ``bad_setting`` naming each setting that cannot be used: before anything is made from any of them."""
        problems = self._problems()
        if problems:
            raise _bad(problems)

    def _problems(self) -> list[str]:
        found = []
        if self.workers < 1 or self.workers > 256:
            found.append("workers must be between 1 and 256")
        if self.workers > 1 and not self.database_url.startswith("postgresql://"):
            found.append("workers: more than one needs PostgreSQL: set database to postgresql://…")
        if not 1 <= self.crl_shards <= 4096:
            found.append("crl_shards must be between 1 and 4096")
        for name in ("https", "http", "grpc"):
            value = getattr(self, name)
            if value != "off":
                try:
                    parse_listen(value)
                except HandclaspError as error:
                    found.append(f"{name}: {error.detail}")
        if self.https == "off":
            found.append("https cannot be off: the API is served there")
        return found + self._bad_values() + self._bad_names() + self._bad_federation() + self._bad_console()

    def _bad_console(self) -> list[str]:
        found = []
        try:
            Roles(self.console_roles)
        except HandclaspError as error:
            found.append(error.detail)
        if not 60 <= self.console_idle <= self.console_lifetime:
            found.append("console_idle must be at least 1m and not longer than console_lifetime")
        if bool(self.console_oidc_issuer) != bool(self.console_oidc_client_id):
            found.append("console_oidc_issuer and console_oidc_client_id belong together: set both, or none")
        if self.console_oidc_issuer and "openid" not in self.console_oidc_scope:
            found.append("console_oidc_scope must have openid")
        return found

    def _bad_federation(self) -> list[str]:
        found = []
        if self.bundle_refresh_hint < 1:
            found.append("bundle_refresh_hint must be at least 1s")
        if self.jwt_key_period < 8 * self.bundle_refresh_hint:
            found.append("jwt_key_period must be at least 8 times bundle_refresh_hint: keys are published for 4 of them before they sign")
        if len({bool(self.web_name), self.web_certificate is not None, self.web_key is not None}) > 1:
            found.append("web_name, web_certificate and web_key belong together: set all of them, or none")
        try:
            if self.web_name and check_dns(self.web_name, wildcard=False) != self.web_name:
                found.append("web_name: write it in lower case")
        except HandclaspError as error:
            found.append(f"web_name: {error.detail}")
        return found

    def _bad_values(self) -> list[str]:
        choices = (
            ("log_level", self.log_level.lower(), LOG_LEVELS),
            ("log_format", self.log_format, LOG_FORMATS),
            ("key_type", self.key_type, KEY_TYPES),
        )
        found = [f"{name}: {value!r} is not one of {', '.join(allowed)}" for name, value, allowed in choices if value not in allowed]
        above = ("rate_principal", "rate_refused", "root_lifetime", "issuing_lifetime", "crl_lifetime", "request_timeout", "confirm_every")
        found += [f"{name} must be above 0" for name in above if getattr(self, name) <= 0]
        if self.retention and self.retention < 3600:
            found.append("retention must be 0s (for ever) or at least 1h")
        if self.issuing_lifetime > self.root_lifetime:
            found.append("issuing_lifetime must not be longer than root_lifetime: an authority cannot outlive its root")
        return found

    def _bad_names(self) -> list[str]:
        found = []
        try:
            if self.trust_domain:
                check_trust_domain(self.trust_domain)
        except HandclaspError as error:
            found.append(f"trust_domain: {error.detail}")
        for zone in self.dns_zone:
            try:
                check_dns(zone, wildcard=False)
            except HandclaspError as error:
                found.append(f"dns_zone: {error.detail}")
        return found


def _bad(problems: Sequence[str]) -> HandclaspError:
    return HandclaspError(Kind.BAD_SETTING, "; ".join(problems), hint="see docs/reference/settings.md")


def parse_listen(text: str) -> tuple[str, int]:
    """Return ``HOST:PORT`` (or ``[IPV6]:PORT``) as a pair; raise ``bad_setting`` for anything else."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise HandclaspError(Kind.BAD_SETTING, f"{text!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)  # noqa: S104  (":8443" means every address, as elsewhere)


def _host_name() -> str:
    name = socket.gethostname().lower()
    return name if all(character.isalnum() or character in "-." for character in name) else "localhost"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise HandclaspError(Kind.BAD_SETTING, f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HandclaspError(Kind.BAD_SETTING, f"{path}: {error}") from error
    unknown = sorted(set(content) - {setting.name for setting in SETTINGS})
    if unknown:
        raise HandclaspError(Kind.BAD_SETTING, f"{path}: unknown setting {', '.join(unknown)}", hint="see docs/reference/settings.md")
    return content


def _flag(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    if str(raw).lower() in ("1", "true", "yes", "on"):
        return True
    if str(raw).lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("use true or false")


def _number(raw: Any) -> int | float:
    value = float(raw)
    if value < 0 or value != value or value == float("inf"):
        raise ValueError("use a number of at least 0")
    return int(value) if value.is_integer() else value


def _list(raw: Any) -> tuple[str, ...]:
    items: Sequence[Any] = raw.split(",") if isinstance(raw, str) else raw
    return tuple(str(item).strip() for item in items if str(item).strip())


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "text": str,
    "list": _list,
    "number": _number,
    "duration": lambda raw: parse_duration(str(raw)),
    "flag": _flag,
    "path": lambda raw: Path(str(raw)).expanduser().absolute(),
}

SETTINGS: tuple[Setting, ...] = tuple(
    Setting(item.name, item.metadata["type"], item.metadata["default"], item.metadata["help"]) for item in fields(Settings)
)
"""Every setting, in the order of the reference page."""
