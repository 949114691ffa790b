"""SEE2AI's actions on this machine: same routes and schemas, real pictures and videos, and trouble on request.

A prompt asks for trouble with markers; so does, where there is no prompt, the query parameter `sandbox` of a
normalization's `image_url`. The whole tale, with examples, is in docs/sandbox.md; the grammar
is in markers.py. Clauses are separated by `;`, several markers may stand anywhere, words are case-blind, and a word
that is not understood is refused with 422. COUNT is `once`, `twice`, `N times` or `always` (the default),
counted per distinct prompt for submit, per task for poll and result. CODE is 400 to 599.

    [[sandbox: submit fail 503 twice retry-after 3 detail list "a reason"; take 2]]

    submit | poll | result   [fail] CODE [COUNT] [retry-after N] [detail FORM] ["text"]
    submit | poll | result   hang [SECONDS] | reset | html | gzip-bomb | huge | drip | redirect URL   [COUNT]
    submit | poll            malformed | wrapped   [COUNT]
    submit                   no-task-id | reuse-task-id   [COUNT]
    poll                     wrong-task-id   [COUNT]
    result                   not-an-image | svg | webp | empty | truncated | pixel-bomb
                             | lies-about-length [BYTES] | content-type TYPE   [COUNT]
    result                   expires SECONDS | private | url URL
    take SECONDS             never finish             end WORD ["reason"]     state WORD
    progress 10,40,80        field state|status|both  success without url [COUNT]     images N
    approval SECONDS [granted]                        place image_url|final_url|provider_final_url
    size BYTES

FORM is string, list, error.message, message, error_message, not-json, html or needs-repair. Whatever but `fail`
happens at submit, the job was accepted. POST /control makes the same troubles without a prompt, and those of an
upload (`upload …`, with the troubles that submit and poll have in common). `place` is UniWorld's, `size` the video's.
"""

from app.sandbox.app import create_sandbox

__all__ = ["create_sandbox"]
