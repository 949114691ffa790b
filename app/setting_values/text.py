"""The text of settings: what secret stores and editors add around it is cut, and what cannot be right is found.

A problem never contains the value, because the value may be a secret.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import idna

INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"  # byte order mark, zero-width spaces and joiners
QUOTES = "\"'"
DEFAULT_PORTS = {"http": 80, "https": 443}
MYSQL_PORT = 3306
SENTINEL_PORT = 26379
SENTINEL_SCHEME = "redis+sentinel"
REDIS_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")
REDIS_OPTIONS = frozenset(
    {
        "db",
        "client_name",
        "health_check_interval",
        "max_connections",
        "protocol",
        "socket_connect_timeout",
        "socket_keepalive",
        "socket_timeout",
        "ssl_ca_certs",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
    }
)
"""What may stand behind `?` in REDIS_URL. redis-py would fail at the first command for any other name."""
SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})
ENCODE_HINT = "%-encode special characters in its password"


@dataclass(frozen=True)
class SentinelAddress:
    """What a `redis+sentinel://` URL says. `sentinel_…` is the log-in to the sentinels, the others to Redis itself."""

    sentinels: tuple[tuple[str, int], ...]
    master: str
    database: int
    username: str | None
    password: str | None
    sentinel_username: str | None
    sentinel_password: str | None


def clean_value(text: str) -> str:
    """The text without blanks, line breaks, byte order marks and pairs of quotes around it."""
    while True:
        cut = text.strip().strip(INVISIBLE)
        if len(cut) > 1 and cut[0] == cut[-1] and cut[0] in QUOTES and cut[0] not in cut[1:-1]:
            cut = cut[1:-1]
        if cut == text:
            return text
        text = cut


def find_text_problem(text: str, *, is_multiline: bool) -> str | None:
    """Why the text cannot be right as any setting. None: it can."""
    allowed = "\r\n\t" if is_multiline else ""
    if any(unicodedata.category(letter) == "Cc" and letter not in allowed for letter in text):
        return "holds a line break or another control character"
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # so Python reads bytes that are not UTF-8
        return "is not UTF-8"
    return None


def find_key_problem(text: str) -> str | None:
    """Why the text cannot be sent as a key in an HTTP header."""
    if all("!" <= letter <= "~" for letter in text):
        return None
    return "holds a character that no key has: only letters, digits and signs of ASCII can be sent"


def find_url_problem(text: str) -> str | None:
    """Why the text is no http(s) URL to which a path can be appended."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
        is_host = bool(host.encode("idna"))
    except ValueError:
        return "is not a usable URL"
    if parts.scheme not in {"http", "https"}:
        return "must be an http(s) URL"
    if not is_host or re.search(r"[\s\\]", text):
        return "is not a usable URL"
    if "@" in parts.netloc or parts.query or parts.fragment:
        return "must be a URL without a user, a query or a fragment"
    return None


def find_redis_problem(url: str) -> str | None:
    """Why REDIS_URL cannot be used."""
    if url.startswith("memory://"):
        return None
    if url.startswith(f"{SENTINEL_SCHEME}://"):
        try:
            parse_sentinel_url(url)
        except ValueError:
            return f"must be {SENTINEL_SCHEME}://[:password@]host:port,host:port/master/0; {ENCODE_HINT}"
        return None
    if not url.startswith(("redis://", "rediss://")):
        return f"must start with redis://, rediss://, {SENTINEL_SCHEME}:// or memory://"
    try:
        parts = urlsplit(url)
        is_usable = bool(parts.hostname) and (parts.port or 1) > 0 and _is_number(parts.path.strip("/") or "0")
    except ValueError:
        is_usable = False
    if not is_usable or parts.fragment or re.search(r"\s", url):
        return f"must be redis://[:password@]host:port/0; {ENCODE_HINT}"
    unknown = set(parse_qs(parts.query, keep_blank_values=True)) - REDIS_OPTIONS
    return f"has an unknown option after ?: {', '.join(sorted(unknown))[:100]}" if unknown else None


def parse_sentinel_url(url: str) -> SentinelAddress:
    """The parts of `redis+sentinel://[user:password@]host:port,host:port/master/database`. Raises ValueError."""
    rest = url.partition("://")[2]
    netloc = re.split("[/?#]", rest, maxsplit=1)[0]
    parts = urlsplit("//host" + rest.removeprefix(netloc))  # many versions of Python refuse `a,[::1]` as a host
    login, _, hosts = netloc.rpartition("@")
    username, _, password = login.partition(":")
    master, _, database = parts.path.strip("/").partition("/")
    options = parse_qs(parts.query, keep_blank_values=True)
    if not master or parts.fragment or not _is_number(database or "0") or set(options) - SENTINEL_OPTIONS:
        raise ValueError("not a sentinel URL")
    return SentinelAddress(
        sentinels=tuple(_parse_host(host) for host in hosts.split(",")),
        master=unquote(master),
        database=int(database or 0),
        username=unquote(username) or None,
        password=unquote(password) or None,
        sentinel_username=options.get("sentinel_username", [None])[0],
        sentinel_password=options.get("sentinel_password", [None])[0],
    )


def _parse_host(text: str) -> tuple[str, int]:
    parts = SplitResult("", text, "", "", "")
    if not parts.hostname or re.search(r"\s", text):
        raise ValueError("no host")
    return parts.hostname, parts.port or SENTINEL_PORT


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def derive_redis_prefix(database_url: str) -> str:
    """A name for the installation of this database: readable, and different for two databases.

    It depends on host, port and database only. So a new password keeps it.
    """
    scheme, _, rest = database_url.partition("://")
    location = rest.partition("?")[0]
    if scheme.startswith("sqlite"):
        location = str(Path(location.removeprefix("/")).absolute())
        name = Path(location).stem
    else:
        address, _, name = location.rpartition("@")[2].partition("/")
        address = address.lower() if re.search(r":\d+$", address) else f"{address.lower()}:{MYSQL_PORT}"
        location = f"{address}/{name}"
    readable = re.sub(r"[^A-Za-z0-9_-]", "", name)[:32]
    digest = hashlib.sha256(location.encode()).hexdigest()[:10]
    return "-".join(filter(None, ("gateway", readable, digest)))


def find_origin(url: str) -> str | None:
    """The origin of a URL as a browser writes it: in lower case, the host in ASCII, without the scheme's own port.

    None where the URL has no scheme or no host.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if not host.isascii():
            host = idna.encode(host, uts46=True).decode()
    except ValueError:  # idna's errors are ValueErrors, too
        return None
    if not parts.scheme or not host:
        return None
    host = f"[{host}]" if ":" in host else host
    is_default = port is None or DEFAULT_PORTS.get(parts.scheme) == port
    return f"{parts.scheme}://{host}" if is_default else f"{parts.scheme}://{host}:{port}"


def is_origin(text: str) -> bool:
    """Whether the text is an origin and nothing more, but for a slash at its end."""
    origin = find_origin(text)
    if origin is None or not set(origin).isdisjoint(" *"):
        return False
    parts = urlsplit(text)
    return parts.path in {"", "/"} and not parts.query and not parts.fragment and "@" not in parts.netloc
