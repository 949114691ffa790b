"""What must hold of points that expire and of redeemed codes, as SQL that must find nothing; `audit` runs it, too."""

# How a lot's number stands behind the colon of a reference. SIGNED is understood by MySQL, MariaDB and SQLite alike;
# of SUBSTR all think the same, while LIKE ignores case on SQLite.
_LOT_OF_REF = "CAST(SUBSTR(ref, 8) AS SIGNED)"
_LAPSES = (
    f"SELECT {_LOT_OF_REF} AS lot_id, MIN(user_id) AS user_id, COUNT(*) AS n, SUM(-points) AS points"  # noqa: S608
    " FROM points_ledger WHERE kind = 'expire' AND SUBSTR(ref, 1, 7) = 'expire:' GROUP BY 1"
)
_REFUNDED = "SELECT task_id FROM points_ledger WHERE kind = 'refund'"
_OUT = (
    "SELECT u.lot_id, SUM(u.points) AS points FROM points_lot_uses u"  # noqa: S608
    f" LEFT JOIN ({_REFUNDED}) r ON r.task_id = u.task_id WHERE r.task_id IS NULL GROUP BY u.lot_id"
)
_GRACES = "SELECT origin_lot_id AS lot_id, SUM(granted) AS points FROM points_lots GROUP BY origin_lot_id"
_LIVE = (
    "SELECT user_id, SUM(remaining) AS points, MIN(expires_at) AS soonest FROM points_lots"
    " WHERE remaining > 0 GROUP BY user_id"
)
_USED = "SELECT task_id, SUM(points) AS points FROM points_lot_uses GROUP BY task_id"

LOT_CHECKS: tuple[tuple[str, str, str], ...] = (
    (
        "I12",
        "a lot holds no less than nothing and no more than was granted",
        "SELECT * FROM points_lots WHERE granted <= 0 OR remaining < 0 OR expired < 0 OR remaining + expired > granted",
    ),
    (
        "I12",
        "what is left in a user's lots is part of what they can spend",
        f"SELECT l.user_id, l.points, a.available FROM ({_LIVE}) l"  # noqa: S608
        " LEFT JOIN points_accounts a ON a.user_id = l.user_id WHERE a.user_id IS NULL OR l.points > a.available",
    ),
    (
        "I12",
        "what a lot was granted remains, has expired, is out with tasks or lives on in lots of grace",
        f"SELECT l.*, o.points AS out_with_tasks, g.points AS in_grace FROM points_lots l"  # noqa: S608
        f" LEFT JOIN ({_OUT}) o ON o.lot_id = l.id LEFT JOIN ({_GRACES}) g ON g.lot_id = l.id"
        " WHERE l.granted <> l.remaining + l.expired + COALESCE(o.points, 0) + COALESCE(g.points, 0)",
    ),
    (
        "I12",
        "an account knows when the soonest of its lots with points is due",
        f"SELECT a.user_id, a.next_expiry, l.soonest FROM points_accounts a"  # noqa: S608
        f" LEFT JOIN ({_LIVE}) l ON l.user_id = a.user_id"
        " WHERE (a.next_expiry IS NULL) <> (l.soonest IS NULL) OR a.next_expiry <> l.soonest",
    ),
    (
        "I12",
        "a lot comes from a grant of its points, or from a lapsed lot of the same user",
        "SELECT l.* FROM points_lots l LEFT JOIN points_ledger e ON e.ref = l.ref"
        " LEFT JOIN points_lots o ON o.id = l.origin_lot_id WHERE (l.ref IS NULL) = (l.origin_lot_id IS NULL)"
        " OR (l.ref IS NOT NULL AND (e.id IS NULL OR e.kind <> 'grant' OR e.user_id <> l.user_id"
        " OR e.points <> l.granted)) OR (l.origin_lot_id IS NOT NULL AND (o.id IS NULL OR o.user_id <> l.user_id"
        " OR (o.expired = 0 AND o.expires_at > l.created_at)))",  # of one that expired the clock may have been set back
    ),
    (
        "I12",
        "what has expired of a lot is told by its one entry",
        f"SELECT l.id, l.user_id, l.expired, e.points AS told, e.n FROM points_lots l"  # noqa: S608
        f" LEFT JOIN ({_LAPSES}) e ON e.lot_id = l.id"
        " WHERE l.expired <> COALESCE(e.points, 0) OR e.n <> 1 OR e.user_id <> l.user_id",
    ),
    (
        "I12",
        "an entry of expiry has its lot",
        f"SELECT e.lot_id, e.user_id, e.points FROM ({_LAPSES}) e"  # noqa: S608
        " LEFT JOIN points_lots l ON l.id = e.lot_id WHERE l.id IS NULL",
    ),
    (
        "I12",
        "an entry of expiry names a lot and takes points",
        "SELECT * FROM points_ledger WHERE kind = 'expire'"
        " AND (ref IS NULL OR SUBSTR(ref, 1, 7) <> 'expire:' OR points >= 0)",
    ),
    (
        "I12",
        "a task takes from lots no more than its price",
        f"SELECT u.task_id, u.points, t.task_no, t.points_cost FROM ({_USED}) u"  # noqa: S608
        " LEFT JOIN tasks t ON t.id = u.task_id WHERE t.id IS NULL OR u.points > t.points_cost",
    ),
    (
        "I12",
        "what a task took has its lot, of the same user",
        "SELECT u.*, t.user_id, l.user_id AS lot_user_id FROM points_lot_uses u"
        " LEFT JOIN tasks t ON t.id = u.task_id LEFT JOIN points_lots l ON l.id = u.lot_id"
        " WHERE l.id IS NULL OR t.user_id <> l.user_id OR u.points <= 0",
    ),
)

