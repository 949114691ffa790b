"""The gateway without one of its protections, and the violation that the simulator must report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from app import aio
from app.accounts.keys import budgets, caps
from app.engine import claim, execute, finish, state, transitions
from app.engine.steps import prepare, submit
from app.points import group_deduct
from app.tasks import cancel
from app.tasks.submit import batch
from app.tasks.submit import submit as submit_task
from app.upstreams.see2ai import client, responses
from tests.simulator.surgery import Edit, mutated
from tests.simulator.world import simulate


@dataclass(frozen=True)
class Mutant:
    """`expected` are prefixes of the violations that count; `storm` are the faults that show one soonest.

    If `storm` names a place, processes are killed and frozen only there.
    """

    name: str
    edits: tuple[Edit, ...]
    expected: tuple[str, ...]
    without: str = ""
    storm: Mapping[str, float] = field(default_factory=dict)
    first_seed: int = 0
    """The hunt begins here: for a rare one, shortly before a seed that is known to show it."""


UNFENCED: Edit = (
    claim,
    "fenced_update",
    "(tasks.c.id == task.id) & (tasks.c.version == task.version)",
    "tasks.c.id == task.id",
)
STALE_ENDS: Edit = (finish, "finish_task", "            return False\n", "            pass\n")
ONE_CLOSE = "CONSTRAINT uq_points_ledger_task_id_phase UNIQUE (task_id, phase), "
ONE_JOB = "CONSTRAINT uq_tasks_action_upstream_task_id UNIQUE (action, upstream_task_id), "
FREEZES = MappingProxyType({"process.freeze_long": 0.03, "point.freeze": 0.15})
LONG_FREEZES = MappingProxyType({"process.freeze_long": 0.06})
CRASHES = MappingProxyType({"process.kill": 0.01, "point.kill": 0.1})
UNANSWERED = MappingProxyType({"db.commit_undone": 0.2, "db.commit_unheard": 0.1})
LAST_OF_STORE = """\
            entries = [one.entry | {"task_id": one.row["id"]} for one in accepted if one.entry is not None]
            await write_deductions(connection, accounts.values(), entries)
            failpoint("submit.before_commit")
