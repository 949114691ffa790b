"""The prices that tests expect. Test databases get them after the migrations.

So a release that changes a price changes only the tests of the release: `tests/migrations/test_catalog.py` and
`tests/test_pricing_doc.py`, which read the migrated rows.
"""

import asyncio

from tests.support.sql import run_sql

TEST_PRICES = {"sc_soraimg_text": 30, "sc_soraimg_img2img": 35, "sc_uniworld_text": 80, "sc_image_normalize": 1}
"""Points by the start of the model's name. Videos keep their price rules."""


def set_test_prices(url: str) -> None:
    """Writes the prices into the migrated database at `url`."""
    statements = [
        f"UPDATE points_config SET points_cost = {points}, price_rules = NULL"
        f" WHERE SUBSTR(model_name, 1, {len(start)}) = '{start}'"
        for start, points in TEST_PRICES.items()
    ]
    asyncio.run(run_sql(url, *statements))
