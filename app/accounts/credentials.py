"""Creates and digests API keys, and signs and reads JWTs. Only this file uses python-jose.

It does not use the database. `authentication.py` checks whether a valid token still counts.
"""

import hashlib
import secrets
import string
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jose import jwk, jwt

from app.errors import Unauthenticated
from app.settings import Settings

KEY_PREFIX = "sk-"
KEY_ALPHABET = string.ascii_letters + string.digits
KEY_LENGTH = 43  # 256 random bits
PREFIX_LENGTH = 10
MAX_CREDENTIAL_LENGTH = 16_384  # log-in services put roles and profiles into tokens
MAX_USER_ID = 2**63 - 1
MAX_KEY_ID_LENGTH = 256
CLOCK_LEEWAY_SECONDS = 5
TOKEN_CACHE_SIZE = 10_000
MAX_CACHED_TOKEN_LENGTH = 2048  # the cache keeps the text: 20 MB at most. A longer token is verified each time.

_JWT_OPTIONS = {
    "require_exp": True,
    "require_iat": True,
    "verify_signature": True,
    "verify_exp": True,
    "verify_iat": True,
    "verify_nbf": True,
    # Claims that mean nothing to us may have any form. python-jose would refuse a `jti` that is a number, and every
    # token with an `at_hash`, because it wants the access token that belongs to it. `_parse_claims` checks `sub`.
    "verify_jti": False,
    "verify_at_hash": False,
    "verify_sub": False,
    "leeway": CLOCK_LEEWAY_SECONDS,
}


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a valid token. Times are Unix seconds.

    `version` is that of the user's tokens when the gateway signed this one. Tokens of other services have none.
    """

    user_id: int
    issued_at: int
    expires_at: int
    version: int | None = None


def new_api_key() -> str:
    """A new key: `sk-` and 256 random bits as letters and digits."""
    return KEY_PREFIX + "".join(secrets.choice(KEY_ALPHABET) for _ in range(KEY_LENGTH))


def digest_key(api_key: str) -> str:
    """SHA-256 in hex. A random key needs no slow hash."""
    return hashlib.sha256(api_key.encode()).hexdigest()


def sign_token(settings: Settings, user_id: int, *, hours: float = 24, version: int | None = None) -> str:
    """Signs a JWT with HS256 and the first secret of `JWT_SECRET`. `version` is the user's `token_version`.

    Raises Unauthenticated for other algorithms, because another service then signs the tokens.
    """
    if settings.jwt_algorithm != "HS256":
        raise Unauthenticated(f"JWT_ALGORITHM is {settings.jwt_algorithm}: tokens are signed by another service")
    now = int(time.time())
    claims: dict[str, object] = {"sub": str(user_id), "iat": now, "exp": now + int(hours * 3600)}
    if version is not None:
        claims["ver"] = version
    if settings.jwt_issuer:
        claims["iss"] = settings.jwt_issuer
    if settings.jwt_audience:
        claims["aud"] = settings.jwt_audience
    return str(jwt.encode(claims, settings.jwt_secrets[0], algorithm="HS256"))


def read_token(settings: Settings, token: str, public_key: str | None = None) -> Claims:
    """The claims of a token that any current secret verifies, or the public key.

    The key is that of the settings, unless `public_key` is given. Raises Unauthenticated, always with the same text.
    """
    if settings.jwt_algorithm == "HS256":
        keys = settings.jwt_secrets
    else:
        keys = ((public_key or settings.jwt_public_key).replace("\\n", "\n"),)
    decode = _decode_cached if len(token) <= MAX_CACHED_TOKEN_LENGTH else _decode_cached.__wrapped__
    claims = decode(token, keys, settings.jwt_algorithm, settings.jwt_audience, settings.jwt_issuer)
    check_expiry(claims)
    return claims


def check_expiry(claims: Claims) -> None:
    """Raises Unauthenticated if the token has expired."""
    if claims.expires_at < int(time.time()) - CLOCK_LEEWAY_SECONDS:
        raise Unauthenticated


@lru_cache(maxsize=TOKEN_CACHE_SIZE)
def _decode_cached(token: str, keys: tuple[str, ...], algorithm: str, audience: str, issuer: str) -> Claims:
    """Verifies the signature and reads the claims, which never change.

    The cache holds valid tokens only, because a refusal raises. The callers check the expiry and the user each time.
    """
    options = _JWT_OPTIONS | {"verify_aud": bool(audience), "require_aud": bool(audience), "require_iss": bool(issuer)}
    for key in keys:
        try:
            # A single algorithm excludes `none` and the HS256/RS256 confusion.
            claims = jwt.decode(
                token, key, algorithms=[algorithm], options=options, audience=audience or None, issuer=issuer or None
            )
        except Exception:  # noqa: S112  a forged token can make python-jose raise any exception
            continue
        return _parse_claims(claims, is_own=algorithm == "HS256")
    raise Unauthenticated


def read_key_id(token: str) -> str | None:
    """The `kid` in the header of a token, which nobody has verified. None if there is none.

    Raises Unauthenticated for what is no token, or has a `kid` that is no id.
    """
    try:
        key_id = jwt.get_unverified_header(token).get("kid")
    except Exception:  # a forged token can make python-jose raise any exception
        raise Unauthenticated from None
    if key_id is not None and not (isinstance(key_id, str) and len(key_id) <= MAX_KEY_ID_LENGTH):
        raise Unauthenticated
    return key_id


def jwk_to_pem(key: dict[str, Any], algorithm: str) -> str:
    """The public key of a JWK as PEM. Raises an exception of any kind for a key that is not one of the algorithm."""
    return str(jwk.construct(key, algorithm).public_key().to_pem().decode())


def _parse_claims(claims: dict[str, Any], *, is_own: bool) -> Claims:
    subject, issued_at = claims.get("sub"), claims.get("iat")
    if isinstance(subject, int) and not isinstance(subject, bool):
        subject = str(subject)
    if not isinstance(subject, str) or not subject.isascii() or not subject.isdigit():
        raise Unauthenticated
    if not isinstance(issued_at, int | float) or len(subject) > len(str(MAX_USER_ID)):
        raise Unauthenticated
    if not 0 < int(subject) <= MAX_USER_ID or issued_at > time.time() + CLOCK_LEEWAY_SECONDS:
        raise Unauthenticated
    version = claims.get("ver")
    has_version = is_own and isinstance(version, int) and not isinstance(version, bool)
    return Claims(
        user_id=int(subject),
        issued_at=int(issued_at),
        expires_at=int(claims["exp"]),
        version=version if has_version else None,
    )
