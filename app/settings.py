"""Every knob, in one frozen class read from the environment or `.env`. It says all its faults at once."""

from functools import cached_property
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.errors import SettingsError
from app.known_secrets import DEVELOPMENT_JWT_SECRET, SANDBOX_API_KEY

MIN_SECRET_LENGTH = 32


class Settings(BaseSettings):
    """Read once at start. Lists are comma-separated. Durations are seconds; their unit stands last."""

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
    redis_url: str = "memory://"

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

    jwt_secret: str = DEVELOPMENT_JWT_SECRET
    jwt_algorithm: Literal["HS256", "RS256", "ES256"] = "HS256"
    jwt_public_key: str = ""
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_auto_provision: bool = False

    task_deadline_seconds: int = Field(600, ge=5)
    video_deadline_seconds: int = Field(1800, ge=5)
    hosting_deadline_seconds: int = Field(1800, ge=5)
    lease_seconds: int = Field(30, ge=2)
    circuit_max_pause_seconds: int = Field(60, ge=1)
    audit_every_seconds: int = Field(3600, ge=0)
    submit_rate_per_minute: int = Field(120, ge=1)
    read_rate_per_minute: int = Field(1200, ge=1)
    max_tasks_in_flight: int = Field(100, ge=1)
    refund_grace_days: int = Field(7, ge=0, le=3650)

    egress_allow: str = ""
    cors_origins: str = ""

    @cached_property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    @cached_property
    def is_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite")

    @cached_property
    def is_redis_embedded(self) -> bool:
        return self.redis_url.startswith("memory:")

    @cached_property
    def own_url(self) -> str:
        """Where callers reach this gateway, without a trailing slash."""
        return (self.public_url or f"http://localhost:{self.port}").rstrip("/")

    @cached_property
    def storage_location(self) -> str:
        """`STORAGE_URL`, or `var/files` in the working directory as a file URL."""
        return self.storage_url or Path("var/files").absolute().as_uri()

    @cached_property
    def jwt_secrets(self) -> tuple[str, ...]:
        """Signed with the first, verified with all: put the new secret in front to rotate."""
        return split_list(self.jwt_secret)

    @cached_property
    def egress_allowed(self) -> frozenset[str]:
        """`host:port` origins exempt from the public-address rule."""
        return frozenset(split_list(self.egress_allow.lower()))

    @cached_property
    def cors_allowed(self) -> tuple[str, ...]:
        return split_list(self.cors_origins)

    @model_validator(mode="after")
    def check_everything(self) -> Self:
        faults = [*self._faults()]
        if self.environment == "production":
            faults += self._production_faults()
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def _faults(self) -> list[str]:
        faults = []
        try:
            ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError):
            faults.append(f"TIMEZONE: unknown time zone {self.timezone!r}")
        if not self.database_url.startswith(("mysql+asyncmy://", "sqlite+aiosqlite:///")):
            faults.append("DATABASE_URL: must start with mysql+asyncmy:// or sqlite+aiosqlite:///")
        if not self.redis_url.startswith(("redis://", "rediss://", "memory://")):
            faults.append("REDIS_URL: must start with redis://, rediss:// or memory://")
        if not self.storage_location.startswith(("file:///", "s3://")):
            faults.append("STORAGE_URL: must start with file:/// or s3://")
        if urlsplit(self.see2ai_base_url).scheme not in {"http", "https"}:
            faults.append("SEE2AI_BASE_URL: must be an http(s) URL")
        if self.jwt_algorithm == "HS256":
            if not self.jwt_secrets or any(len(s) < MIN_SECRET_LENGTH for s in self.jwt_secrets):
                faults.append(f"JWT_SECRET: every secret needs at least {MIN_SECRET_LENGTH} characters")
        elif "BEGIN PUBLIC KEY" not in self.jwt_public_key:
            faults.append(f"JWT_PUBLIC_KEY: {self.jwt_algorithm} needs a PEM public key")
        return faults

    def _production_faults(self) -> list[str]:
        faults = []
        if self.jwt_algorithm == "HS256" and DEVELOPMENT_JWT_SECRET in self.jwt_secrets:
            faults.append("JWT_SECRET: the development default is not allowed in production")
        if "*" in self.cors_allowed:
            faults.append("CORS_ORIGINS: * is not allowed in production; name the origins")
        if not self.see2ai_base_url.startswith("https://"):
            faults.append("SEE2AI_BASE_URL: must be https in production")
        if self.see2ai_api_key in {"", SANDBOX_API_KEY}:
            faults.append("SEE2AI_API_KEY: a real key is needed in production, not the sandbox's")
        if not self.public_url and self.storage_location.startswith("file:"):
            faults.append("PUBLIC_URL: needed in production where results are served from file storage")
        return faults


def split_list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def load_settings(**overrides: object) -> Settings:
    """The settings of this process; raises SettingsError naming every fault at once."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        faults = _readable(error)
        unreadable = {str(fault["loc"][0]) for fault in error.errors() if fault["loc"]}
    # A value of the wrong type keeps pydantic from looking further: with defaults in their places it does.
    try:
        defaults = {name: field.default for name, field in Settings.model_fields.items() if name in unreadable}
        Settings(**(overrides | defaults))  # type: ignore[arg-type]
    except ValidationError as error:
        faults += [line for line in _readable(error) if line not in faults]
    raise SettingsError("\n".join(faults))


def _readable(error: ValidationError) -> list[str]:
    """One line a fault, in the environment's own spelling, and never the offending value: it may be a secret."""
    lines = []
    for fault in error.errors(include_input=False, include_url=False):
        if fault["loc"]:
            lines.append(f"{str(fault['loc'][0]).upper()}: {fault['msg']}")
        else:
            lines += fault["msg"].removeprefix("Value error, ").splitlines()
    return lines
