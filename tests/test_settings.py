"""Settings: what surrounds a value is cut, what cannot be right is refused by name, and no value is ever shown."""

import re
from pathlib import Path
from typing import Any

import pytest

from app.errors import SettingsError
from app.setting_values.text import clean_value, derive_redis_prefix, parse_sentinel_url
from app.settings import Settings, load_settings

STRINGS = sorted(name for name, field in Settings.model_fields.items() if field.annotation is str)
PEM = "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----"
GOOD: dict[str, str] = {
    "database_url": "sqlite+aiosqlite:///var/x.db",
    "redis_url": "redis://127.0.0.1/0",
    "storage_url": "s3://bucket/prefix",
    "timezone": "UTC",
    "jwt_secret": "s" * 40,
    "jwt_public_key": PEM,
    "cors_origins": "https://a.example",
    "trusted_proxies": "10.0.0.0/8",
}
"""A value for each setting that not every text fits; for the others `https://a.example`."""


def value_of(name: str) -> str:
    return GOOD.get(name, "https://a.example" if name.endswith(("_url", "_endpoint")) else "a-value")


@pytest.mark.parametrize("around", ["{}\n", "\r\n {}\t", "\ufeff{}", '"{}"\n', "'{}'", "\u200b{}\u3000"])
def test_what_surrounds_a_value_is_cut_from_every_setting(around: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in STRINGS:
        monkeypatch.setenv(name.upper(), around.format(value_of(name)))
    read = Settings(_env_file=None)
    assert {name: getattr(read, name) for name in STRINGS} == {name: value_of(name) for name in STRINGS}


def test_numbers_switches_and_choices_are_cut_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"PORT": "' 9000 '\n", "JWT_AUTO_PROVISION": '"true"\r\n', "LOG_LEVEL": "\ufeffDEBUG"}.items():
        monkeypatch.setenv(name, value)
    read = Settings(_env_file=None)
    assert (read.port, read.jwt_auto_provision, read.log_level) == (9000, True, "DEBUG")
    monkeypatch.setenv("PORT", " \n")
    assert Settings(_env_file=None).port == 8081, "a value of blanks only means the default"
    file = tmp_path / ".env"
    file.write_bytes("\ufeffPORT=\"9001\"\r\nSEE2AI_API_KEY= 'sk-x' \r\n".encode())
    monkeypatch.delenv("PORT")
    assert Settings(_env_file=file).see2ai_api_key == "sk-x"


def test_the_parts_of_lists_are_cut_and_what_is_inside_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Settings(_env_file=None, jwt_secret=f'"{"a" * 32}", "{"b" * 32}"\n', cors_origins="'https://a', https://b ,")
    assert read.jwt_secrets == ("a" * 32, "b" * 32)
    assert read.cors_allowed == ("https://a", "https://b")
    assert clean_value("a 'b' c") == "a 'b' c"
    assert clean_value("it's") == "it's"
    assert clean_value("'a' and 'b'") == "'a' and 'b'"
    assert Settings(_env_file=None, jwt_public_key=f"\n{PEM}\r\n").jwt_public_key == PEM


