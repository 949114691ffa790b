"""How a route is found and called without FastAPI's own handler, which works out for each request what never changes.

FastAPI documents a `DirectRoute` by the signature of its endpoint, as any other route.
"""

import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from fastapi import Request, Response
from fastapi._compat import ModelField, field_annotation_is_scalar
from fastapi.routing import APIRoute
from pydantic_core import to_json
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.access.callers import Access, first_headers
from app.api.access.guests import Guest
from app.api.bodies import MISSING, read_json
from app.api.errors import describe_validation_error
from app.errors import InvalidParameter

_LAST_SEGMENT = re.compile(r"([^{}]*)/\{(\w+)\}")


class DirectRoute(APIRoute):
    """A route with an `Access` or a `Guest`. Its body is JSON, and is read only after that has let the caller in.

    An endpoint may have parameters of the path, the query and the headers, one JSON body, the `Request`, and a
    `Response` for headers of its answer. It returns an `Envelope` or a whole `Response`. An envelope is encoded as it
    is: only the tests compare it with its documented model.

    FastAPI reads the signature when the route is first used. All routes at the start would take a tenth of its time.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], *, methods: Iterable[str], **options: Any) -> None:
        self.path, self.endpoint, self.methods = path, endpoint, {method.upper() for method in methods}
        self.path_regex, self.path_format, self.param_convertors = compile_path(path)
        self._options = options

    def __getattr__(self, name: str) -> Any:
        """Called for an attribute that is not there: `APIRoute.__init__` adds the rest, once."""
        if "_options" not in self.__dict__:
            raise AttributeError(name)
        super().__init__(self.path, self.endpoint, methods=self.methods, **self.__dict__.pop("_options"))
        return getattr(self, name)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI calls this when it has read the endpoint's signature."""
        known = self.dependant
        accesses = [
            (one.name, one.call) for one in known.dependencies if isinstance(one.call, Access | Guest) and one.name
        ]
        if len(accesses) != 1 or len(known.dependencies) != 1:
            raise TypeError(f"{self.path}: a DirectRoute depends on one Access or Guest and on nothing else")
        if known.cookie_params or known.background_tasks_param_name or len(known.body_params) > 1:
            raise TypeError(f"{self.path}: a DirectRoute has neither cookies nor background tasks nor two bodies")
        ((self._context_name, self._access),) = accesses
        self._path, self._query = _Parameters("path", known.path_params), _Parameters("query", known.query_params)
        self._headers = _Parameters("header", known.header_params)
        self._body = known.body_params[0] if known.body_params else None
        self._request_name, self._response_name = known.request_param_name, known.response_param_name
        return self.respond

    async def respond(self, request: Request) -> Response:
        """The answer. Raises what `on_error` answers."""
        scope = request.scope
        arguments: dict[str, Any] = {self._context_name: await self._access(request)}
        sent = await read_json(request) if self._body is not None else None
        self._path.read(scope["path_params"], arguments)
        self._query.read(_query(scope["query_string"]), arguments)
        self._headers.read(first_headers(scope), arguments)
        if self._body is not None:
            arguments[self._body.name] = _validate(self._body, sent, ("body",))
        if self._request_name is not None:
            arguments[self._request_name] = request
        if self._response_name is None:
            return self.encode(await self.endpoint(**arguments))
        added = arguments[self._response_name] = Response()
        del added.headers["content-length"]
        answer = self.encode(await self.endpoint(**arguments))
        answer.raw_headers.extend(added.raw_headers)
        return answer

    def encode(self, result: Any) -> Response:
        return result if isinstance(result, Response) else Response(to_json(result), media_type="application/json")


class _Parameters:
    """Parameters of an endpoint from one place: the path, the query or the headers. Each is one value."""

    def __init__(self, place: str, fields: Sequence[ModelField]) -> None:
        if not all(field_annotation_is_scalar(field.field_info.annotation) for field in fields):
            raise TypeError(f"a DirectRoute reads no {place} parameter of several values")
        self._fields = [_Parameter(place, field) for field in fields]

    def read(self, received: Mapping[str, str], arguments: dict[str, Any]) -> None:
        """Adds each parameter to `arguments`. Raises InvalidParameter for the first wrong one."""
        for one in self._fields:
            sent = received.get(one.key, MISSING)
            has_default = sent is MISSING and one.default is not MISSING
            arguments[one.name] = one.default if has_default else _validate(one.field, sent, one.location)


class _Parameter:
    def __init__(self, place: str, field: ModelField) -> None:
        self.field, self.name = field, field.name
        self.key = field.alias.lower() if place == "header" else field.alias
        self.location = (place, field.alias)
        self.default = MISSING if field.field_info.is_required() else field.default


def _query(query_string: bytes) -> dict[str, str]:
    return dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)) if query_string else {}


def _validate(field: ModelField, sent: Any, location: tuple[str, ...]) -> Any:
    if sent is MISSING:
        raise InvalidParameter(*describe_validation_error({"type": "missing", "loc": location}))
    value, errors = field.validate(sent, loc=location)
    if errors:
        raise InvalidParameter(*describe_validation_error(errors[0]))
    return value


class DirectRouting:
    """Finds a `DirectRoute` by a look-up of its method and path, and leaves every other request to `app`.

    It knows the routes whose path is fixed, and those with one parameter, which is the last segment. A fixed path
    comes first.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[DirectRoute]) -> None:
        self._app = app
        self._fixed: dict[tuple[str, str], DirectRoute] = {}
        self._last: dict[tuple[str, str], tuple[DirectRoute, str]] = {}
        for route in routes:
            parameter = _LAST_SEGMENT.fullmatch(route.path)
            for method in route.methods or ():
                if "{" not in route.path:
                    self._fixed.setdefault((method, route.path), route)
                elif parameter is not None:
                    self._last.setdefault((method, parameter[1]), (route, parameter[2]))

    def find(self, method: str, path: str) -> tuple[DirectRoute, dict[str, str]] | None:
        """The route, and the parameters of its path."""
        route = self._fixed.get((method, path))
        if route is not None:
            return route, {}
        start, _, segment = path.rpartition("/")
        found = self._last.get((method, start))
        return (found[0], {found[1]: segment}) if found is not None and segment else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self.find(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        route, scope["path_params"] = found
        response = await route.respond(Request(scope, receive))
        await response(scope, receive, send)
