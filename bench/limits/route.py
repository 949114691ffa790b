"""The limit of a read: a FastAPI route that answers the same bytes, with uvicorn's options of the gateway.

    python -m bench.limits.route PORT FILE

FILE holds a JSON object: a path, and the text of its answer. Credentials are not read.
"""

import json
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response

from app.api.server.options import OPTIONS


def make_app(answers: dict[str, str]) -> FastAPI:
    app = FastAPI()
    for path, answer in answers.items():
        body = answer.encode()

        @app.get(path)
        async def route(body: bytes = body) -> Response:
            return Response(body, media_type="application/json")

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(json.loads(Path(sys.argv[2]).read_text())), port=int(sys.argv[1]), **OPTIONS)
