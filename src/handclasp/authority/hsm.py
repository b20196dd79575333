"""Keys that stay on a PKCS#11 token (HSM, smart card, SoftHSM2), as objects that `cryptography` accepts where it takes a private key.

One thread per library and one session per token do all the work of the process: python-pkcs11 initialises libraries without locking
(``C_Initialize(NULL)``: the caller promises one thread at a time), and SoftHSM2 2.6.1 crashes when two threads sign (SoftHSMv2 issue 688).
Callers may be on any thread; they wait for their turn.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils

from handclasp.authority.files import check_private, read_small
from handclasp.authority.pkcs11_uri import Pkcs11Uri
from handclasp.errors import HandclaspError, Kind

T = TypeVar("T")

_PATIENCE = 30.0  # seconds for one operation; generating RSA 4096 on a slow token takes about ten
_CURVES: dict[str, tuple[str, ec.EllipticCurve]] = {"p256": ("secp256r1", ec.SECP256R1()), "p384": ("secp384r1", ec.SECP384R1())}
_RSA_BITS = {"rsa2048": 2048, "rsa3072": 3072, "rsa4096": 4096}
_LOST = frozenset(
    {  # the session or the token went away under us; signing again in a new session is safe
        *("SessionHandleInvalid", "SessionClosed", "DeviceError", "DeviceRemoved", "TokenNotPresent", "UserNotLoggedIn"),
        *("ObjectHandleInvalid", "KeyHandleInvalid", "GeneralError", "FunctionFailed", "OperationActive"),
    }
)


def find_pin(uri: Pkcs11Uri, environ: Mapping[str, str]) -> str:
    """Return the token's PIN from the file in ``pin-source`` or from ``HANDCLASP_PKCS11_PIN``; raise ``bad_setting`` when there is none."""
    if uri.pin_source:
        path = Path(uri.pin_source.removeprefix("file:").replace("///", "/", 1))
        if not path.is_absolute():  # RFC 7512 also has "|command": a stored URI must not start programs
            raise HandclaspError(Kind.BAD_SETTING, "pin-source is not an absolute path or a file: URI")
        pin = read_small(path, what="PIN file")
        check_private(path, what="PIN file", group_may_read=True)
        try:
            return pin.rstrip(b"\r\n").decode()
        except UnicodeDecodeError as error:
            raise HandclaspError(Kind.BAD_SETTING, f"PIN file {path} is not UTF-8") from error
    if pin_text := environ.get("HANDCLASP_PKCS11_PIN"):
        return pin_text
    raise HandclaspError(Kind.BAD_SETTING, f"no PIN for the {uri.describe()}", hint="set HANDCLASP_PKCS11_PIN, or ?pin-source=file:/…")


