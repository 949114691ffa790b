"""What a user's tasks changed since a moment, found without reading them all."""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

INDEX = "ix_tasks_changed"


def upgrade() -> None:
    op.create_index(INDEX, "tasks", ["user_id", "updated_at"])


def downgrade() -> None:
    op.drop_index(INDEX, "tasks")
