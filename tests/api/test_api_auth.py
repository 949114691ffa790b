"""Authentication: three ways on every path, one answer to all other callers, and no secret in answers or logs."""

import asyncio
import base64
import hashlib
import hmac
import io
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jose import jwe, jwt
from sqlalchemy import text

from app.accounts.api_keys import create_key, revoke_key
from app.accounts.credentials import MAX_CREDENTIAL_LENGTH, new_api_key, sign_token
from app.accounts.users import create_user, user_exists
from app.admin.actions import COMMAND_LINE
from app.admin.users import set_status
from app.main import create_app
from app.runtime import Runtime, open_runtime
from app.tables import metadata
from tests.support.makers import IMAGE_MODEL, Maker, User
from tests.support.responses import BALANCE, LIST, MODELS, SUBMIT, data, door, envelope, refusal
from tests.support.worlds import execute

pytestmark = pytest.mark.anyio
embedded = pytest.mark.worlds("embedded")
STRANGER = (401, "UNAUTHENTICATED", "未登录或Token过期")
SECRET = "a-secret-of-this-test-0123456789-abcdef"
PAIR = dict[str, str]


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def claims(user_id: Any, **changes: Any) -> dict[str, Any]:
    """The claims of a valid token with some changed. None removes a claim."""
    now = int(time.time())
    wanted = {"sub": str(user_id), "iat": now, "exp": now + 600} | changes
    return {name: value for name, value in wanted.items() if value is not None}


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forge(header: Any, payload: Any, key: bytes) -> str:
    """A token signed by HMAC with any header, which python-jose refuses to make. Bytes stay as they are."""
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    signed = ".".join(b64(part) for part in parts)
    return f"{signed}.{b64(hmac.new(key, signed.encode(), hashlib.sha256).digest())}"


def key_pair(algorithm: str) -> tuple[str, str]:
    """(private PEM, public PEM) for RS256 or ES256."""
    private: Any = (
        rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1())
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem.decode(), public.decode()


def user_paths(runtime: Runtime) -> list[tuple[str, str]]:
    paths = create_app(runtime.settings, runtime).openapi()["paths"]
    return [
        (method.upper(), path.replace("{task_no}", "TASK-20251026153045123-4567"))
        for path, methods in paths.items()
        for method in methods
        if path.startswith("/user/") and not path.startswith("/user/auth/")
    ]


# ------------------------------------------------------------------ credentials


async def test_every_user_path_accepts_all_three_credentials_and_no_others(
    make: Maker, api: httpx.AsyncClient, runtime: Runtime
) -> None:
    user = await make.user()
    paths = user_paths(runtime)
    assert {("POST", SUBMIT), ("GET", LIST), ("GET", BALANCE), ("GET", MODELS)} < set(paths)
    ways: list[PAIR] = [
        bearer(user.token),
        bearer(user.api_key),
        {"X-API-Key": user.api_key},
        {"authorization": f"bearer   {user.token} "},
        bearer(user.api_key) | {"X-API-Key": user.api_key},
    ]
    nobody: list[PAIR] = [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": user.token},
        {"Authorization": f"Basic {user.token}"},
        {"Authorization": f"Token {user.api_key}"},
        {"X-API-Key": ""},
        {"X-API-Key": user.api_key[:-1]},
        {"X-API-Key": user.api_key + "a"},
        {"X-API-Key": user.api_key.swapcase()},
        {"Cookie": f"token={user.token}"},
        bearer(user.api_key) | {"X-API-Key": new_api_key()},
        bearer(new_api_key()) | {"X-API-Key": user.api_key},
    ]
    for method, path in paths:
        for headers in ways:
            answer = await api.request(method, path, headers=headers)
            assert answer.status_code != 401, (path, headers)
            envelope(answer)
        for headers in nobody:
            answer = await api.request(method, path, headers=headers)
            assert refusal(answer) == STRANGER, (path, headers)
    in_the_url = await api.get(
        BALANCE, params={"token": user.token, "access_token": user.token, "api_key": user.api_key}
    )
    assert refusal(in_the_url) == STRANGER


