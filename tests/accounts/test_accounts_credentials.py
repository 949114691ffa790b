"""The cache of tokens: a cached token still expires, and other settings still refuse it."""

import time

import pytest
from jose import jwt

from app.accounts import credentials
from app.accounts.credentials import CLOCK_LEEWAY_SECONDS, read_token, sign_token
from app.errors import Unauthenticated
from app.settings import Settings

SECRET = "s" * 40
SETTINGS = Settings(_env_file=None, jwt_secret=SECRET)


def token_until(expires_at: int) -> str:
    return str(jwt.encode({"sub": "7", "iat": expires_at - 60, "exp": expires_at}, SECRET, algorithm="HS256"))


def test_a_cached_token_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(time.time())
    token = token_until(now + 30)
    assert read_token(SETTINGS, token).user_id == 7
    monkeypatch.setattr(credentials.time, "time", lambda: now + 30 + CLOCK_LEEWAY_SECONDS)
    assert read_token(SETTINGS, token).user_id == 7
    monkeypatch.setattr(credentials.time, "time", lambda: now + 31 + CLOCK_LEEWAY_SECONDS)
    with pytest.raises(Unauthenticated):
        read_token(SETTINGS, token)


def test_a_cached_token_is_refused_by_other_secrets_issuers_and_audiences() -> None:
    token = sign_token(SETTINGS, 7)
    assert read_token(SETTINGS, token).user_id == 7
    for change in ({"jwt_secret": "t" * 40}, {"jwt_issuer": "somebody"}, {"jwt_audience": "others"}):
        with pytest.raises(Unauthenticated):
            read_token(Settings(_env_file=None, **({"jwt_secret": SECRET} | change)), token)


def test_refusals_are_not_cached_and_evict_no_good_token() -> None:
    before = credentials._decode_cached.cache_info().currsize
    for number in range(50):
        with pytest.raises(Unauthenticated):
            read_token(SETTINGS, f"nonsense.{number}.x")
    assert credentials._decode_cached.cache_info().currsize == before
