"""Submits of tasks: the price, the stored task and its deduction, in a transaction that submits share.

`submit.py` is what callers use. `batch.py` stores many submits in one transaction, `single.py` one. `task_row.py` makes
the row of a task.
"""

from app.tasks.submit.outcome import SubmitResult
from app.tasks.submit.submit import quote_task, submit_task
from app.tasks.submit.task_row import new_task_row

__all__ = ["SubmitResult", "new_task_row", "quote_task", "submit_task"]
