"""The audit's checks of lots and redeem codes. Each SQL statement finds the rows that violate an invariant."""

# The number after the colon of a reference. MySQL, MariaDB and SQLite all know SIGNED. SUBSTR compares case on all of
# them; LIKE ignores case on SQLite.
_LOT_ID_IN_REF = "CAST(SUBSTR(ref, 8) AS SIGNED)"
_CODE_ID_IN_REF = "CAST(SUBSTR(ref, 6) AS SIGNED)"
_EXPIRY_ENTRIES = (
    f"SELECT {_LOT_ID_IN_REF} AS lot_id, MIN(user_id) AS user_id, COUNT(*) AS n, SUM(-points) AS points"  # noqa: S608
    " FROM points_ledger WHERE kind = 'expire' AND SUBSTR(ref, 1, 7) = 'expire:' GROUP BY 1"
)
_REFUNDED = "SELECT task_id FROM points_ledger WHERE kind = 'refund'"
_USED_BY_LOT = (
    "SELECT u.lot_id, SUM(u.points) AS points FROM points_lot_uses u"  # noqa: S608
    f" LEFT JOIN ({_REFUNDED}) r ON r.task_id = u.task_id WHERE r.task_id IS NULL GROUP BY u.lot_id"
)
_REPLACED = "SELECT origin_lot_id AS lot_id, SUM(granted) AS points FROM points_lots GROUP BY origin_lot_id"
_REMAINING = (
    "SELECT user_id, SUM(remaining) AS points, MIN(expires_at) AS next_expiry FROM points_lots"
    " WHERE remaining > 0 GROUP BY user_id"
)
_USED_BY_TASK = "SELECT task_id, SUM(points) AS points FROM points_lot_uses WHERE task_id > 0 GROUP BY task_id"
# An adjustment stands in place of a task, as its negative id.
_USED_BY_ENTRY = (
    "SELECT -u.task_id AS entry_id, MIN(l.user_id) AS user_id, MAX(l.user_id) AS last_user_id, SUM(u.points) AS points"
    " FROM points_lot_uses u LEFT JOIN points_lots l ON l.id = u.lot_id WHERE u.task_id <= 0 GROUP BY u.task_id"
)

