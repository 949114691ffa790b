"""Erasure: works, prompts and files go; the ledger and the numbers of the tasks stay."""

from app.tasks.erasure.user import UserErasure, continue_erasures, erase_user
from app.tasks.erasure.works import erase_task

__all__ = ["UserErasure", "continue_erasures", "erase_task", "erase_user"]
