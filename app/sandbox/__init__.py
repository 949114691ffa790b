"""SEE2AI's actions on this machine: same routes and schemas, real images and videos, and faults on request.

A prompt asks for faults with directives, such as `[[sandbox: {"fail": 503, "times": 2}]]`. `POST /control` takes the
same rules without a prompt. docs/sandbox.md explains all rules with examples; rules/rule.py defines them.
"""

from app.sandbox.app import create_sandbox

__all__ = ["create_sandbox"]
