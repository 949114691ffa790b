"""Every setting of the gateway, in one frozen class. It is read from the environment or from `.env`."""

from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import SettingsError
from app.known_secrets import DEVELOPMENT_JWT_SECRET, SANDBOX_API_KEY
from app.setting_values.database_url import SslMode, normalize_database_url
from app.setting_values.text import (
    REDIS_PREFIX,
    clean_value,
    derive_redis_prefix,
    find_key_problem,
    find_origin,
    find_redis_problem,
    find_text_problem,
    find_url_problem,
    is_origin,
)

MIN_SECRET_LENGTH = 32
KEYS = ("see2ai_api_key", "storage_access_key_id", "storage_secret_access_key", "storage_region")
"""They are sent in HTTP headers."""
BASE_URLS = ("see2ai_base_url", "public_url", "storage_endpoint", "storage_public_url")


class Settings(BaseSettings):
    """The settings of one process, read once at start.

    Lists are comma-separated. The unit of a duration stands last in its name.
    """

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True, env_ignore_empty=True
    )

    environment: Literal["development", "production"] = "development"
    host: str = "127.0.0.1"
    port: int = Field(8081, ge=1, le=65535)
    public_url: str = ""
    timezone: str = "Asia/Shanghai"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] = "console"
    metrics_port: int = Field(0, ge=0, le=65535)

    database_url: str = "sqlite+aiosqlite:///var/gateway.db"
    database_pool_size: int = Field(16, ge=1, le=1000)
    database_pool_recycle_seconds: int = Field(200, ge=1)
    database_ssl: SslMode = "off"
    database_ssl_ca: str = ""
    redis_url: str = "memory://"
    redis_prefix: str = ""

    see2ai_base_url: str = "https://see2ai.com"
    see2ai_api_key: str = ""
    see2ai_video_fields: Literal["seed", "2026-04"] = "seed"
    see2ai_uploads: Literal["auto", "always", "never"] = "auto"

    storage_url: str = ""
    storage_endpoint: str = ""
    storage_region: str = "us-east-1"
    storage_access_key_id: str = ""
    storage_secret_access_key: str = ""
    storage_public_url: str = ""
    storage_virtual_hosted_style: bool = False
    storage_reserve_mb: int = Field(2000, ge=0)
    upload_keep_days: int = Field(30, ge=0, le=3650)

    jwt_secret: str = DEVELOPMENT_JWT_SECRET
    jwt_algorithm: Literal["HS256", "RS256", "ES256"] = "HS256"
    jwt_public_key: str = ""
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_auto_provision: bool = False
    jwt_jwks: str = ""
    jwt_access_minutes: int = Field(30, ge=1, le=1440)
    registration: Literal["", "closed", "open"] = ""
    signup_points: int = Field(0, ge=0, le=10**9)

    task_deadline_seconds: int = Field(600, ge=5)
    video_deadline_seconds: int = Field(1800, ge=5)
    hosting_deadline_seconds: int = Field(1800, ge=5)
    lease_seconds: int = Field(30, ge=2)
    circuit_max_pause_seconds: int = Field(60, ge=1)
    audit_every_seconds: int = Field(3600, ge=0)
    submit_rate_per_minute: int = Field(120, ge=1)
    read_rate_per_minute: int = Field(1200, ge=1)
    upload_mb_per_day: int = Field(2000, ge=1)
    max_tasks_in_flight: int = Field(100, ge=1)
    max_free_tasks_per_hour: int = Field(300, ge=1)
    refund_grace_days: int = Field(7, ge=0, le=3650)

    egress_allow: str = ""
    cors_origins: str = ""
    trusted_proxies: str = ""

    @cached_property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    @cached_property
    def is_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite")

    @cached_property
    def full_database_url(self) -> str:
        """`DATABASE_URL` with `DATABASE_SSL` and `DATABASE_SSL_CA` in its query."""
        ssl = self.database_ssl if "database_ssl" in self.model_fields_set else None
        return normalize_database_url(self.database_url, ssl, self.database_ssl_ca)

    @cached_property
    def is_redis_embedded(self) -> bool:
        return self.redis_url.startswith("memory:")

    @cached_property
    def redis_namespace(self) -> str:
        """What the name of everything in Redis begins with. All processes of an installation have the same."""
        return self.redis_prefix or derive_redis_prefix(self.database_url)

    def redis_name(self, *parts: object) -> str:
        """The name of a key, channel or queue of this installation."""
        return ":".join((self.redis_namespace, *map(str, parts)))

    @cached_property
    def own_url(self) -> str:
        """The URL at which callers reach this gateway, without a trailing slash."""
        return (self.public_url or f"http://localhost:{self.port}").rstrip("/")

    @cached_property
    def storage_location(self) -> str:
        """`STORAGE_URL`, or `var/files` in the working directory as a file URL."""
        return self.storage_url or Path("var/files").absolute().as_uri()

    @cached_property
    def jwt_secrets(self) -> tuple[str, ...]:
        """The first secret signs tokens; all of them verify. To rotate, put the new secret first."""
        return split_list(self.jwt_secret)

    @cached_property
    def is_registration_open(self) -> bool:
        """`REGISTRATION`. Without it, only a gateway in development lets strangers register."""
        return (self.registration or ("open" if self.environment == "development" else "closed")) == "open"

    @cached_property
    def trusted_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The proxies whose `X-Forwarded-For` counts."""
        return tuple(ip_network(entry) for entry in split_list(self.trusted_proxies))

    @cached_property
    def egress_allowed(self) -> frozenset[str]:
        """`host:port` origins exempt from the public-address rule."""
        return frozenset(split_list(self.egress_allow.lower()))

    @cached_property
    def cors_allowed(self) -> tuple[str, ...]:
        """The origins as browsers write them; `*` and `null` as they are."""
        return tuple(find_origin(entry) or entry for entry in split_list(self.cors_origins))

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Cuts what surrounds each value. A value of blanks only is empty, so it means the default."""
        cleaned = {name: clean_value(value) if isinstance(value, str) else value for name, value in values.items()}
        return {name: value for name, value in cleaned.items() if value != "" or values[name] == ""}

    @model_validator(mode="after")
    def _validate(self) -> Self:
        problems = self._find_unusable_values() + self._find_problems()
        if self.environment == "production":
            problems += self._find_production_problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _find_unusable_values(self) -> list[str]:
        """Values that cannot be right whatever they are meant for. The text never contains the value."""
        found = []
        for name in type(self).model_fields:
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                continue
            problem = find_text_problem(value, is_multiline=name == "jwt_public_key")
            if problem is None and name in KEYS:
                problem = find_key_problem(value)
            if problem is None and name in BASE_URLS:
                problem = find_url_problem(value)
            if problem is not None:
                found.append(f"{name.upper()}: {problem}")
        return found

    def _find_problems(self) -> list[str]:
        problems = []
        try:
            ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError):
            problems.append(f"TIMEZONE: unknown time zone {self.timezone!r}")
        try:
            _ = self.full_database_url
        except ValueError as error:
            problems += str(error).splitlines()
        if problem := find_redis_problem(self.redis_url):
            problems.append(f"REDIS_URL: {problem}")
        if self.redis_prefix and not REDIS_PREFIX.fullmatch(self.redis_prefix):
            problems.append("REDIS_PREFIX: at most 64 letters, digits and the signs . _ : - are allowed")
        if not self.storage_location.startswith(("file:///", "s3://")):
            problems.append("STORAGE_URL: must start with file:/// or s3://")
        problems += [
            f"CORS_ORIGINS: {entry!r} is not an origin; write https://host or https://host:port"
            for entry in split_list(self.cors_origins)
            if entry not in {"*", "null"} and not is_origin(entry)
        ]
        try:
            _ = self.trusted_networks
        except ValueError as error:
            problems.append(f"TRUSTED_PROXIES: {error}; write addresses or networks such as 10.0.0.0/8")
        if self.jwt_algorithm == "HS256":
            if not self.jwt_secrets or any(len(s) < MIN_SECRET_LENGTH for s in self.jwt_secrets):
                problems.append(f"JWT_SECRET: every secret needs at least {MIN_SECRET_LENGTH} characters")
        elif self.jwt_jwks:
            if "://" in self.jwt_jwks and not self.jwt_jwks.startswith(("https://", "file:///")):
                problems.append("JWT_JWKS: must be an https URL or a file")
        elif "BEGIN PUBLIC KEY" not in self.jwt_public_key:
            problems.append(f"JWT_PUBLIC_KEY: {self.jwt_algorithm} needs a PEM public key")
        return problems

    def _find_production_problems(self) -> list[str]:
        problems = []
        if self.jwt_algorithm == "HS256" and DEVELOPMENT_JWT_SECRET in self.jwt_secrets:
            problems.append("JWT_SECRET: the development default is not allowed in production")
        if "*" in self.cors_allowed:
            problems.append("CORS_ORIGINS: * is not allowed in production; name the origins")
        if not self.see2ai_base_url.startswith("https://"):
            problems.append("SEE2AI_BASE_URL: must be https in production")
        if self.see2ai_api_key in {"", SANDBOX_API_KEY}:
            problems.append("SEE2AI_API_KEY: a real key is needed in production, not the sandbox's")
        if not self.public_url and self.storage_location.startswith("file:"):
            problems.append("PUBLIC_URL: needed in production where results are served from file storage")
        return problems


def load_settings(**overrides: object) -> Settings:
    """Reads the settings of this process. SettingsError lists every problem at once."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = _describe(error)
        invalid = {str(problem["loc"][0]) for problem in error.errors() if problem["loc"]}
    # Pydantic skips the model's own validator after a wrong type. Defaults in place of the wrong values let it run.
    try:
        defaults = {name: field.default for name, field in Settings.model_fields.items() if name in invalid}
        Settings(**(overrides | defaults))  # type: ignore[arg-type]
    except ValidationError as error:
        problems += [line for line in _describe(error) if line not in problems]
    raise SettingsError("\n".join(problems))


def _describe(error: ValidationError) -> list[str]:
    """One line per problem, under the environment variable's name. The value is left out: it may be a secret."""
    lines = []
    for problem in error.errors(include_input=False, include_url=False):
        if problem["loc"]:
            lines.append(f"{str(problem['loc'][0]).upper()}: {problem['msg']}")
        else:
            lines += problem["msg"].removeprefix("Value error, ").splitlines()
    return lines


def split_list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(clean_value, text.split(","))))