class Token:
    """One token: its session, and the thread that may use it. Made by :func:`open_token`; lives as long as the process."""

    def __init__(self, library: _Library, uri: Pkcs11Uri, pin: str) -> None:
        self._library = library
        self._uri = uri
        self._pin = pin
        self._session: Any = None
        self._refused: HandclaspError | None = None
        self.generation = 0
        """Rises with every new session; object handles of an older one are void."""

    def call(self, work: Callable[[Any], T]) -> T:
        """Run ``work(session)`` on the token's thread and return what it returns.

        Tried once more in a new session when the token went away. Raises ``bad_setting`` for a refused PIN or a token that is not there,
        ``timeout`` after 30 s, ``unavailable`` for any other trouble with the token, and what ``work`` raises.
        """
        return self._library.run(lambda: self._attempt(work))

    def _attempt(self, work: Callable[[Any], T]) -> T:
        pkcs11 = self._library.pkcs11
        for last in (False, True):
            try:
                if self._session is None:
                    self._open(pkcs11)
                return work(self._session)
            except pkcs11.PKCS11Error as error:
                self._session = None
                if last or type(error).__name__ not in _LOST:
                    words = str(error) or type(error).__name__
                    raise HandclaspError(Kind.UNAVAILABLE, f"the token of the {self._uri.describe()} failed: {words}") from error
        raise AssertionError("unreachable")

    def _open(self, pkcs11: Any) -> None:
        if self._refused is not None:
            raise self._refused  # a wrong PIN is tried once: the third try locks many tokens for good
        token = self._library.find(self._uri)
        try:
            self._session = token.open(user_pin=self._pin)
        except pkcs11.UserAlreadyLoggedIn:  # the login outlived our session
            self._session = token.open()
        except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange, pkcs11.PinLocked, pkcs11.PinExpired) as error:
            self._refused = HandclaspError(
                Kind.BAD_SETTING,
                f"the token of the {self._uri.describe()} refused the PIN ({type(error).__name__})",
                hint="correct the PIN and start again; it is not tried a second time, because tokens lock",
            )
            raise self._refused from error
        self.generation += 1

    def generate(self, uri: Pkcs11Uri, key_type: str) -> None:
        """Make a key pair that never leaves the token (sensitive, not extractable, may only sign)."""
        if key_type not in _CURVES and key_type not in _RSA_BITS:
            raise HandclaspError(Kind.BAD_KEY, f"{key_type} keys are not made on PKCS#11 tokens", hint="use p256, p384 or rsa3072")
        self.call(lambda session: self._generate(session, uri, key_type))

    def _generate(self, session: Any, uri: Pkcs11Uri, key_type: str) -> None:
        pkcs11 = self._library.pkcs11
        if list(session.get_objects(_template(pkcs11, uri, pkcs11.ObjectClass.PRIVATE_KEY))):
            raise HandclaspError(Kind.CONFLICT, f"the {uri.describe()} exists already", hint="choose another object name")
        made: dict[str, Any] = {"store": True, "label": uri.object or uri.id.hex(), "id": uri.id or os.urandom(16)}
        made["capabilities"] = pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY
        attribute = pkcs11.Attribute
        made["private_template"] = {attribute.SENSITIVE: True, attribute.EXTRACTABLE: False, attribute.PRIVATE: True}
        # Read-write only for this moment; the login of the session we hold counts for the whole process.
        with session.token.open(rw=True) as writing:
            if key_type in _RSA_BITS:
                writing.generate_keypair(pkcs11.KeyType.RSA, _RSA_BITS[key_type], **made)
                return
            parameters = {attribute.EC_PARAMS: pkcs11.util.ec.encode_named_curve_parameters(_CURVES[key_type][0])}
            writing.create_domain_parameters(pkcs11.KeyType.EC, parameters, local=True).generate_keypair(**made)

    def key(self, uri: Pkcs11Uri) -> TokenEcKey | TokenRsaKey:
        """Return the key as an object that signs on the token; raise ``not_found`` or ``conflict`` unless there is exactly one."""
        public = self.call(lambda session: _public_key(self._library.pkcs11, session, uri))
        handle = _Handle(self, uri, self._library.pkcs11)
        return TokenEcKey(handle, public) if isinstance(public, ec.EllipticCurvePublicKey) else TokenRsaKey(handle, public)


