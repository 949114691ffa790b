"""A submit may carry a key: the same key is the same task, by a unique index."""

import sqlalchemy as sa
from alembic import op

from migrations.types import binary_string

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

INDEX = "uq_tasks_user_id_idempotency_key"


def upgrade() -> None:
    op.add_column("tasks", sa.Column("idempotency_key", binary_string(128), nullable=True))
    op.add_column("tasks", sa.Column("idempotency_digest", sa.String(length=64), nullable=True))
    op.create_index(INDEX, "tasks", ["user_id", "idempotency_key"], unique=True)


def downgrade() -> None:
    op.drop_index(INDEX, "tasks")
    op.drop_column("tasks", "idempotency_digest")
    op.drop_column("tasks", "idempotency_key")
