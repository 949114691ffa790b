"""The ledger is append-only: the database refuses UPDATE and DELETE.

MySQL with binary logging wants `log_bin_trust_function_creators=1` or a privileged user for triggers.
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

VERBS = ("UPDATE", "DELETE")


def upgrade() -> None:
    is_sqlite = op.get_context().dialect.name == "sqlite"
    refusal = "SELECT RAISE(ABORT, 'points_ledger is append-only');"
    if not is_sqlite:
        refusal = "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'points_ledger is append-only';"
    for verb in VERBS:
        body = f"BEGIN {refusal} END" if is_sqlite else refusal.rstrip(";")
        op.execute(f"CREATE TRIGGER points_ledger_no_{verb.lower()} BEFORE {verb} ON points_ledger FOR EACH ROW {body}")


def downgrade() -> None:
    for verb in VERBS:
        op.execute(f"DROP TRIGGER points_ledger_no_{verb.lower()}")