_BY_CODE = (
    "SELECT CAST(SUBSTR(ref, 6) AS SIGNED) AS code_id, MIN(user_id) AS user_id, COUNT(*) AS n, SUM(points) AS points"
    " FROM points_ledger WHERE kind = 'grant' AND SUBSTR(ref, 1, 5) = 'code:' GROUP BY 1"
)
_LOT_OF_CODE = (
    "SELECT CAST(SUBSTR(ref, 6) AS SIGNED) AS code_id, MIN(id) AS id FROM points_lots"
    " WHERE SUBSTR(ref, 1, 5) = 'code:' GROUP BY 1"
)

CODE_CHECKS: tuple[tuple[str, str, str], ...] = (
    (
        "I13",
        "a redeemed code has exactly one grant, of its points and to who redeemed it; any other has none",
        f"SELECT c.id, c.batch, c.prefix, c.points, c.redeemed_by, g.n, g.user_id, g.points AS granted"  # noqa: S608
        f" FROM redeem_codes c LEFT JOIN ({_BY_CODE}) g ON g.code_id = c.id"
        " WHERE (c.redeemed_by IS NULL AND g.n IS NOT NULL) OR (c.redeemed_by IS NOT NULL"
        " AND (g.n IS NULL OR g.n <> 1 OR g.user_id <> c.redeemed_by OR g.points <> c.points))",
    ),
    (
        "I13",
        "a grant by code has its code",
        f"SELECT g.* FROM ({_BY_CODE}) g LEFT JOIN redeem_codes c ON c.id = g.code_id WHERE c.id IS NULL",  # noqa: S608
    ),
    (
        "I13",
        "the points of a redeemed code have a lot where they live for some days, and none where they live for ever",
        f"SELECT c.id, c.batch, c.prefix, c.lot_days, c.redeemed_by, l.id AS lot_id"  # noqa: S608
        f" FROM redeem_codes c LEFT JOIN ({_LOT_OF_CODE}) l ON l.code_id = c.id"
        " WHERE c.redeemed_by IS NOT NULL AND (c.lot_days IS NULL) <> (l.id IS NULL)",
    ),
)
