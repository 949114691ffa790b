"""Commands that administer a gateway: users, keys, points, redeem codes, models, tasks and the upstream account."""
