"""The edge: the way of one request over HTTP, from its head to the answer that its caller has taken."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, NoReturn, TypeAlias

import grpc
import grpc.aio
from aiohttp import web
from conversations.v1.item_pb2 import NewItem
from grpc_health.v1 import health_pb2

from server.authorization.audit_log import current_request
from server.errors import ItemNotFound, ServiceError, forget_frames
from server.http.answers import Answer, answer_of
from server.http.body import Body, SlowBodies
from server.http.connection import Connection
from server.http.context import HttpContext
from server.http.guards import Guards
from server.http.heads import read_query, request_id_of
from server.http.observe import HttpObserve
from server.http.openapi import DOCUMENT
from server.http.problems import Problem, RequestInvalid, invalid_url, wrong_method
from server.http.request import Request
from server.http.requests import read_document, unlocated
from server.http.routes import ROUTES, SERVICE, Route, Router
from server.http.sender import Sender
from server.interceptors import CallerChain
from server.interceptors.chain import Context, Interceptor
from server.interceptors.decode import outline
from server.interceptors.drain_gate import DrainGate
from server.interceptors.error_status import ErrorStatus
from server.observability.trace_context import current_trace, trace_of
from server.policy.principal import current_principal_key
from server.requests.large import LARGE_BYTES, current_size, run_sized
from server.requests.sizes import max_request_bytes
from server.requests.validation import validate
from server.services.conversations import ConversationsServicer
from server.settings.service import Settings
from server.store.response_budget import ResponseBudget, current_room, release_room
from server.transport.health import LIVENESS, READINESS, STARTUP, Health

Handler: TypeAlias = Callable[[Body, HttpContext], Awaitable[Answer]]

PROBES = {"/healthz": LIVENESS, "/readyz": READINESS, "/startupz": STARTUP}
OPENAPI = "/openapi.json"
_READ_ONLY = ("GET", "HEAD")


class HttpErrorStatus(ErrorStatus):
    """As over gRPC; the context makes the answer."""

    async def end(self, context: Context, error: ServiceError) -> NoReturn:
        """Ends a call with ``error``."""
        http: Any = context
        http.fail(error)
        raise AssertionError


@dataclass(frozen=True)
class Parts:
    """What the edge shares with the gRPC server.

    Attributes:
        servicer: The methods of the contract.
        chain: The interceptors of callers.
        drain_gate: Says when the process drains.
        health: Answers the probes.
        responses: The memory of large responses.
    """

    servicer: ConversationsServicer
    chain: CallerChain
    drain_gate: DrainGate
    health: Health
    responses: ResponseBudget


class Edge:
    """Answers requests.

    Args:
        settings: Of the service.
        parts: What it shares.
        tracing: The interceptor that traces, if any.

    Attributes:
        observe: Counts requests.
    """

    def __init__(self, settings: Settings, parts: Parts, tracing: Sequence[Interceptor] = ()) -> None:
        self._settings = settings
        self._parts = parts
        self._checks_tokens = settings.identity == "jwt"
        self._guards = Guards(settings.http_hosts if settings.identity == "none" else None)
        self._router = Router()
        self._slow_bodies = SlowBodies()
        self._sender = Sender(settings, parts.drain_gate)
        self.observe = HttpObserve(access_log=settings.access_log)
        interceptors = (*tracing, self.observe, HttpErrorStatus(), *parts.chain.shared)
        self._handlers = {route: self._handler(route, interceptors) for route in ROUTES}
        self._limits = {route: _max_bytes(route, settings.max_message_bytes) for route in ROUTES}

    async def handle(self, raw: web.BaseRequest) -> web.StreamResponse:
        """Answers a request, and returns when its caller has taken the answer."""
        connection = raw.protocol
        assert isinstance(connection, Connection)
        current_trace.set(_trace_of(raw) or token_hex(16))
        try:
            answer = await self._answer(raw, connection)
            return await self._sender.send(raw, connection, answer)
        finally:
            release_room()

    async def _answer(self, raw: web.BaseRequest, connection: Connection) -> Answer:
        began, path = time.perf_counter(), raw.rel_url.raw_path
        if path in PROBES and raw.method in _READ_ONLY:
            return await self._probe(PROBES[path])
        refusal = self._guards.refusal(raw, is_unix=connection.is_unix)
        if refusal is None and path == OPENAPI and raw.method in _READ_ONLY:
            return Answer(DOCUMENT)
        by_verb, places = self._router.find(path)
        route = by_verb.get(raw.method)
        if refusal is None and route is not None:
            body = Body(raw, self._limits[route])
            refusal = await self._early_refusal(body)
            if refusal is None:
                context = HttpContext(raw, connection, Request(raw.method, places), checks_tokens=self._checks_tokens)
                return await self._call(route, body, context)
        refusal = refusal or _not_served(raw.method, path, by_verb)
        self.observe.count(raw.method, route.path if route else "", refusal.status, time.perf_counter() - began)
        return answer_of(refusal)

    async def _early_refusal(self, body: Body) -> Problem | None:
        """Reads a body that is small; returns the answer to one that is refused before its caller is known."""
        if refusal := body.refusal(compressed=self._settings.compressed_requests):
            return refusal
        try:
            await body.read_early()
        except RequestInvalid as error:
            return error.problem
        return None

    async def _call(self, route: Route, body: Body, context: HttpContext) -> Answer:
        try:
            return await self._handlers[route](body, context)
        except grpc.aio.AbortError:
            assert context.problem
            return answer_of(context.problem)

    def _handler(self, route: Route, interceptors: Sequence[Interceptor]) -> Handler:
        """Returns what answers a route, inside of all interceptors."""

        async def call(body: Body, context: HttpContext) -> Answer:
            return await self._serve(route, body, context)

        handler: Any = grpc.unary_unary_rpc_method_handler(call)
        for interceptor in reversed(interceptors):
            handler = interceptor.wrap(route.method, handler)
        wrapped: Handler = handler.unary_unary
        return wrapped

    async def _serve(self, route: Route, body: Body, context: HttpContext) -> Answer:
        """Runs the method of a route for a caller who is known and allowed."""
        request = context.request
        _read_head(route, request, context)
        owner = context.peer() if self._settings.identity == "none" else current_principal_key()
        with self._parts.chain.bodies.growing_room(owner) as room:
            sent = [await body.read(room, self._slow_bodies)]
            size = len(sent[0])
            made = await run_sized(size, _try_make, route, request, sent)
            if isinstance(made, ServiceError):
                raise made
            message, references = made
            current_request.set(message if size <= LARGE_BYTES else outline(message))
            current_size.set(size)
            try:
                await self._locate(message, references, size)
                response = await self._run(route, message, context)
                answer = await self._encoded(route, response, request)
            except ServiceError as error:
                forget_frames(error)  # before the budget counts the request out
                raise
        context.status = answer.status
        return answer

    async def _run(self, route: Route, message: Any, context: HttpContext) -> Any:
        if route.run:
            return await route.run(self._parts.servicer, message, context)
        return await getattr(self._parts.servicer, route.name)(message, context)

    async def _locate(self, message: Any, references: Sequence[NewItem], size: int) -> None:
        """Finds the conversations of items that are referred to by their ids alone.

        Raises:
            ItemNotFound: There is none that the caller may read.
            FieldInvalid: The request breaks a rule of the contract.
        """
        if not references:
            return
        found = await self._parts.servicer.locate_items([each.reference.item_id for each in references])
        for each in references:
            item_id = each.reference.item_id
            if item_id not in found:
                raise ItemNotFound(getattr(message, "conversation_id", ""), item_id)
            each.reference.conversation_id = found[item_id]
        await run_sized(size, validate, message)

    async def _encoded(self, route: Route, response: Any, request: Request) -> Answer:
        """Returns the answer; a large one is counted until its caller has taken it."""
        size = len(response) if isinstance(response, bytes) else 0
        answer = await run_sized(size, route.answer, response, request)
        if len(answer.body) > LARGE_BYTES:
            patient = route.verb != "GET"  # what is written is written
            room = current_room.get() or await self._parts.responses.hold(len(answer.body), patient=patient)
            current_room.set(room)
            room.shrink(len(answer.body))
        return answer

    async def _probe(self, name: str) -> Answer:
        none: Any = None  # a context is needed for names that do not exist
        status = (await self._parts.health.Check(health_pb2.HealthCheckRequest(service=name), none)).status
        word = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
        serving = status == health_pb2.HealthCheckResponse.SERVING
        return Answer(b'{"status":"%s"}' % word.encode(), 200 if serving else 503)


def _read_head(route: Route, request: Request, context: HttpContext) -> None:
    """Reads the query and the headers that a route has.

    Raises:
        RequestInvalid: One of them is not valid.
    """
    if context.query:
        request.query = read_query(context.query, route.parameters)
    if route.verb != "GET":
        request.request_id = request_id_of(context.header("Idempotency-Key"))
        request.if_match = context.header("If-Match") or ""
    else:
        request.if_none_match = context.header("If-None-Match") or ""


def _try_make(route: Route, request: Request, sent: list[bytes]) -> tuple[Any, list[NewItem]] | ServiceError:
    """Returns the message of a request, and its references that do not say where their item is; or the error.

    A raised one would keep the body in memory with its traceback.
    """
    is_large = len(sent[0]) > LARGE_BYTES
    try:
        request.document = read_document(sent.pop())
        message = route.make(request)
        references = unlocated(message)
        if not references:
            validate(message)
    except ServiceError as error:
        forget_frames(error)
        return error
    if is_large:
        request.document = {}  # it only words errors, and takes as much memory as the message
    return message, references


def _not_served(verb: str, path: str, by_verb: Mapping[str, Route]) -> Problem:
    allowed = _READ_ONLY if path in PROBES or path == OPENAPI else sorted(by_verb)
    return wrong_method(verb, path, ", ".join(allowed)) if allowed else invalid_url(verb, path)


def _max_bytes(route: Route, max_message_bytes: int) -> int:
    return max_request_bytes(SERVICE.methods_by_name[route.name].input_type, max_message_bytes)


def _trace_of(raw: web.BaseRequest) -> str:
    return trace_of(("traceparent", value) for value in raw.headers.getall("traceparent", ()))
