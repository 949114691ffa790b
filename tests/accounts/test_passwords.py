"""Passwords: which may be chosen, how they are hashed, and that nobody can fill the machine with hashes."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from argon2 import PasswordHasher, Type, extract_parameters

from app.accounts.log_in import passwords
from app.accounts.log_in.passwords import check_password, hash_password, needs_rehash, verify_password
from app.errors import InvalidParameter, Unavailable

pytestmark = pytest.mark.anyio
GOOD = "correct horse battery"


@pytest.mark.parametrize(
    ("password", "problem"),
    [
        ("", "须为 8 到 128 个字符"),
        ("1234567", "须为 8 到 128 个字符"),
        ("x" * 129, "须为 8 到 128 个字符"),
        ("12345678", "过于常见，请换一个"),
        ("PassWord123", "过于常见，请换一个"),
        ("ｐａｓｓｗｏｒｄ", "过于常见，请换一个"),  # as an input method writes it
        ("woaini1314", "过于常见，请换一个"),
        ("Alice.Liddell", "不能与用户名相同"),
    ],
)
def test_a_password_that_is_easily_guessed_is_refused(password: str, problem: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        check_password("newPassword", password, "alice.liddell")
    assert refused.value.message == f"参数错误: newPassword {problem}"


@pytest.mark.parametrize("password", ["x7#kLm2!", "密码要长一点才好", "x" * 128, "🐈" * 8, GOOD])
def test_any_other_password_is_accepted(password: str) -> None:
    check_password("password", password, None)


def test_a_thousand_common_passwords_are_known() -> None:
    common = passwords._common_passwords()
    assert len(common) == 1000
    assert all(passwords.MIN_LENGTH <= len(one) <= passwords.MAX_LENGTH and one == one.casefold() for one in common)


async def test_a_hash_is_argon2id_and_salted_and_verifies_its_own_password_only() -> None:
    first, second = await hash_password(GOOD, "a"), await hash_password(GOOD, "a")
    assert first != second
    assert len(first) <= 255
    parameters = extract_parameters(first)
    assert (parameters.type, parameters.memory_cost, parameters.time_cost) == (Type.ID, 19_456, 2)
    assert await verify_password(GOOD, first, "a")
    for wrong in (GOOD.upper(), GOOD + " ", "", "x" * 128):
        assert not await verify_password(wrong, first, "a")
    for broken in (None, "nonsense", "$argon2id$v=19$m=8,t=1,p=1$x$y", first[:-5]):
        assert not await verify_password(GOOD, broken, "a")


async def test_a_password_is_the_same_however_a_keyboard_writes_it() -> None:
    stored = await hash_password("caf\u00e9 \u30ab\u30d5\u30a7 1", "a")
    assert await verify_password("cafe\u0301 \uff76\uff8c\uff6a 1", stored, "a")


async def test_only_a_hash_of_other_parameters_is_made_again() -> None:
    assert not needs_rehash(await hash_password(GOOD, "a"))
    assert needs_rehash(PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(GOOD))


async def test_without_a_hash_the_work_is_the_same() -> None:
    impossible = extract_parameters(passwords._impossible_hash())
    assert impossible == extract_parameters(await hash_password(GOOD, "a"))


class Work:
    """Stands in for Argon2: each call waits until the test lets it go on."""

    def __init__(self) -> None:
        self.running = self.maximum = 0
        self.addresses: list[str] = []
        self.may_end = threading.Event()
        self._lock = threading.Lock()

    def of(self, address: str) -> Callable[[], None]:
        def run() -> None:
            with self._lock:
                self.running += 1
                self.maximum = max(self.maximum, self.running)
                self.addresses.append(address)
            self.may_end.wait(30)
            with self._lock:
                self.running -= 1

        return run

    async def started(self, number: int) -> None:
        while len(self.addresses) < number:
            await asyncio.sleep(0.005)


async def test_few_hashes_run_at_once_and_one_address_does_not_take_all_of_them() -> None:
    work = Work()
    greedy = [asyncio.create_task(passwords._run(work.of("greedy"), "greedy")) for _ in range(20)]
    await work.started(1)
    other = asyncio.create_task(passwords._run(work.of("other"), "other"))
    await work.started(2)
    assert work.addresses == ["greedy", "other"]
    work.may_end.set()
    await asyncio.gather(*greedy, other)
    assert work.maximum <= passwords.MAX_RUNNING
    assert passwords._waiting == 0


async def test_too_many_who_wait_are_refused_and_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "MAX_WAITING", 3)
    work = Work()
    waiting = [asyncio.create_task(passwords._run(work.of("a"), "a")) for _ in range(3)]
    await work.started(1)
    with pytest.raises(Unavailable) as refused:
        await hash_password(GOOD, "b")
    assert refused.value.retry_after_seconds == passwords.RETRY_AFTER_SECONDS
    waiting[2].cancel()
    work.may_end.set()
    done: list[Any] = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in done] == [type(None), type(None), asyncio.CancelledError]
    assert await verify_password(GOOD, await hash_password(GOOD, "a"), "a")
