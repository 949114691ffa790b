"""JWK sets: which keys are used, when they are loaded again, and that strangers cannot make us load them often."""

import asyncio
import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jose import jwt

from app.accounts.log_in import jwks
from app.accounts.log_in.jwks import MAX_AGE_SECONDS, MIN_LOAD_SECONDS, REFRESH_SECONDS, KeySet, read_key_set
from app.egress import EgressFailed
from app.errors import SettingsError, Unavailable
from app.runtime import Runtime
from app.settings import Settings, load_settings
from tests.support.makers import Maker
from tests.support.responses import BALANCE, data, door, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.worlds("embedded")]
URL = "https://login.example.com/jwks.json"
STRANGER = (401, "UNAUTHENTICATED", "未登录或Token过期")


def number(value: int, size: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes(size, "big")).rstrip(b"=").decode()


class Key:
    """A private key of a log-in service, and its public half as a JWK."""

    def __init__(self, algorithm: str, key_id: str | None, bits: int = 2048) -> None:
        private: Any
        if algorithm == "RS256":
            private = rsa.generate_private_key(65537, bits)
            numbers = private.public_key().public_numbers()
            parts = {"kty": "RSA", "n": number(numbers.n, bits // 8), "e": number(numbers.e, 3)}
        else:
            private = ec.generate_private_key(ec.SECP256R1())
            point = private.public_key().public_numbers()
            parts = {"kty": "EC", "crv": "P-256", "x": number(point.x, 32), "y": number(point.y, 32)}
        self.algorithm, self.key_id = algorithm, key_id
        self.jwk = parts | ({} if key_id is None else {"kid": key_id})
        self.pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    def sign(self, user_id: int, headers: dict[str, Any] | None = None) -> dict[str, str]:
        """The header of a request with a token. Its `kid` is ours unless `headers` say otherwise."""
        now = int(time.time())
        own = {} if self.key_id is None else {"kid": self.key_id}
        claims = {"sub": str(user_id), "iat": now, "exp": now + 600}
        token = jwt.encode(claims, self.pem, algorithm=self.algorithm, headers=own if headers is None else headers)
        return {"Authorization": f"Bearer {token}"}


RSA, OTHER_RSA, EC = Key("RS256", "one"), Key("RS256", "two"), Key("ES256", "three")


def key_set_of(*keys: Key | dict[str, Any]) -> bytes:
    return json.dumps({"keys": [one.jwk if isinstance(one, Key) else one for one in keys]}).encode()


class Service:
    """Stands in for the egress client: answers with `text`, or fails. It counts the requests."""

    def __init__(self, text: bytes | Exception) -> None:
        self.text = text
        self.urls: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def read_start(self, url: str, *, max_bytes: int, timeout_seconds: float, https_only: bool) -> bytes:
        assert https_only
        self.urls.append(url)
        await self.may_answer.wait()
        if isinstance(self.text, Exception):
            raise self.text
        return self.text[:max_bytes]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(jwks, "time", SimpleNamespace(monotonic=lambda: clock.seconds))
    return clock


Find = Callable[[str | None], Any]


def finder(service: Service) -> tuple[KeySet, Find]:
    keys = KeySet(URL, "RS256")
    return keys, lambda key_id: keys.find_key(service, key_id)  # type: ignore[arg-type]


# ------------------------------------------------------------------ which keys


def test_only_keys_that_verify_signatures_of_the_algorithm_are_used() -> None:
    text = key_set_of(
        RSA,
        OTHER_RSA,
        EC,
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
        RSA.jwk | {"kid": "encryption", "use": "enc"},
        RSA.jwk | {"kid": "other algorithm", "alg": "RS512"},
        RSA.jwk | {"kid": "signs", "key_ops": ["sign"]},
        RSA.jwk | {"kid": "odd operations", "key_ops": 5},
        RSA.jwk | {"kid": 7},
        RSA.jwk | {"kid": "broken", "n": "!"},
        {"kty": "RSA", "kid": "no numbers"},
        Key("RS256", "short", 1024),
        EC.jwk | {"kid": "other curve", "crv": "P-384"},
        {},
    )
    assert read_key_set(text, "RS256").keys() == {"one", "two"}
    assert read_key_set(text, "ES256").keys() == {"three", None}
    assert all("PUBLIC KEY" in pem for pem in read_key_set(text, "RS256").values())


def test_private_parts_and_other_keys_of_an_entry_are_ignored() -> None:
    plain = read_key_set(key_set_of(RSA), "RS256")
    assert (
        read_key_set(key_set_of(RSA.jwk | {"alg": "RS256", "use": "sig", "x5u": "https://evil", "d": "x"}), "RS256")
        == plain
    )


def test_of_two_keys_with_one_id_the_first_counts() -> None:
    text = key_set_of(RSA, OTHER_RSA.jwk | {"kid": "one"})
    assert read_key_set(text, "RS256")["one"] == read_key_set(key_set_of(RSA), "RS256")["one"]


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"{}", b'{"keys": 5}', b'{"keys": []}', b'{"keys": [5]}', b"\xff", b"[" * 100_000, b'{"keys": null}'],
)
def test_what_is_no_set_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="no "):
        read_key_set(text, "RS256")
    with pytest.raises(ValueError, match="no key for ES256"):
        read_key_set(key_set_of(RSA), "ES256")


