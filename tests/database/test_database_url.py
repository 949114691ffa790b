"""DATABASE_URL as people write it: each form of TLS works or is refused in one line, and so do odd passwords."""

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from app.errors import SettingsError
from app.setting_values.database_url import normalize_database_url
from app.settings import load_settings

START = "mysql+asyncmy://gateway:secret@db:3306/1818ai"


@pytest.fixture
def ca(tmp_path: Path) -> str:
    (tmp_path / "ca.pem").touch()
    return str(tmp_path / "ca.pem")


@pytest.mark.parametrize(
    ("query", "mode"),
    [
        ("", None),
        ("?charset=utf8mb4", None),
        ("?ssl=false", None),
        ("?ssl_mode=DISABLED&useSSL=false", None),
        ("?ssl=true", "required"),
        ("?tls=1", "required"),
        ("?ssl_mode=REQUIRED", "required"),
        ("?ssl-mode=required&charset=utf8", "required"),
        ("?sslmode=require", "required"),
        ("?useSSL=true&requireSSL=true", "required"),
        ("?sslMode=VERIFY_CA&useSSL=true", "verify-ca"),
        ("?sslmode=verify-full", "verify-full"),
        ("?ssl-mode=VERIFY_IDENTITY", "verify-full"),
    ],
)
def test_the_usual_words_for_tls(query: str, mode: str | None) -> None:
    assert make_url(normalize_database_url(START + query)).query.get("ssl_mode") == mode


@pytest.mark.parametrize(
    ("query", "mode"),
    [("", "verify-full"), ("&ssl_check_hostname=false", "verify-ca"), ("&ssl_mode=verify-ca", "verify-ca")],
)
def test_a_file_of_authorities_in_the_url(query: str, mode: str, ca: str) -> None:
    for name in ("ssl_ca", "ssl-ca", "sslrootcert"):
        once = normalize_database_url(f"{START}?{name}={ca}{query}")
        assert make_url(once).query == {"ssl_mode": mode, "ssl_ca": ca}
        assert normalize_database_url(once) == once


@pytest.mark.parametrize(
    ("url", "line"),
    [
        (f"{START}?ssl_mode=PREFERRED", "DATABASE_URL: ssl_mode=PREFERRED is unknown; the words are off, required,"),
        (f"{START}?charset=latin1", "DATABASE_URL: charset=latin1 cannot hold every prompt"),
        (f"{START}?autocommit=true", "DATABASE_URL: the option autocommit is unknown; known are ssl_mode"),
        (f"{START}?ssl_ca=/nowhere.pem", "DATABASE_SSL_CA: there is no file /nowhere.pem"),
        ("mysql+asyncmy://gateway:p@ss@db/1818ai", "DATABASE_URL: has more than one @; write special characters"),
        ("mysql+asyncmy://gateway:secret@db:port/1818ai", "DATABASE_URL: cannot be read"),
        ("mysql+asyncmy://gateway:secret@db:3306/", "DATABASE_URL: names no database"),
        ("mysql://gateway:secret@db/1818ai", "DATABASE_URL: must start with mysql+asyncmy://"),
    ],
)
def test_the_rest_is_refused_in_one_line(url: str, line: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        load_settings(_env_file=None, database_url=url)
    assert str(refusal.value).startswith(line)
    assert "\n" not in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_the_settings_and_the_url_agree(ca: str) -> None:
    def full_url(url: str, **settings: str) -> str:
        return load_settings(_env_file=None, database_url=url, **settings).full_database_url

    assert full_url(START, database_ssl="required") == f"{START}?ssl_mode=required"
    assert full_url(f"{START}?ssl=true", database_ssl="required") == f"{START}?ssl_mode=required"
    found = make_url(full_url(START, database_ssl="verify-ca", database_ssl_ca=ca))
    assert found.query == {"ssl_mode": "verify-ca", "ssl_ca": ca}
    for url, settings in (
        (f"{START}?ssl=true", {"database_ssl": "off"}),
        (START, {"database_ssl_ca": ca}),
        ("sqlite+aiosqlite:///x.db", {"database_ssl": "required"}),
    ):
        with pytest.raises(SettingsError, match="DATABASE_SSL"):
            full_url(url, **settings)


def test_a_password_keeps_its_characters() -> None:
    for written in ("pä%40ss%2F+%25", "pä%40ss/+%25"):
        parsed = make_url(normalize_database_url(f"mysql+asyncmy://gateway:{written}@db/1818ai?ssl=true"))
        assert (parsed.password, parsed.host, parsed.database) == ("pä@ss/+%", "db", "1818ai")