SECRET = "hunter2"
WRONG: dict[str, list[str]] = {
    "see2ai_api_key": [f"{SECRET}\nx", f"{SECRET}\x00", f"{SECRET} x", f"{SECRET}密", f"“{SECRET}”", f"{SECRET}\x7f"],
    "storage_access_key_id": [f"{SECRET}\rx", f"{SECRET}é"],
    "storage_secret_access_key": [f"{SECRET}\tx", f"{SECRET}é"],
    "jwt_secret": [f"{SECRET}\n{'x' * 40}", f"{SECRET}", f"{SECRET}\udcff{'x' * 40}"],
    "jwt_public_key": [f"{SECRET}\x00{PEM}"],
    "see2ai_base_url": [
        f"ftp://{SECRET}",
        f"https://user:{SECRET}@h",
        f"https://h?{SECRET}",
        f"https://h#{SECRET}",
        f"https://{SECRET} h",
        f"https://{SECRET}:99999",
        f"https://[{SECRET}",
        f"https://{SECRET}..h",
        f"https:///{SECRET}",
        f"h/{SECRET}",
    ],
    "public_url": [f"https://{SECRET}\n.x"],
    "storage_endpoint": [f"{SECRET}.aliyuncs.com"],
    "storage_public_url": [f"//{SECRET}"],
    "redis_url": [
        f"redis://:{SECRET}#x@h/0",
        f"redis://:{SECRET}/x@h:1/0",
        f"redis://:{SECRET}@h:port/0",
        f"redis://:{SECRET}@h/one",
        f"redis://:{SECRET}@/0",
        f"redis://h/0?password2={SECRET}",
        f"http://{SECRET}",
        f"redis+sentinel://:{SECRET}@h:1",
        f"redis+sentinel://:{SECRET}@h:1,/m/0",
        f"redis+sentinel://:{SECRET}@h:x/m/0",
        f"redis+sentinel://:{SECRET}@h:1/m/x",
        f"redis+sentinel://:{SECRET}@h:1/m/0?ssl=1",
    ],
    "redis_prefix": [f"{SECRET} x", f"{SECRET}*", "x" * 65, f"-{SECRET}"],
    "cors_origins": [f"https://{SECRET}\n,https://b"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_what_cannot_be_right_is_refused_by_name_and_never_shown(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    others: dict[str, Any] = {"jwt_algorithm": "RS256"} if name == "jwt_public_key" else {}
    with pytest.raises(SettingsError) as refused:
        load_settings(**others, **{name: value})
    assert str(refused.value).startswith(f"{name.upper()}: ")
    assert SECRET not in str(refused.value)


def test_all_faults_are_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as refused:
        load_settings(see2ai_api_key="a b", port="x", redis_url="x://", redis_prefix="*", public_url="x")
    assert set(re.findall(r"^(\w+):", str(refused.value), re.MULTILINE)) == {
        "PORT",
        "SEE2AI_API_KEY",
        "REDIS_URL",
        "REDIS_PREFIX",
        "PUBLIC_URL",
    }


# ------------------------------------------------------------------ Redis


def test_the_prefix_is_that_of_the_database() -> None:
    """The same for one database however its URL is written, and another one for each other database."""
    same = [
        "mysql+asyncmy://gateway:old@db.example:3306/1818ai",
        "mysql+asyncmy://gateway:new%40@db.example:3306/1818ai",
        "mysql+asyncmy://worker:x@DB.example/1818ai?charset=utf8mb4",
    ]
    others = [
        "mysql+asyncmy://gateway:old@db.example:3306/other",
        "mysql+asyncmy://gateway:old@db.example:3307/1818ai",
        "mysql+asyncmy://gateway:old@db2.example:3306/1818ai",
        "sqlite+aiosqlite:///var/gateway.db",
        "sqlite+aiosqlite:////srv/gateway.db",
        "sqlite+aiosqlite:////srv/b/gateway.db",
        "mysql+asyncmy://u@[::1]:3306/1818ai",
        "mysql+asyncmy://u@h/数据",
    ]
    prefixes = [derive_redis_prefix(url) for url in (*same, *others)]
    assert len(set(prefixes[:3])) == 1
    assert len(set(prefixes)) == 1 + len(others)
    assert all(re.fullmatch(r"gateway(-[A-Za-z0-9_-]+)?-[0-9a-f]{10}", prefix) for prefix in prefixes)
    assert prefixes[0].startswith("gateway-1818ai-")
    named = Settings(_env_file=None, redis_prefix="shop:1")
    assert named.redis_name("rate", "read", 7) == "shop:1:rate:read:7"


def test_a_sentinel_url_has_hosts_master_and_database() -> None:
    full = parse_sentinel_url("redis+sentinel://u:p%40ss@a:1,b,[::1]:3/my%20master/5?sentinel_password=q%26")
    assert full.sentinels == (("a", 1), ("b", 26379), ("::1", 3))
    assert (full.master, full.database, full.username, full.password) == ("my master", 5, "u", "p@ss")
    assert (full.sentinel_username, full.sentinel_password) == (None, "q&")
    short = parse_sentinel_url("redis+sentinel://a/m")
    assert (short.sentinels, short.master, short.database, short.password) == ((("a", 26379),), "m", 0, None)
