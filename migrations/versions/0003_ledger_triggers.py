"""The ledger is append-only: the database refuses UPDATE and DELETE.

MySQL with binary logging allows triggers only to a privileged user, or with `log_bin_trust_function_creators=1`.
"""

from alembic import op

revision = "v1_ledger_triggers"
down_revision = "v1_tasks_and_webhooks"
branch_labels = None
depends_on = None

REFUSAL = {
    "mysql": "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'points_ledger is append-only'",
    "sqlite": "BEGIN SELECT RAISE(ABORT, 'points_ledger is append-only'); END",
}


def upgrade() -> None:
    downgrade()  # an earlier run may have created one of them
    refusal = REFUSAL["sqlite" if op.get_context().dialect.name == "sqlite" else "mysql"]
    op.execute(f"CREATE TRIGGER points_ledger_no_update BEFORE UPDATE ON points_ledger FOR EACH ROW {refusal}")
    op.execute(f"CREATE TRIGGER points_ledger_no_delete BEFORE DELETE ON points_ledger FOR EACH ROW {refusal}")


def downgrade() -> None:
    op.execute("DROP TRIGGER IF EXISTS points_ledger_no_update")
    op.execute("DROP TRIGGER IF EXISTS points_ledger_no_delete")
