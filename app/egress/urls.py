"""What a URL and an address must look like to be called. Pure: nothing is resolved or fetched."""

import re
import unicodedata
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import quote

import idna
from yarl import URL

LONGEST_URL = 2048
MAX_URL_LENGTH = 8192
"""That is ever called."""
DEFAULT_PORTS = {"http": 80, "https": 443}

_URL = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<rest>[^#]*)", re.IGNORECASE)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{0,5}))?")
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_UNESCAPED = "%/?:@!$&'()*+,;=-._~[]"
_FORBIDDEN_CATEGORIES = frozenset({"Cc", "Cs", "Zs", "Zl", "Zp"})  # controls, lone surrogates, all spaces

# Python's own `is_global` changed between patch releases, so the lists stand here, from IANA's
# special-purpose registries. 168.63.129.16 is Azure's host service: it looks public and is not.
_IPV4_REFUSED = [
    *map(IPv4Network, ("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16")),
    *map(IPv4Network, ("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16")),
    *map(IPv4Network, ("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4")),
    IPv4Network("168.63.129.16/32"),
]
# All public IPv6 lies in 2000::/3, which leaves out mapped, NAT64, unique-local, fec0::/10, link-local and
# multicast. Refused within it: protocol assignments with Teredo, documentation twice, and 6to4.
_IPV6_PUBLIC = IPv6Network("2000::/3")
_IPV6_REFUSED = [*map(IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20", "2002::/16"))]


class InvalidUrl(ValueError):
    """A URL we never call. The text is for callers."""


def validate_url(url: str, allowed: frozenset[str] = frozenset()) -> str | None:
    """What is wrong with a caller's URL, as a short Chinese text, or None.

    `allowed` holds exact `host:port` origins exempt from the public-address and the port rule.
    """
    try:
        normalize_url(url, allowed)
    except InvalidUrl as problem:
        return str(problem)
    return None


def normalize_url(url: str, allowed: frozenset[str] = frozenset()) -> str:
    """A caller's URL in the one spelling in which it is dialled: `scheme://host[:port]/…`. Raises InvalidUrl."""
    spelled = str(parse_url(url, allowed, longest=LONGEST_URL))
    if len(spelled) > MAX_URL_LENGTH:  # nobody could call it
        raise InvalidUrl(f"转义后不能超过 {MAX_URL_LENGTH} 个字符")
    return spelled


def parse_url(url: str, allowed: frozenset[str], *, longest: int) -> URL:
    """The URL as it is dialled, host in lower-case ASCII: aiohttp sees to the letter what is judged here.

    Path and query are escaped only where they must be and never rewritten: they may be signed.
    Raises InvalidUrl, and nothing else whatever the string.
    """
    if len(url) > longest:
        raise InvalidUrl(f"不能超过 {longest} 个字符")
    if "\\" in url or any(unicodedata.category(c) in _FORBIDDEN_CATEGORIES for c in url):
        raise InvalidUrl("含有空格或非法字符")
    parts = _URL.match(url)
    if parts is None:
        raise InvalidUrl("必须是 http 或 https 地址")
    if "@" in parts["authority"]:
        raise InvalidUrl("不能包含用户名或密码")
    scheme = parts["scheme"].lower()
    host, port = _parse_authority(parts["authority"], DEFAULT_PORTS[scheme])
    if f"{host}:{port}" not in allowed:
        if port not in DEFAULT_PORTS.values():
            raise InvalidUrl("端口只能是 80 或 443")
        if not _can_be_public(host):
            raise InvalidUrl("不能指向内网地址")
    shown_port = "" if port == DEFAULT_PORTS[scheme] else f":{port}"
    slash = "" if parts["rest"].startswith("/") else "/"
    return URL(f"{scheme}://{host}{shown_port}{slash}{quote(parts['rest'], safe=_UNESCAPED)}", encoded=True)


def is_public(address: str) -> bool:
    """Whether a resolved or literal address lies on the public internet, and in no special range of it."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        return not any(parsed in block for block in _IPV4_REFUSED)
    return parsed in _IPV6_PUBLIC and not any(parsed in block for block in _IPV6_REFUSED)


def _parse_authority(text: str, default_port: int) -> tuple[str, int]:
    """A host in its one canonical spelling (folded, ASCII, IPv6 compressed in brackets), and its port."""
    parts = _AUTHORITY.fullmatch(text)
    if parts is None:
        raise InvalidUrl("主机名或端口无效")
    try:
        if parts["host"].startswith("["):
            host = f"[{IPv6Address(parts['host'][1:-1]).compressed}]"
        else:
            host = _parse_name(parts["host"])
    except ValueError:  # IDNA's errors are ValueErrors, too
        raise InvalidUrl("主机名或端口无效") from None
    return host, int(parts["port"] or default_port)


def _parse_name(text: str) -> str:
    """Full-width letters and ideographic stops become what a browser would make of them."""
    name = unicodedata.normalize("NFKC", text).lower()
    if not name.isascii():
        name = idna.encode(name).decode("ascii")
    name = name.removesuffix(".")
    if not _NAME.fullmatch(name):
        raise InvalidUrl("主机名或端口无效")
    return name


def _can_be_public(host: str) -> bool:
    """False for what cannot be public, whoever resolves it.

    A last label in digits or hex makes a host an IPv4 address to every libc (`127.1`, `0x7f.1`,
    `2130706433`): of these only the plain dotted form is taken.
    """
    if host.startswith("["):
        return is_public(host[1:-1])
    last_label = host.rpartition(".")[2]
    if _NUMBER.fullmatch(last_label):
        return is_public(host)
    return last_label != "localhost"
