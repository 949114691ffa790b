"""Points: the ledger, lots that expire, balances, redeem codes, and the audit."""
