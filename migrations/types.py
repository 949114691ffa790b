"""Column types of the migrations. Never change one: old migrations use them."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
UTC_TIME = sa.DateTime().with_variant(mysql.DATETIME(fsp=3), "mysql", "mariadb")
LONG_TEXT = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql", "mariadb")
JSON = LONG_TEXT
# MySQL's default collation finds all emoji equal; this one does not.
SEARCHED_TEXT = sa.Text().with_variant(mysql.MEDIUMTEXT(collation="utf8mb4_unicode_520_ci"), "mysql", "mariadb")
TABLE_OPTIONS: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
}


def binary_string(length: int) -> sa.types.TypeEngine[str]:
    """Text that is compared byte by byte. MySQL's default collation ignores case and trailing spaces."""
    return sa.String(length).with_variant(
        mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb"
    )