LOT_CHECKS: tuple[tuple[str, str, str], ...] = (
    (
        "I12",
        "a lot holds no negative amount and not more than was granted",
        "SELECT * FROM points_lots WHERE granted <= 0 OR remaining < 0 OR expired < 0 OR remaining + expired > granted",
    ),
    (
        "I12",
        "the points in a user's lots are part of the available points",
        f"SELECT l.user_id, l.points, a.available FROM ({_REMAINING}) l"  # noqa: S608
        " LEFT JOIN points_accounts a ON a.user_id = l.user_id WHERE a.user_id IS NULL OR l.points > a.available",
    ),
    (
        "I12",
        "a lot's granted points remain, have expired, are used by tasks or were moved to replacement lots",
        f"SELECT l.*, u.points AS used, r.points AS replaced FROM points_lots l"  # noqa: S608
        f" LEFT JOIN ({_USED_BY_LOT}) u ON u.lot_id = l.id LEFT JOIN ({_REPLACED}) r ON r.lot_id = l.id"
        " WHERE l.granted <> l.remaining + l.expired + COALESCE(u.points, 0) + COALESCE(r.points, 0)",
    ),
    (
        "I12",
        "next_expiry of an account is the earliest expiry of its lots with points",
        f"SELECT a.user_id, a.next_expiry, l.next_expiry AS lots_next_expiry FROM points_accounts a"  # noqa: S608
        f" LEFT JOIN ({_REMAINING}) l ON l.user_id = a.user_id"
        " WHERE (a.next_expiry IS NULL) <> (l.next_expiry IS NULL) OR a.next_expiry <> l.next_expiry",
    ),
    (
        "I12",
        "a lot comes from a grant of its points, or from an expired lot of the same user",
        "SELECT l.* FROM points_lots l LEFT JOIN points_ledger e ON e.ref = l.ref"
        " LEFT JOIN points_lots o ON o.id = l.origin_lot_id WHERE (l.ref IS NULL) = (l.origin_lot_id IS NULL)"
        " OR (l.ref IS NOT NULL AND (e.id IS NULL OR e.kind <> 'grant' OR e.user_id <> l.user_id"
        " OR e.points <> l.granted)) OR (l.origin_lot_id IS NOT NULL AND (o.id IS NULL OR o.user_id <> l.user_id"
        # The database's clock may have been set back after the origin lot expired, hence `expired = 0`.
        " OR (o.expired = 0 AND o.expires_at > l.created_at)))",
    ),
    (
        "I12",
        "the expired points of a lot equal its single expiry entry",
        f"SELECT l.id, l.user_id, l.expired, e.points AS in_ledger, e.n FROM points_lots l"  # noqa: S608
        f" LEFT JOIN ({_EXPIRY_ENTRIES}) e ON e.lot_id = l.id"
        " WHERE l.expired <> COALESCE(e.points, 0) OR e.n <> 1 OR e.user_id <> l.user_id",
    ),
    (
        "I12",
        "the lot of an expiry entry exists",
        f"SELECT e.lot_id, e.user_id, e.points FROM ({_EXPIRY_ENTRIES}) e"  # noqa: S608
        " LEFT JOIN points_lots l ON l.id = e.lot_id WHERE l.id IS NULL",
    ),
    (
        "I12",
        "an expiry entry names a lot and deducts points",
        "SELECT * FROM points_ledger WHERE kind = 'expire'"
        " AND (ref IS NULL OR SUBSTR(ref, 1, 7) <> 'expire:' OR points >= 0)",
    ),
    (
        "I12",
        "a task uses not more points of lots than its price",
        f"SELECT u.task_id, u.points, t.task_no, t.points_cost FROM ({_USED_BY_TASK}) u"  # noqa: S608
        " LEFT JOIN tasks t ON t.id = u.task_id WHERE t.id IS NULL OR u.points > t.points_cost",
    ),
    (
        "I12",
        "the lot that a task used exists and has the same user",
        "SELECT u.*, t.user_id, l.user_id AS lot_user_id FROM points_lot_uses u"
        " LEFT JOIN tasks t ON t.id = u.task_id LEFT JOIN points_lots l ON l.id = u.lot_id"
        " WHERE l.id IS NULL OR t.user_id <> l.user_id OR u.points <= 0",
    ),
    (
        "I12",
        "an adjustment uses lots of its own user, and not more points than it takes",
        f"SELECT u.*, e.kind, e.user_id AS entry_user_id, e.points AS taken FROM ({_USED_BY_ENTRY}) u"  # noqa: S608
        " LEFT JOIN points_ledger e ON e.id = u.entry_id WHERE e.id IS NULL OR e.kind <> 'adjust'"
        " OR e.user_id <> u.user_id OR e.user_id <> u.last_user_id OR u.points > -e.points",
    ),
)

_CODE_GRANTS = (
    f"SELECT {_CODE_ID_IN_REF} AS code_id, MIN(user_id) AS user_id, COUNT(*) AS n, SUM(points) AS points"  # noqa: S608
    " FROM points_ledger WHERE kind = 'grant' AND SUBSTR(ref, 1, 5) = 'code:' GROUP BY 1"
)
_CODE_LOTS = (
    f"SELECT {_CODE_ID_IN_REF} AS code_id, MIN(id) AS id FROM points_lots"  # noqa: S608
    " WHERE SUBSTR(ref, 1, 5) = 'code:' GROUP BY 1"
)

CODE_CHECKS: tuple[tuple[str, str, str], ...] = (
    (
        "I13",
        "a redeemed code has exactly one grant, of its points and to its user; any other code has none",
        f"SELECT c.id, c.batch, c.prefix, c.points, c.redeemed_by, g.n, g.user_id, g.points AS granted"  # noqa: S608
        f" FROM redeem_codes c LEFT JOIN ({_CODE_GRANTS}) g ON g.code_id = c.id"
        " WHERE (c.redeemed_by IS NULL AND g.n IS NOT NULL) OR (c.redeemed_by IS NOT NULL"
        " AND (g.n IS NULL OR g.n <> 1 OR g.user_id <> c.redeemed_by OR g.points <> c.points))",
    ),
    (
        "I13",
        "the code of a grant by code exists",
        f"SELECT g.* FROM ({_CODE_GRANTS}) g LEFT JOIN redeem_codes c ON c.id = g.code_id WHERE c.id IS NULL",  # noqa: S608
    ),
    (
        "I13",
        "a redeemed code with lot_days has a lot, and one without has none",
        f"SELECT c.id, c.batch, c.prefix, c.lot_days, c.redeemed_by, l.id AS lot_id"  # noqa: S608
        f" FROM redeem_codes c LEFT JOIN ({_CODE_LOTS}) l ON l.code_id = c.id"
        " WHERE c.redeemed_by IS NOT NULL AND (c.lot_days IS NULL) <> (l.id IS NULL)",
    ),
)