# ------------------------------------------------------------------ when they are loaded


async def test_a_set_is_loaded_once_and_again_after_five_minutes_in_the_background(clock: SimpleNamespace) -> None:
    service = Service(key_set_of(RSA))
    keys, find = finder(service)
    found = await asyncio.gather(*(find("one") for _ in range(10)))
    assert len(set(found)) == 1
    assert found[0] is not None
    clock.seconds += REFRESH_SECONDS - 1
    await find("one")
    assert service.urls == [URL]
    clock.seconds += 1
    service.text = key_set_of(OTHER_RSA)
    service.may_answer.clear()
    assert await find("one") == found[0], "the request waited for the load"
    service.may_answer.set()
    assert keys._load is not None
    await keys._load
    assert len(service.urls) == 2
    clock.seconds += MIN_LOAD_SECONDS
    assert await find("one") is None
    assert await find("two") is not None


async def test_a_set_that_nobody_used_for_long_is_loaded_before_it_is_used(clock: SimpleNamespace) -> None:
    service = Service(key_set_of(RSA))
    _, find = finder(service)
    assert await find("one") is not None
    clock.seconds += MAX_AGE_SECONDS
    service.text = key_set_of(OTHER_RSA)
    assert await find("one") is None, "a key that was withdrawn long ago"


async def test_a_new_key_is_found_at_once_and_strangers_cannot_make_us_ask_often(clock: SimpleNamespace) -> None:
    service = Service(key_set_of(RSA))
    _, find = finder(service)
    assert await find("one") is not None
    clock.seconds += MIN_LOAD_SECONDS
    service.text = key_set_of(RSA, OTHER_RSA)
    assert await find("two") is not None
    assert len(service.urls) == 2
    for stranger in range(200):
        assert await find(f"invented-{stranger}") is None
    assert len(service.urls) == 2
    clock.seconds += MIN_LOAD_SECONDS
    assert await asyncio.gather(*(find(f"invented-{n}") for n in range(50))) == [None] * 50
    assert len(service.urls) == 3


async def test_the_last_good_set_stays_while_the_service_is_away(clock: SimpleNamespace) -> None:
    service = Service(key_set_of(RSA))
    _, find = finder(service)
    good = await find("one")
    for broken in (EgressFailed("HTTP 503", 503), b"<html>", key_set_of(EC), b"", OSError("no route")):
        service.text = broken
        clock.seconds += MAX_AGE_SECONDS
        assert await find("one") == good
    assert len(service.urls) == 6


async def test_without_any_set_the_answer_is_503(clock: SimpleNamespace) -> None:
    """A 401 would log everybody out, although their tokens are good."""
    service = Service(EgressFailed("cannot connect"))
    _, find = finder(service)
    for _ in range(3):
        with pytest.raises(Unavailable):
            await find("one")
    assert len(service.urls) == 1
    service.text = key_set_of(RSA)
    clock.seconds += MIN_LOAD_SECONDS
    assert await find("one") is not None