"""
BOOKS = ("audit I1", "I1", "audit I3", "audit I4", "I4", "audit I5")

MUTANTS = (
    Mutant("fenced_update without its fence", (UNFENCED,), ("bug", "I6", "I8", "audit I8", *BOOKS), storm=FREEZES),
    Mutant(
        "release without its fence",
        (
            (
                claim,
                "_RELEASE",
                'tasks.c.version == _releases.c.version,\n        tasks.c.step == bindparam("b_step"),',
                'bindparam("b_step") == bindparam("b_step"),',
            ),
        ),
        ("I6", "I8", "bug: release_failed"),
        storm=FREEZES,
    ),
    Mutant(
        "release by the version alone",
        ((claim, "_RELEASE", 'tasks.c.step == bindparam("b_step")', 'bindparam("b_step") == bindparam("b_step")'),),
        ("bug: release_failed",),
        storm={"db.commit_undone": 0.5, "db.slow": 0.3},
        first_seed=200,
    ),
    Mutant(
        "release by the step alone",
        ((claim, "_RELEASE", "tasks.c.version == _releases.c.version", "tasks.c.version > 0"),),
        ("I6", "I8"),
        storm=FREEZES,
    ),
    Mutant(
        "UNIQUE (task_id, phase) dropped, and a lost race refunds all the same",
        (STALE_ENDS,),
        ("audit I4", "I4"),
        ONE_CLOSE,
        storm=LONG_FREEZES,
    ),
    Mutant("an end that lost its race refunds all the same", (STALE_ENDS,), ("bug", *BOOKS), storm=LONG_FREEZES),
    Mutant(
        "is_held is always true",
        ((state, "ClaimedTask.is_held", "boottime() < self.held_until", "True"),),
        ("I8",),
        storm={"submit.after_intent": 1, "point.freeze": 0.5},
    ),
    Mutant(
        "the lease is not asked for again once the connection stands",
        ((client, "See2aiClient.submit", "_Attempt(may_send)", "_Attempt(lambda: True)"),),
        ("I8",),
        storm={"up.connect": 1, "process.freeze_long": 0.5},
    ),
    Mutant(
        "no intent before sending",
        (
            (
                submit,
                "submit",
                'await commit_intent(Advance("submitting", f"sending to {action.provider}", update=update))',
                "pass",
            ),
        ),
        ("I8",),
    ),
    Mutant(
        "no sweeper: a row with a lease on it is never found",
        (
            (
                claim,
                "_is_due",
                "(tasks.c.next_run_at <= utc_now())",
                "tasks.c.lease_until.is_(None) & (tasks.c.next_run_at <= utc_now())",
            ),
        ),
        ("I9",),
        storm=CRASHES,
    ),
    Mutant(
        "a claim does not look again whether the row is due",
        (
            (
                claim,
                "claim_due",
                "row.next_run_at <= row.now and row.step in task_filter.steps",
                "row.step in task_filter.steps",
            ),
        ),
        ("I8",),
        storm={"db.slow": 0.3, "up.accept_slow": 0.6, "redis.rings_ten_times": 0.5},
        first_seed=120,
    ),
    Mutant(
        "a claim does not raise the version",
        (
            (claim, "_CLAIM", "        (tasks.c.version, tasks.c.version + 1),\n", ""),
            (claim, "_claimed_task", 'columns["version"] += 1', 'columns["version"] += 0'),
        ),
        ("I6", "I8"),
    ),
    Mutant(
        "no intent before normalizing",
        ((prepare, "_normalize", "        if is_first:\n", "        if False:\n"),),
        ("I8",),
        storm={"up.accept_slow": 0.9},
    ),
    Mutant(
        "found submitting, it is sent again",
        (
            (
                transitions,
                "before_step",
                "return Fail(TaskFailure.UPSTREAM_UNCERTAIN,"
                ' "the worker that was sending never came back", is_orphan=True)',
                'task.step = "submit"',
            ),
        ),
        ("I8",),
        storm=CRASHES,
    ),
    Mutant(
        "an answer lost after sending is taken for not sent",
        (
            (
                transitions,
                "after_submit",
                "return Fail(TaskFailure.UPSTREAM_UNCERTAIN, result.detail, is_orphan=True)",
                "return _submit_again(task, result, task.upstream_state)",
            ),
        ),
        ("I8",),
        storm={"up.accept_lost": 0.5},
    ),
    Mutant(
        "a suspected orphan is not flagged",
        ((transitions, "after_submit", "result.detail, is_orphan=True", "result.detail"),),
        ("I8",),
        storm={"up.accept_lost": 0.5},
    ),
    Mutant(
        "an unheard COMMIT of the intent is believed",
        ((execute, "_was_committed", "return tuple(found.one()) == (task.version + 1, step)", "return True"),),
        ("I8",),
        storm=UNANSWERED,
    ),
    Mutant(
        "an unheard COMMIT of a submit is believed",
        (
            (
                batch,
                "_store",
                'if accepted and not await find_stored(runtime, [one.row["task_no"] for one in accepted]):\n'
                "            raise",
                "pass",
            ),
        ),
        ("I7",),
        storm=UNANSWERED,
    ),
    Mutant(
        "the money of an end in a transaction of its own",
        (
            (
                finish,
                "finish_task",
                "            await refund_task(connection,",
                "            async with runtime.database.begin() as other:\n                await refund_task(other,",
            ),
        ),
        BOOKS,
        storm=CRASHES,
    ),
    Mutant(
        "the deduction in a transaction of its own",
        (
            (
                batch,
                "_store",
                "            await write_deductions(",
                "        async with runtime.database.begin() as connection:\n            await write_deductions(",
            ),
        ),
        BOOKS,
        storm=CRASHES,
    ),
    Mutant(
        "a repeated submit is not recognised by its key",
        ((submit_task, "submit_task", "if submission.key is not None and", "if False and"),),
        ("I7", "bug"),
        storm={"point.kill": 0.3},
    ),
    Mutant(
        "an entry of one submit is missing from a batch",
        ((group_deduct, "write_deductions", "_INSERT_ENTRIES, entries)", "_INSERT_ENTRIES, entries[:1])"),),
        BOOKS,
    ),
    Mutant(
        "a refused submit of a batch is charged",
        (
            (
                batch,
                "_accept",
                "    check_bounds(runtime.settings, counts)\n",
                "    account.deduct(cost, candidate.remark)\n    check_bounds(runtime.settings, counts)\n",
            ),
        ),
        BOOKS,
    ),
    Mutant(
        "two submits of one user decide on the same balance",
        ((group_deduct, "LockedAccount.deduct", "    self.available -= cost\n", ""),),
        ("bug", *BOOKS),
    ),
    Mutant(
        "a cap in a transaction of its own",
        (
            (
                batch,
                "_store",
                "            await budgets.write(connection)\n" + LAST_OF_STORE,
                LAST_OF_STORE + "        async with runtime.database.begin() as connection:\n"
                "            await budgets.write(connection)\n",
            ),
        ),
        ("audit I17",),
        storm=CRASHES,
    ),
    Mutant(
        "a cap is not compared",
        ((caps, "Counter.check", "if cost and cap is not None and spent + cost > cap:", "if False:"),),
        ("I17",),
    ),
    Mutant(
        "a refund does not give the cap back",
        ((budgets, "release_budget", '"refund": refund}', '"refund": 0}'),),
        ("audit I17",),
    ),
    Mutant(
        "an answer before the COMMIT",
        (
            (
                batch,
                "_store",
                "        async with runtime.database.begin() as connection:\n",
                "        import asyncio\n"
                "        opened = runtime.database.begin()\n"
                "        connection = await opened.__aenter__()\n"
                "        loop = asyncio.get_running_loop()\n"
                "        loop.call_later(1, lambda: loop.create_task(opened.__aexit__(None, None, None)))\n"
                "        if True:\n",
            ),
        ),
        ("I7",),
        storm=CRASHES,
    ),
    Mutant(
        "the answer of one caller is given to another",
        ((aio, "Batcher._answer", "zip(batch, answers, strict=True)", "zip(batch, answers[::-1], strict=True)"),),
        ("I7",),
    ),
    Mutant(
        "no last look: a poll never ends at the deadline",
        ((transitions, "after_poll", "isinstance(decision, Release) and is_last_poll", "False"),),
        ("I9",),
        storm={"job.endless": 0.5},
    ),
    Mutant(
        "a task that takes its worker down is tried for ever",
        ((transitions, "before_step", "task.crashes >= MAX_CRASHES", "False"),),
        ("I9",),
        storm={"event.poison": 1.0},
    ),
    Mutant(
        "an answer about another job is believed",
        ((responses, "read_poll", "other_id is not None and str(other_id) != task_id", "False"),),
        ("I11",),
        storm={"up.poll_other_id": 0.5},
    ),
    Mutant("UNIQUE (action, upstream_task_id) dropped", (), ("audit I8",), ONE_JOB, storm={"up.reused_id": 0.7}),
    Mutant(
        "a cancel does not raise the version",
        ((cancel, "_cancel", "version=row.version + 1", "version=row.version"),),
        ("I6", "I8"),
    ),
    Mutant(
        "a cancel at any step",
        ((cancel, "_cancel", "if row.step not in CANCELLABLE:", 'if row.step == "done":'),),
        ("I8", "I6"),
        storm={"up.accept_slow": 0.6},
    ),
)


MAX_SEEDS = 600  # the rarest showed in one of fifty seeds


def hunt(which: int) -> tuple[int, str] | None:
    """The first seed that shows a violation of the mutant, and the violation. None if no seed does."""
    mutant = MUTANTS[which]
    with mutated(mutant.edits):
        for seed in range(mutant.first_seed, mutant.first_seed + MAX_SEEDS):
            outcome = simulate(seed, without=mutant.without, storm=mutant.storm)
            for violation in outcome.violations:
                if violation.startswith(mutant.expected):
                    return seed, violation
    return None
