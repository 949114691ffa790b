"""Parses, validates and normalizes URLs, and tells public addresses from others. It resolves and fetches nothing."""

import re
import unicodedata
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import quote

import idna
from yarl import URL

MAX_URL_LENGTH = 2048
"""The limit for a URL that a caller submits."""
MAX_REQUESTED_URL_LENGTH = 8192
"""The limit for any URL that is requested. Storage services sign results and redirects with long tokens."""
MAX_HOST_LENGTH = 255  # as written; a DNS name has at most 253 characters
DEFAULT_PORTS = {"http": 80, "https": 443}

_URL = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<rest>[^#]*)", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{0,5}))?")
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMERIC_LABEL = re.compile(r"0x[0-9a-f]*|[0-9]+")
_UNESCAPED = "%/?:@!$&'()*+,;=-._~[]"
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})  # controls, lone surrogates, separators of lines
_SURROUNDING_BLANKS = " \t\r\n\f\u3000"

# The lists are IANA's special-purpose registries, because Python's `is_global` changed between patch releases.
# 168.63.129.16 is Azure's host service, which looks public and is not.
_IPV4_REFUSED = [
    *map(IPv4Network, ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16")),
    *map(IPv4Network, ("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16")),
    *map(IPv4Network, ("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4")),
    IPv4Network("168.63.129.16/32"),
]
# All public IPv6 addresses lie in 2000::/3. That excludes mapped, NAT64, unique-local, site-local, link-local and
# multicast addresses. Refused within it: protocol assignments (with Teredo), two documentation blocks, and 6to4.
_IPV6_PUBLIC = IPv6Network("2000::/3")
_IPV6_REFUSED = [*map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20", "2002::/16"))]


class InvalidUrl(ValueError):
    """A URL that the gateway never requests. The text is for callers."""


def validate_url(url: str, allowed: frozenset[str] = frozenset()) -> str | None:
    """The problem of a caller's URL as a short Chinese text, or None if the URL is valid.

    `allowed` holds exact `host:port` origins that are exempt from the public-address rule and the port rule.
    """
    try:
        normalize_url(url, allowed)
    except InvalidUrl as problem:
        return str(problem)
    return None


def normalize_url(url: str, allowed: frozenset[str] = frozenset()) -> str:
    """A caller's URL in its normal form `scheme://host[:port]/…`, as it is requested. Raises InvalidUrl."""
    normalized = str(parse_url(url, allowed, max_length=MAX_URL_LENGTH))
    if len(normalized) > MAX_REQUESTED_URL_LENGTH:
        raise InvalidUrl(f"转义后不能超过 {MAX_REQUESTED_URL_LENGTH} 个字符")
    return normalized


def escape_url(url: str, allowed: frozenset[str] = frozenset()) -> str:
    """A caller's URL as others receive it: unchanged if it has legal characters only, else in its normal form.

    Raises InvalidUrl.
    """
    normalized = normalize_url(url, allowed)
    return url if quote(url, safe=f"#{_UNESCAPED}") == url else normalized


def parse_url(url: str, allowed: frozenset[str], *, max_length: int) -> URL:
    """The URL with its host in lower-case ASCII, exactly as aiohttp receives it. Raises InvalidUrl.

    As in browsers, blanks around the URL do not count, and blanks and other characters in the path and the query are
    escaped. Nothing else there is rewritten, because it may be signed.
    """
    url = url.strip(_SURROUNDING_BLANKS)
    if len(url) > max_length:
        raise InvalidUrl(f"不能超过 {max_length} 个字符")
    if "\\" in url or any(unicodedata.category(c) in _FORBIDDEN_CATEGORIES for c in url):
        raise InvalidUrl("含有空格或非法字符")
    parts = _URL.match(url)
    if parts is None:
        raise InvalidUrl("必须是 http 或 https 地址")
    if any(character.isspace() for character in parts["authority"]):
        raise InvalidUrl("含有空格或非法字符")
    if "@" in parts["authority"]:
        raise InvalidUrl("不能包含用户名或密码")
    scheme = parts["scheme"].lower()
    host, port = _parse_authority(parts["authority"], DEFAULT_PORTS[scheme])
    if f"{host}:{port}" not in allowed:
        if port not in DEFAULT_PORTS.values():
            raise InvalidUrl("端口只能是 80 或 443")
        if not _can_be_public(host):
            raise InvalidUrl("不能指向内网地址")
    port_part = "" if port == DEFAULT_PORTS[scheme] else f":{port}"
    slash = "" if parts["rest"].startswith("/") else "/"
    return URL(f"{scheme}://{host}{port_part}{slash}{quote(parts['rest'], safe=_UNESCAPED)}", encoded=True)


def is_public(address: str) -> bool:
    """Whether an address is on the public internet and in no special-purpose range."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        return not any(parsed in block for block in _IPV4_REFUSED)
    return parsed in _IPV6_PUBLIC and not any(parsed in block for block in _IPV6_REFUSED)


def _parse_authority(text: str, default_port: int) -> tuple[str, int]:
    """The host in its normal form (lower-case ASCII, or compressed IPv6 in brackets), and the port."""
    parts = _AUTHORITY.fullmatch(text)
    if parts is None:
        raise InvalidUrl("主机名或端口无效")
    try:
        if parts["host"].startswith("["):
            host = f"[{IPv6Address(parts['host'][1:-1]).compressed}]"
        else:
            host = _parse_host_name(parts["host"])
    except ValueError:  # idna raises a subclass of it
        raise InvalidUrl("主机名或端口无效") from None
    return host, int(parts["port"] or default_port)


def _parse_host_name(text: str) -> str:
    """The host name in ASCII. Full-width letters and ideographic full stops are converted as browsers do."""
    if len(text) > MAX_HOST_LENGTH:  # sorting marks and encoding names take more than linear time
        raise InvalidUrl("主机名或端口无效")
    name = unicodedata.normalize("NFKC", text).lower().replace("。", ".").removesuffix(".")
    # Each label for itself, because IDNA forbids ASCII labels that DNS has, such as `a_b`.
    name = ".".join(one if one.isascii() else idna.encode(one).decode("ascii") for one in name.split("."))
    if not _HOST_NAME.fullmatch(name):
        raise InvalidUrl("主机名或端口无效")
    return name


def _can_be_public(host: str) -> bool:
    """False if the host is not public, whatever DNS says.

    Every libc reads a host whose last label is a number as an IPv4 address (`127.1`, `0x7f.1`, `2130706433`). Only
    the plain dotted form of these is accepted.
    """
    if host.startswith("["):
        return is_public(host[1:-1])
    last_label = host.rpartition(".")[2]
    if _NUMERIC_LABEL.fullmatch(last_label):
        return is_public(host)
    return last_label != "localhost"
