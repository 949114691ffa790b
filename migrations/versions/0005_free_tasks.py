"""An index that counts a user's running tasks, and the newest tasks that ended without being paid for, by their code.

It takes the place of `ix_tasks_live`, which could count the running tasks only.
"""

from migrations.ddl import create_index, drop_index

revision = "v1_free_tasks"
down_revision = "v1_models"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_index("ix_tasks_ended", "tasks", ["user_id", "error_code", "completed_at"])
    drop_index("ix_tasks_live", "tasks")


def downgrade() -> None:
    create_index("ix_tasks_live", "tasks", ["user_id", "completed_at"])
    drop_index("ix_tasks_ended", "tasks")