class _Library:
    """One PKCS#11 library, loaded once in the process, and its only thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.tokens: dict[tuple[Any, ...], Token] = {}
        self._process = os.getpid()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pkcs11")
        try:
            self.pkcs11: Any = importlib.import_module("pkcs11")
        except ImportError as error:
            raise HandclaspError(Kind.BAD_SETTING, "PKCS#11 keys need python-pkcs11", hint="pip install 'handclasp[pkcs11]'") from error
        self._library: Any = self.run(self._load)

    def run(self, work: Callable[[], T]) -> T:
        if os.getpid() != self._process:  # threads and PKCS#11 sessions do not survive a fork (PKCS#11 2.40 section 2.5.2)
            raise HandclaspError(
                Kind.INTERNAL,
                "the PKCS#11 library was loaded before this process was forked",
                hint="load keys after it",
            )
        future = self._thread.submit(work)
        try:
            return future.result(_PATIENCE)
        except FutureTimeout as error:
            future.cancel()
            raise HandclaspError(Kind.TIMEOUT, f"the PKCS#11 library {self.path} did not answer in {_PATIENCE:.0f} s") from error

    def find(self, uri: Pkcs11Uri) -> Any:
        found = [token for slot in self._library.get_slots(token_present=True) if _is_token(token := slot.get_token(), slot, uri)]
        if len(found) != 1:
            words = "no token" if not found else f"{len(found)} tokens"
            raise HandclaspError(Kind.BAD_SETTING, f"{words} in {self.path} for the {uri.describe()}", hint="pkcs11-tool -L lists them")
        return found[0]

    def _load(self) -> Any:
        try:
            return self.pkcs11.lib(self.path)
        except self.pkcs11.PKCS11Error as error:
            raise HandclaspError(Kind.BAD_SETTING, f"the PKCS#11 library {self.path} cannot be loaded: {error}") from error


_libraries: dict[str, _Library] = {}
_lock = threading.Lock()


def open_token(uri: Pkcs11Uri, *, module: str, environ: Mapping[str, str]) -> Token:
    """Return the token that ``uri`` is on; ``module`` is the library's path where the URI does not give one.

    One library, thread and session are shared by the whole process, because a PKCS#11 login counts for the whole process too.
    """
    path = uri.module_path or module or environ.get("HANDCLASP_PKCS11_MODULE", "")
    if not Path(path).is_absolute():  # a bare name would be searched for in places that others may write to
        raise HandclaspError(
            Kind.BAD_SETTING, "no PKCS#11 library is set", hint="set HANDCLASP_PKCS11_MODULE or ?module-path= to its absolute path"
        )
    with _lock:
        library = _libraries.get(path)
        if library is None:
            library = _libraries[path] = _Library(path)
        pin = find_pin(uri, environ)
        key = (*uri.place, hashlib.sha256(pin.encode()).digest())
        token = library.tokens.get(key)
        if token is None:
            token = library.tokens[key] = Token(library, uri, pin)
        return token


class _Handle:
    """A private key object on a token, found again whenever the session is a new one."""

    def __init__(self, token: Token, uri: Pkcs11Uri, pkcs11: Any) -> None:
        self._token, self._uri, self._pkcs11 = token, uri, pkcs11
        self._object: Any = None
        self._generation = -1

    def sign(self, data: bytes, mechanism: str) -> bytes:
        return self._token.call(lambda session: self._sign(session, data, mechanism))

    def _sign(self, session: Any, data: bytes, mechanism: str) -> bytes:
        if self._object is None or self._generation != self._token.generation:
            self._object = _one(self._pkcs11, session, self._uri, self._pkcs11.ObjectClass.PRIVATE_KEY)
            self._generation = self._token.generation
        return bytes(self._object.sign(data, mechanism=getattr(self._pkcs11.Mechanism, mechanism)))


class TokenEcKey(ec.EllipticCurvePrivateKey):
    """An ECDSA key on a token. Signing waits for the token's thread; the private half cannot be had."""

    def __init__(self, handle: _Handle, public: ec.EllipticCurvePublicKey) -> None:
        self._handle = handle
        self._public = public

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Return a DER ECDSA signature over ``data``; hashed here, signed on the token."""
        algorithm = signature_algorithm.algorithm
        if isinstance(algorithm, utils.Prehashed):
            digest = bytes(data)
        else:
            hasher = hashes.Hash(algorithm)
            hasher.update(data)
            digest = hasher.finalize()
        size = (self.key_size + 7) // 8
        pair = self._handle.sign(digest[:size], "ECDSA")  # the leftmost bits count (FIPS 186-5 6.4.1); some tokens refuse longer input
        half = len(pair) // 2
        return utils.encode_dss_signature(int.from_bytes(pair[:half]), int.from_bytes(pair[half:]))

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the public half."""
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        """The curve."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """Bits of a scalar."""
        return self._public.key_size

    def exchange(self, *_: object, **__: object) -> NoReturn:
        """Refuse: authority keys sign and do nothing else."""
        raise UnsupportedAlgorithm("a key on a token only signs")

    private_numbers = private_bytes = exchange

    def __copy__(self) -> TokenEcKey:
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> TokenEcKey:
        return self


class TokenRsaKey(rsa.RSAPrivateKey):
    """An RSA key on a token (PKCS#1 v1.5 signatures). Signing waits for the token's thread; the private half cannot be had."""

    def __init__(self, handle: _Handle, public: rsa.RSAPublicKey) -> None:
        self._handle = handle
        self._public = public

    def sign(self, data: Any, padding: padding.AsymmetricPadding, algorithm: Any) -> bytes:
        """Return a PKCS#1 v1.5 signature over ``data``; the token hashes."""
        mechanism = {"sha256": "SHA256_RSA_PKCS", "sha384": "SHA384_RSA_PKCS", "sha512": "SHA512_RSA_PKCS"}.get(
            getattr(algorithm, "name", "")
        )
        if mechanism is None or padding.name != "EMSA-PKCS1-v1_5":
            raise UnsupportedAlgorithm("RSA keys on tokens sign with PKCS#1 v1.5 and SHA-2 only")
        return self._handle.sign(bytes(data), mechanism)

    def public_key(self) -> rsa.RSAPublicKey:
        """Return the public half."""
        return self._public

    @property
    def key_size(self) -> int:
        """Bits of the modulus."""
        return self._public.key_size

    def decrypt(self, *_: object, **__: object) -> NoReturn:
        """Refuse: authority keys sign and do nothing else."""
        raise UnsupportedAlgorithm("a key on a token only signs")

    private_numbers = private_bytes = decrypt

    def __copy__(self) -> TokenRsaKey:
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> TokenRsaKey:
        return self


def _is_token(token: Any, slot: Any, uri: Pkcs11Uri) -> bool:
    serial = token.serial.decode(errors="replace") if isinstance(token.serial, bytes) else token.serial
    pairs = ((uri.token, token.label), (uri.serial, serial), (uri.manufacturer, token.manufacturer_id), (uri.model, token.model))
    return (uri.slot_id is None or uri.slot_id == slot.slot_id) and all(not wanted or wanted == found for wanted, found in pairs)


def _template(pkcs11: Any, uri: Pkcs11Uri, object_class: Any) -> dict[Any, Any]:
    wanted: dict[Any, Any] = {pkcs11.Attribute.CLASS: object_class}
    if uri.object:
        wanted[pkcs11.Attribute.LABEL] = uri.object
    if uri.id:
        wanted[pkcs11.Attribute.ID] = uri.id
    return wanted


def _one(pkcs11: Any, session: Any, uri: Pkcs11Uri, object_class: Any) -> Any:
    found = list(session.get_objects(_template(pkcs11, uri, object_class)))
    half = "private" if object_class == pkcs11.ObjectClass.PRIVATE_KEY else "public"
    if not found:
        raise HandclaspError(Kind.NOT_FOUND, f"the {uri.describe()} has no {half} half there", hint="`pkcs11-tool -O` lists the objects")
    if len(found) > 1:
        raise HandclaspError(Kind.CONFLICT, f"{len(found)} objects are the {half} half of the {uri.describe()}", hint="add id= to the URI")
    return found[0]


def _public_key(pkcs11: Any, session: Any, uri: Pkcs11Uri) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    _one(pkcs11, session, uri, pkcs11.ObjectClass.PRIVATE_KEY)
    public = _one(pkcs11, session, uri, pkcs11.ObjectClass.PUBLIC_KEY)
    attribute = pkcs11.Attribute
    try:
        if public.key_type == pkcs11.KeyType.RSA:
            exponent, modulus = (int.from_bytes(public[name]) for name in (attribute.PUBLIC_EXPONENT, attribute.MODULUS))
            return rsa.RSAPublicNumbers(exponent, modulus).public_key()
        if public.key_type == pkcs11.KeyType.EC:
            point = bytes(public[attribute.EC_POINT])
            for name, curve in _CURVES.values():
                if bytes(public[attribute.EC_PARAMS]) == pkcs11.util.ec.encode_named_curve_parameters(name):
                    raw = point[-(2 * ((curve.key_size + 7) // 8) + 1) :]  # an OCTET STRING around it, or (older tokens) bare
                    return ec.EllipticCurvePublicKey.from_encoded_point(curve, raw)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise HandclaspError(Kind.BAD_KEY, f"the public half of the {uri.describe()} is broken: {error}") from error
    raise HandclaspError(Kind.BAD_KEY, f"the {uri.describe()} is not P-256, P-384 or RSA")
