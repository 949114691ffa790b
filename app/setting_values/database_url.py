"""Reads DATABASE_URL in the forms that people write, and brings its TLS options into one form.

MySQL's clients, JDBC, PostgreSQL's clients and SQLAlchemy have different words for TLS. `normalize_database_url`
accepts them all. Its result names TLS as `?ssl_mode=required&ssl_ca=/path`; `app/database/mysql.py` reads only that.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from sqlalchemy import URL

SslMode = Literal["off", "required", "verify-ca", "verify-full"]
SCHEMES = ("mysql+asyncmy://", "sqlite+aiosqlite:///")
CHARSETS = frozenset({"utf8mb4", "utf8", "utf-8"})

_SWITCHES = frozenset({"ssl", "tls", "usessl", "requiressl"})
_MODES = frozenset({"sslmode", "tlsmode"})
_CAS = frozenset({"sslca", "sslrootcert", "sslcafile", "tlsca"})
_HOST_CHECKS = frozenset({"sslcheckhostname", "sslverifyidentity"})
_MODE_WORDS: dict[str, SslMode] = {
    **dict.fromkeys(("off", "disabled", "disable", "false", "0", "no"), "off"),
    **dict.fromkeys(("required", "require", "true", "1", "yes", "on"), "required"),
    "verify-ca": "verify-ca",
    **dict.fromkeys(("verify-full", "verify-identity"), "verify-full"),
}


def normalize_database_url(url: str, ssl: SslMode | None = None, ssl_ca: str = "") -> str:
    """The URL with its TLS options in one form. `ssl` and `ssl_ca` are DATABASE_SSL and DATABASE_SSL_CA, if set.

    Raises ValueError with one line for each problem, which begins with the name of the setting. The lines do not
    show the password.
    """
    if not url.startswith(SCHEMES):
        raise ValueError(f"DATABASE_URL: must start with {' or '.join(SCHEMES)}")
    if url.startswith("sqlite"):
        if (ssl or "off") != "off":
            raise ValueError("DATABASE_SSL: SQLite has no TLS")
        return url
    parsed = _parse(url)
    options = _Options()
    problems = []
    for name, values in parsed.normalized_query.items():
        for value in values:
            problems += options.add(name, value)
    problems += options.finish(ssl, ssl_ca)
    if problems:
        raise ValueError("\n".join(problems))
    return parsed.set(query=options.query()).render_as_string(hide_password=False)


def _parse(url: str) -> "URL":
    from sqlalchemy import make_url  # a process that needs no database does not load it
    from sqlalchemy.exc import ArgumentError

    hint = "write special characters of the user and the password %-encoded, such as %40 for @"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(f"DATABASE_URL: cannot be read; {hint}") from None
    if "@" in (parsed.host or ""):
        raise ValueError(f"DATABASE_URL: has more than one @; {hint}")
    if not parsed.database:
        raise ValueError("DATABASE_URL: names no database, as in mysql+asyncmy://user:password@host:3306/1818ai")
    return parsed


class _Options:
    """The query of the URL, read option by option."""

    def __init__(self) -> None:
        self._modes: list[SslMode] = []
        self._switch: SslMode | None = None  # of `?ssl=true`, which does not say what is verified
        self._checks_host: bool | None = None
        self._ca = ""
        self._unix_socket = ""
        self.mode: SslMode = "off"

    def add(self, name: str, value: str) -> list[str]:
        """Reads one option and returns its problems."""
        key = name.lower().replace("_", "").replace("-", "")
        if key in _SWITCHES | _MODES | _HOST_CHECKS:
            return self._add_tls_word(key, name, value)
        if key in _CAS:
            self._ca = value
        elif key == "unixsocket":
            self._unix_socket = value
        elif key != "charset":
            return [f"DATABASE_URL: the option {name} is unknown; known are ssl_mode, ssl_ca, charset and unix_socket"]
        elif value.lower() not in CHARSETS:
            return [f"DATABASE_URL: charset={value} cannot hold every prompt; write charset=utf8mb4 or leave it out"]
        return []

    def _add_tls_word(self, key: str, name: str, value: str) -> list[str]:
        mode = _MODE_WORDS.get(value.strip().lower().replace("_", "-"))
        if mode is None:
            return [f"DATABASE_URL: {name}={value} is unknown; the words are {', '.join(get_args(SslMode))}"]
        if key in _HOST_CHECKS:
            self._checks_host = mode != "off"
        elif key in _SWITCHES and mode in {"off", "required"}:
            self._switch = mode
        else:
            self._modes.append(mode)
        return []

    def _url_mode(self) -> SslMode | None:
        """What the URL says. Of several words the strictest one counts. None: the URL says nothing."""
        if self._modes:
            mode: SslMode | None = max(self._modes, key=get_args(SslMode).index)
        else:
            mode = "verify-full" if self._ca or self._checks_host else self._switch
        if self._checks_host is not None and mode in {"verify-ca", "verify-full"}:
            return "verify-full" if self._checks_host else "verify-ca"
        return mode

    def finish(self, ssl: SslMode | None, ssl_ca: str) -> list[str]:
        """Adds the settings and returns the problems of all together."""
        url_mode = self._url_mode()
        if ssl is not None and url_mode is not None and ssl != url_mode:
            return [f"DATABASE_SSL: is {ssl}, but DATABASE_URL says {url_mode}; say it in one place"]
        self.mode, self._ca = ssl or url_mode or "off", ssl_ca or self._ca
        if self._ca and self.mode in {"off", "required"}:
            return [f"DATABASE_SSL_CA: DATABASE_SSL={self.mode} verifies nothing; use verify-ca or verify-full"]
        if self._ca and not Path(self._ca).is_file():
            return [f"DATABASE_SSL_CA: there is no file {self._ca}"]
        return []

    def query(self) -> dict[str, str]:
        mode = "" if self.mode == "off" else self.mode
        found = {"ssl_mode": mode, "ssl_ca": self._ca, "unix_socket": self._unix_socket}
        return {name: value for name, value in found.items() if value}
