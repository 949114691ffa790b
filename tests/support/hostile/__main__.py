"""Runs attacks one after the other and prints, as JSON, the answers and what else each found."""

import argparse
import asyncio
import json

from tests.support.hostile.attacks import ATTACKS, Attacker


async def run(options: argparse.Namespace) -> None:
    for name in options.attacks:
        headers = {"Authorization": f"Bearer {options.token}"}
        me = Attacker(options.origin, headers, options.seconds, options.receiver_port)
        async with me.client:
            await ATTACKS[name](me)
        print(json.dumps({"attack": name, "answers": me.answers, "facts": me.facts}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.hostile", description=__doc__)
    parser.add_argument("--origin", required=True)
    parser.add_argument("--token", required=True)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each attack")
    parser.add_argument("--receiver-port", type=int, default=0, help="where the attacker receives webhooks")
    parser.add_argument("attacks", nargs="+", choices=ATTACKS)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
