"""Points: models and their prices, the ledger, balances, and the audit that proves the books."""