async def test_a_caller_who_leaves_does_not_end_the_load(clock: SimpleNamespace) -> None:
    service = Service(key_set_of(RSA))
    service.may_answer.clear()
    _, find = finder(service)
    leaving = asyncio.create_task(find("one"))
    while not service.urls:
        await asyncio.sleep(0)
    leaving.cancel()
    waiting = asyncio.create_task(find("one"))
    await asyncio.sleep(0)
    service.may_answer.set()
    assert await waiting is not None
    assert service.urls == [URL]


# ------------------------------------------------------------------ at the door


@pytest.mark.parametrize("key", [RSA, EC], ids=["RS256", "ES256"])
@pytest.mark.parametrize("form", ["path", "url"])
async def test_tokens_of_another_service_by_the_set_in_a_file(
    make: Maker, runtime: Runtime, tmp_path: Path, key: Key, form: str
) -> None:
    user, stranger = await make.user(), Key(key.algorithm, key.key_id)
    file = tmp_path / f"{form}-{key.algorithm}.json"
    file.write_bytes(key_set_of(RSA, EC))
    location = str(file) if form == "path" else file.as_uri()
    async with door(runtime, jwt_algorithm=key.algorithm, jwt_jwks=location) as api:
        assert data(await api.get(BALANCE, headers=key.sign(user.id)))["userId"] == user.id
        assert data(await api.get(BALANCE, headers=key.sign(user.id, {})))["userId"] == user.id  # the only one
        assert data(await api.get(BALANCE, headers=user.key_headers))["userId"] == user.id
        forged = {
            "another key": stranger.sign(user.id),
            "an invented id": key.sign(user.id, {"kid": "invented"}),
            "a long id": key.sign(user.id, {"kid": "x" * 5000}),
            "its own key": stranger.sign(user.id, {"jwk": stranger.jwk, "kid": "x"}),
            "its own URL": stranger.sign(user.id, {"jku": "https://evil.example/jwks.json", "kid": "x"}),
            "HS256": user.headers,
            "another algorithm": (EC if key is RSA else RSA).sign(user.id),
            "nonsense": {"Authorization": "Bearer x.y.z"},
        }
        for name, headers in forged.items():
            assert refusal(await api.get(BALANCE, headers=headers)) == STRANGER, name


async def test_a_token_without_an_id_needs_a_set_with_one_key(make: Maker, runtime: Runtime, tmp_path: Path) -> None:
    user = await make.user()
    (tmp_path / "two.json").write_bytes(key_set_of(RSA, OTHER_RSA))
    async with door(runtime, jwt_algorithm="RS256", jwt_jwks=str(tmp_path / "two.json")) as api:
        assert refusal(await api.get(BALANCE, headers=RSA.sign(user.id, {}))) == STRANGER
        assert data(await api.get(BALANCE, headers=RSA.sign(user.id)))["userId"] == user.id


async def test_without_the_file_the_answer_is_503(make: Maker, runtime: Runtime, tmp_path: Path) -> None:
    user = await make.user()
    async with door(runtime, jwt_algorithm="RS256", jwt_jwks=str(tmp_path / "none.json")) as api:
        answer: httpx.Response = await api.get(BALANCE, headers=RSA.sign(user.id))
        assert refusal(answer)[:2] == (503, "UNAVAILABLE")
        assert int(answer.headers["retry-after"]) > 0


def test_the_setting_is_a_file_or_an_https_url_and_replaces_the_public_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Settings.model_config, "env_file", None)
    for location in (URL, "/etc/gateway/jwks.json", "file:///etc/gateway/jwks.json", "jwks.json"):
        assert load_settings(jwt_algorithm="RS256", jwt_jwks=location).jwt_jwks == location
    for location in ("http://login.example.com/jwks.json", "ftp://x/y", "s3://bucket/jwks.json"):
        with pytest.raises(SettingsError, match="JWT_JWKS: must be an https URL or a file"):
            load_settings(jwt_algorithm="ES256", jwt_jwks=location)
    with pytest.raises(SettingsError, match="JWT_PUBLIC_KEY"):
        load_settings(jwt_algorithm="RS256")