async def test_every_bad_token_has_the_same_answer(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    now = int(time.time())
    _, public = key_pair("RS256")
    key = SECRET.encode()
    good = claims(user.id)
    header = {"alg": "HS256", "typ": "JWT"}

    def signed(**changes: Any) -> str:
        return forge(header, claims(user.id, **changes), key)

    head, _, signature = signed().split(".")
    bad = {
        "none": ".".join([b64(b'{"alg":"none"}'), b64(json.dumps(good).encode()), ""]),
        "None": forge({"alg": "None"}, good, key),
        "none signed": forge({"alg": "none"}, good, key),
        "no alg": forge({"typ": "JWT"}, good, key),
        "alg list": forge({"alg": ["HS256"]}, good, key),
        "HS512": jwt.encode(good, SECRET, algorithm="HS512"),
        "RS256 by HMAC": forge({"alg": "RS256"}, good, key),
        "another secret": jwt.encode(good, SECRET[::-1], algorithm="HS256"),
        "empty secret": forge(header, good, b""),
        "public key as secret": forge(header, good, public.encode()),
        "own key in the header": forge(header | {"jwk": {"kty": "oct", "k": b64(b"x")}}, good, b"x"),
        "expired": signed(exp=now - 10),
        "expired long ago": signed(exp=1),
        "exp of words": signed(exp="tomorrow"),
        "no exp": signed(exp=None),
        "no iat": signed(iat=None),
        "iat in the future": signed(iat=now + 60),
        "iat of words": signed(iat="now"),
        "nbf in the future": signed(nbf=now + 60),
        "no sub": signed(sub=None),
        "sub a boolean": signed(sub=True),
        "sub a number with a fraction": signed(sub=user.id + 0.5),
        "sub a number beyond 2^63": signed(sub=2**63),
        "sub the number 0": signed(sub=0),
        "sub a negative number": signed(sub=-user.id),
        "sub empty": signed(sub=""),
        "sub of words": signed(sub="admin"),
        "sub negative": signed(sub=f"-{user.id}"),
        "sub zero": signed(sub="0"),
        "sub a fraction": signed(sub=f"{user.id}.0"),
        "sub with blanks": signed(sub=f" {user.id}"),
        "sub in other digits": signed(sub="١"),
        "sub SQL": signed(sub=f"{user.id} OR 1=1"),
        "sub beyond 2^63": signed(sub=str(2**63)),
        "sub of 3000 digits": signed(sub="9" * 3000),
        "sub a list": signed(sub=[str(user.id)]),
        "sub unknown": signed(sub="424242"),
        "exp infinite": forge(header, b'{"sub":"%d","iat":1,"exp":Infinity}' % user.id, key),
        "iat NaN": forge(header, b'{"sub":"%d","iat":NaN,"exp":99999999999}' % user.id, key),
        "iat infinite": forge(header, b'{"sub":"%d","iat":-Infinity,"exp":99999999999}' % user.id, key),
        "claims a list": forge(header, [good], key),
        "claims not JSON": forge(header, b"{", key),
        "claims not UTF-8": forge(header, b"\xff\xfe", key),
        "claims nested deep": forge(header, b"[" * 2500, key),
        "header nested deep": forge(b"[" * 2500, b"{}", key),
        "header a list": forge([header], good, key),
        "17 KB": signed(padding="x" * 12_400),
        "1 MB": "a" * 1_000_000,
        "JWE": jwe.encrypt(json.dumps(good), SECRET[:32], algorithm="dir", encryption="A256GCM").decode(),
        "two parts": ".".join(signed().split(".")[:2]),
        "no signature": signed().rpartition(".")[0] + ".",
        "four parts": signed() + ".x",
        "changed payload": ".".join([head, b64(json.dumps(good | {"sub": "2"}).encode()), signature]),
        "dots": "..",
        "blank inside": signed().replace(".", " .", 1),
        "garbage": "\x80\xff'\"<>",
        "sk- alone": "sk-",
        "sk- long": "sk-" + "a" * 16_000,
        "sk- in latin-1": "sk-\xe9\xff",
        "null": "null",
        "undefined": "undefined",
    }  # fmt: skip
    async with door(runtime, jwt_secret=SECRET) as api:
        assert data(await api.get(BALANCE, headers=bearer(signed())))["userId"] == user.id
        bodies, heads = set(), set()
        for name, token in bad.items():
            answer = await api.get(BALANCE, headers=[(b"authorization", f"Bearer {token}".encode())])
            assert answer.status_code == 401, (name, answer.text)
            body = envelope(answer)
            bodies.add(json.dumps(body | {"requestId": ""}))
            heads.add(json.dumps({k: v for k, v in answer.headers.items() if k != "x-request-id"}))
    assert len(bodies) == 1
    assert len(heads) == 1
    assert refusal(answer) == STRANGER


@embedded
@pytest.mark.parametrize("algorithm", ["HS256", "RS256"])
async def test_claims_that_mean_nothing_to_us_may_have_any_form(make: Maker, runtime: Runtime, algorithm: str) -> None:
    """As log-in services issue them: ids as numbers, the hash of an access token, and whole profiles."""
    user = await make.user()
    private, public = (SECRET, "") if algorithm == "HS256" else key_pair(algorithm)
    good: dict[str, dict[str, Any]] = {
        "at_hash": {"at_hash": "MTIzNDU2Nzg5MDEyMzQ1Ng"},
        "at_hash of another form": {"at_hash": 5},
        "c_hash, nonce, azp": {"c_hash": "x", "nonce": 7, "azp": ["a"], "amr": ["pwd"], "auth_time": 0},
        "jti a number": {"jti": 17},
        "jti null": {"jti": None, "sid": None},
        "jti an object": {"jti": {"id": 1}},
        "sub a number": {"sub": user.id},
        "6 KB of roles": {"roles": ["x" * 50] * 90},
        "16 KB": {"profile": "x" * 11_900},
    }
    async with door(runtime, jwt_secret=SECRET, jwt_algorithm=algorithm, jwt_public_key=public) as api:
        for name, extra in good.items():
            token = jwt.encode(claims(user.id) | extra, private, algorithm=algorithm)
            assert len(token) <= MAX_CREDENTIAL_LENGTH, len(token)
            for _ in range(2):
                answer = await api.get(BALANCE, headers=bearer(token))
                assert data(answer)["userId"] == user.id, name
            tampered = token[:-2] + ("AA" if token[-2:] != "AA" else "BB")
            assert refusal(await api.get(BALANCE, headers=bearer(tampered))) == STRANGER, name


@embedded
@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
async def test_tokens_of_another_service_by_its_public_key(make: Maker, runtime: Runtime, algorithm: str) -> None:
    user = await make.user()
    private, public = key_pair(algorithm)
    another, _ = key_pair(algorithm)
    good = claims(user.id)
    for setting in (public, public.replace("\n", "\\n")):  # an .env file has one line for it
        async with door(runtime, jwt_algorithm=algorithm, jwt_public_key=setting, jwt_secret=SECRET) as api:
            token = jwt.encode(good, private, algorithm=algorithm)
            assert data(await api.get(BALANCE, headers=bearer(token)))["userId"] == user.id
            forged = {
                "another key": jwt.encode(good, another, algorithm=algorithm),
                "HS256 by the secret": jwt.encode(good, SECRET, algorithm="HS256"),
                "HS256 by the public key": forge({"alg": "HS256"}, good, public.encode()),
                "HS256 by its stripped text": forge({"alg": "HS256"}, good, public.strip().encode()),
                "called so, signed by HMAC": forge({"alg": algorithm}, good, public.encode()),
                "none": forge({"alg": "none"}, good, b""),
            }
            for name, token in forged.items():
                assert refusal(await api.get(BALANCE, headers=bearer(token))) == STRANGER, name
            assert data(await api.get(BALANCE, headers=bearer(user.api_key)))["userId"] == user.id


@embedded
async def test_secrets_rotate_from_a_list(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    old, new, foreign = SECRET, SECRET[::-1], "x" * 40
    async with door(runtime, jwt_secret=f"{new}, {old}") as api:
        for secret, status in ((new, 200), (old, 200), (foreign, 401), (f"{new}, {old}", 401)):
            token = jwt.encode(claims(user.id), secret, algorithm="HS256")
            assert (await api.get(BALANCE, headers=bearer(token))).status_code == status
    async with door(runtime, jwt_secret=new) as api:
        gone = jwt.encode(claims(user.id), old, algorithm="HS256")
        assert refusal(await api.get(BALANCE, headers=bearer(gone))) == STRANGER


@embedded
async def test_issuer_and_audience_where_they_are_set(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    ours = {"iss": "https://login.1818ai.com", "aud": "gateway"}
    wrong: list[dict[str, Any]] = [
        {},
        ours | {"iss": "https://evil.example"},
        ours | {"aud": "console"},
        ours | {"iss": None},
        ours | {"aud": None},
        ours | {"aud": ["console", "admin"]},
        ours | {"iss": [ours["iss"]]},
    ]
    async with door(runtime, jwt_issuer=ours["iss"], jwt_audience=ours["aud"], jwt_secret=SECRET) as api:
        for extra in (ours, ours | {"aud": ["console", "gateway"]}):
            token = forge({"alg": "HS256"}, claims(user.id, **extra), SECRET.encode())
            assert (await api.get(BALANCE, headers=bearer(token))).status_code == 200
        for extra in wrong:
            token = forge({"alg": "HS256"}, claims(user.id, **extra), SECRET.encode())
            assert refusal(await api.get(BALANCE, headers=bearer(token))) == STRANGER, extra


# ------------------------------------------------------------------ accounts and keys


async def test_an_unknown_subject_gets_an_account_only_with_auto_provision(make: Maker, runtime: Runtime) -> None:
    await make.user()
    user_id = 17563793187762127
    headers = bearer(sign_token(runtime.settings, user_id))
    assert refusal(await make.api.get(BALANCE, headers=headers)) == STRANGER
    async with door(runtime, jwt_auto_provision=True) as api:
        answers = await asyncio.gather(*(api.get(BALANCE, headers=headers) for _ in range(20)))
        expected = {"userId": user_id, "balance": 0, "expireTime": None, "held": 0}
        assert [data(answer) for answer in answers] == [expected] * 20
        assert await user_exists(runtime.database, user_id)
        poor = await api.post(SUBMIT, json={"modelName": "sc_soraimg_text_1x1", "prompt": "猫"}, headers=headers)
        assert refusal(poor)[2] == "积分不足，当前余额 0，本次需要 30"
        unknown_key = await api.get(BALANCE, headers={"X-API-Key": new_api_key()})
        assert refusal(unknown_key) == STRANGER
    assert data(await make.api.get(BALANCE, headers=headers))["userId"] == user_id


async def test_a_ban_ends_tokens_for_ever_and_keys_until_it_is_lifted(make: Maker, runtime: Runtime) -> None:
    user, other = await make.user(), await make.user()
    await set_status(runtime.database, COMMAND_LINE, user.id, "banned")
    for headers in (user.headers, user.key_headers):
        assert refusal(await make.api.get(BALANCE, headers=headers)) == STRANGER
    async with door(runtime, jwt_auto_provision=True) as api:
        assert refusal(await api.get(BALANCE, headers=user.headers)) == STRANGER
    later = jwt.encode(claims(user.id, iat=int(time.time()) + 1), runtime.settings.jwt_secrets[0], algorithm="HS256")
    assert refusal(await make.api.get(BALANCE, headers=bearer(later))) == STRANGER
    await set_status(runtime.database, COMMAND_LINE, user.id, "active")
    assert refusal(await make.api.get(BALANCE, headers=user.headers)) == STRANGER
    assert (await make.api.get(BALANCE, headers=user.key_headers)).status_code == 200
    assert (await make.api.get(BALANCE, headers=bearer(later))).status_code == 200
    assert (await make.api.get(BALANCE, headers=other.headers)).status_code == 200


async def test_a_key_ends_at_once_in_every_process(make: Maker, runtime: Runtime) -> None:
    user = await make.user()
    another_key = await create_key(runtime.database, user.id)
    async with open_runtime(runtime.settings) as elsewhere, door(elsewhere) as api:
        assert (await api.get(BALANCE, headers=user.key_headers)).status_code == 200
        assert await revoke_key(runtime.database, user.api_key[:10], user.id) == 1
        assert refusal(await api.get(BALANCE, headers=user.key_headers)) == STRANGER
        assert refusal(await make.api.get(BALANCE, headers=user.key_headers)) == STRANGER
        assert (await api.get(BALANCE, headers=bearer(another_key))).status_code == 200
        for lifetime, status in ((timedelta(hours=-8), 401), (timedelta(seconds=-1), 401), (timedelta(hours=1), 200)):
            key = await create_key(runtime.database, user.id, expires_at=datetime.now(UTC) + lifetime)
            assert (await api.get(BALANCE, headers=bearer(key))).status_code == status


async def test_no_table_holds_a_key_or_a_token(make: Maker, runtime: Runtime) -> None:
    user = await make.user(points=30)
    await make.task_no(user)
    await make.api.get(BALANCE, headers=user.key_headers)
    everything = ""
    async with runtime.database.read() as connection:
        for table in metadata.tables:
            everything += str([tuple(row) for row in await connection.execute(text(f"SELECT * FROM {table}"))])
    assert hashlib.sha256(user.api_key.encode()).hexdigest() in everything
    assert user.api_key[:10] in everything
    assert user.api_key[:12] not in everything
    assert user.api_key[12:] not in everything
    assert user.token not in everything


@embedded
async def test_a_key_is_random_and_limited_to_its_scopes(make: Maker, runtime: Runtime, api: httpx.AsyncClient) -> None:
    user = await make.user()
    keys = {new_api_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(len(key) >= 3 + 160 / 5.95 for key in keys)
    for scopes, tasks, points in (((), 403, 403), (("tasks",), 200, 403), (("points",), 403, 200)):
        key = await create_key(runtime.database, user.id, scopes=scopes)
        for path, status in ((LIST, tasks), (MODELS, tasks), (BALANCE, points)):
            answer = await api.get(path, headers=bearer(key))
            assert answer.status_code == status, (scopes, path)
            if status == 403:
                assert refusal(answer)[1] == "FORBIDDEN"
        submitted = await api.post(SUBMIT, headers=bearer(key), json={"modelName": "x", "prompt": "x"})
        assert submitted.status_code == (403 if tasks == 403 else 400)


async def test_another_users_task_is_answered_like_a_missing_one(make: Maker, api: httpx.AsyncClient) -> None:
    owner, other = await make.user(points=30), await make.user(points=30)
    task_no = await make.task_no(owner)

    async def body(user: User, number: str, query: str = "") -> dict[str, Any]:
        answer = await api.get(f"/user/ai/tasks/{number}{query}", headers=user.headers)
        return envelope(answer) | {"requestId": ""}

    nothing = await body(other, "TASK-20251026153045123-4567")
    assert (nothing["code"], nothing["errorCode"], nothing["message"]) == (404, "NOT_FOUND", "任务不存在")
    began = time.monotonic()
    assert await body(other, task_no, "?wait=60") == nothing
    assert time.monotonic() - began < 30
    unlike = [
        task_no.lower(),
        task_no + "%20",
        "%20" + task_no,
        task_no + "%00",
        task_no[:-1] + "%25",
        "x" * 5000,
        "%ff",
    ]
    for number in [task_no, *unlike]:
        assert await body(other, number) == nothing
    for number in unlike:
        assert await body(owner, number) == nothing, number
    assert (await body(owner, task_no))["code"] == 200


# ------------------------------------------------------------------ logs


@pytest.mark.settings(log_level="DEBUG", log_format="json", jwt_secret=SECRET)
async def test_a_whole_run_logs_no_secret(
    log: io.StringIO, make: Maker, runtime: Runtime, api: httpx.AsyncClient, working: None
) -> None:
    user = await make.user(points=200)
    planted = "sk-planted0123456789planted0123456789"
    signature = "X-Amz-Signature=planted-signature&OSSAccessKeyId=planted-id"
    image = f"https://bucket.oss-cn-hangzhou.aliyuncs.com/a.jpg?{signature}"
    numbers = [
        await make.task_no(user, f"猫 {planted} Bearer planted-bearer {user.token}"),
        await make.task_no(user, "猫", model=IMAGE_MODEL, imageUrl=[image]),
        await make.task_no(user, '[[sandbox: {"end": "failed"}]]'),
    ]
    for number in numbers:
        await make.ended(user, number)
    for headers in ({"X-API-Key": planted}, bearer("eyJhbGciOiJI.planted-token.x"), user.key_headers):
        await api.get(BALANCE, headers=headers)
    await execute(runtime, "ALTER TABLE points_accounts RENAME TO points_accounts_away")
    try:
        broken = await make.submit(user, f"猫 {planted} {image}")  # the driver's error quotes its statement
    finally:
        await execute(runtime, "ALTER TABLE points_accounts_away RENAME TO points_accounts")
    assert refusal(broken)[0] == 500
    said = log.getvalue()
    assert "task_submitted" in said
    assert "request_failed" in said
    assert "bucket.oss-cn-hangzhou.aliyuncs.com/a.jpg" in said
    secrets = [user.token, user.api_key, SECRET, runtime.settings.see2ai_api_key, planted, "planted"]
    assert [secret for secret in secrets if secret in said] == []


async def test_new_ids_are_safe_integers_of_javascript(make: Maker, runtime: Runtime) -> None:
    await create_user(runtime.database, user_id=17563793187762127)
    assert (await make.user()).id < 2**53
