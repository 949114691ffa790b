"""The tree of errors. It holds the HTTP status, the code and the Chinese text that callers receive.

    GatewayError
    ├── InvalidParameter · ModelNotFound                 400
    ├── CodeNotRedeemable                                400
    ├── Unauthenticated · SecondFactorRequired           401
    ├── InsufficientPoints · KeyBudgetExceeded           402
    ├── Forbidden · RegistrationClosed                   403
    ├── NotFound · MethodNotAllowed                      404 405
    ├── IdempotencyConflict · NotCancellable             409
    ├── GrantConflict · ActionConflict                   409
    ├── UsernameTaken · TaskRunning                      409
    ├── RequestTimeout                                   408
    ├── PayloadTooLarge · UnsupportedMedia               413 415
    ├── RangeNotSatisfiable                              416
    ├── RateLimited · TooManyTasks                       429
    ├── HeadersTooLarge                                  431
    ├── Internal                                         500
    └── Unavailable                                      503

One handler in `app/api/errors.py` turns an error into the response envelope. The English `error_code` never changes.
`TaskFailure` lists the reasons why a task failed.
"""

from enum import Enum


class GatewayError(Exception):
    """An error that a caller receives. `retry_after_seconds` becomes the Retry-After header."""

    status = 500
    error_code = "INTERNAL"
    text = "服务器错误"

    def __init__(self, text: str | None = None, *, retry_after_seconds: int | None = None) -> None:
        self.message = text or self.text
        self.retry_after_seconds = retry_after_seconds
        super().__init__(self.message)


class InvalidParameter(GatewayError):
    """A field of the request is wrong. `field` is the name that the caller wrote."""

    status = 400
    error_code = "INVALID_PARAMETER"
    text = "参数错误"

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        super().__init__(f"参数错误: {field} {problem}".rstrip())


class ModelNotFound(GatewayError):
    status = 400
    error_code = "MODEL_NOT_FOUND"
    text = "模型不存在或已停用"


class CodeNotRedeemable(GatewayError):
    """The code cannot be redeemed. Unknown and void codes have the same text, so that nobody can guess codes."""

    status = 400
    error_code = "CODE_NOT_REDEEMABLE"
    text = "兑换码无效"


class Unauthenticated(GatewayError):
    """The credential is not valid. One text for every reason, so that a caller cannot learn which part is wrong."""

    status = 401
    error_code = "UNAUTHENTICATED"
    text = "未登录或Token过期"


class SecondFactorRequired(GatewayError):
    """The password is right, and the user has a second factor: the log-in needs its code."""

    status = 401
    error_code = "SECOND_FACTOR_REQUIRED"
    text = "未登录: 请输入动态验证码"


class InsufficientPoints(GatewayError):
    status = 402
    error_code = "INSUFFICIENT_POINTS"

    def __init__(self, balance: int, cost: int) -> None:
        super().__init__(f"积分不足，当前余额 {balance}，本次需要 {cost}")


class KeyBudgetExceeded(GatewayError):
    """The submit would exceed a cap of the API key, or of the end user that it names."""

    status = 402
    error_code = "KEY_BUDGET_EXCEEDED"
    text = "超出密钥的额度"


class Forbidden(GatewayError):
    status = 403
    error_code = "FORBIDDEN"
    text = "无权访问"


class RegistrationClosed(GatewayError):
    status = 403
    error_code = "REGISTRATION_CLOSED"
    text = "未开放注册，请联系平台方"


class NotFound(GatewayError):
    status = 404
    error_code = "NOT_FOUND"
    text = "资源不存在"


class MethodNotAllowed(GatewayError):
    status = 405
    error_code = "METHOD_NOT_ALLOWED"
    text = "请求方法不支持"


class RequestTimeout(GatewayError):
    """The rest of the request did not arrive in time. The connection is closed after the response."""

    status = 408
    error_code = "REQUEST_TIMEOUT"
    text = "请求未在时限内发送完毕"


class IdempotencyConflict(GatewayError):
    status = 409
    error_code = "IDEMPOTENCY_CONFLICT"
    text = "Idempotency-Key 已用于另一个请求，请更换"


class NotCancellable(GatewayError):
    status = 409
    error_code = "NOT_CANCELLABLE"
    text = "任务已开始生成或已结束，不能取消"


class GrantConflict(GatewayError):
    """An earlier top-up used the same `ref` for another user, other points or another expiry."""

    status = 409
    error_code = "GRANT_CONFLICT"
    text = "ref 已用于其他用户、其他数额或其他有效期的充值"


class ActionConflict(GatewayError):
    """An admin used the same `ref` for another act."""

    status = 409
    error_code = "ACTION_CONFLICT"
    text = "ref 已用于另一个操作"


class UsernameTaken(GatewayError):
    status = 409
    error_code = "USERNAME_TAKEN"
    text = "用户名已被使用"


class TaskRunning(GatewayError):
    status = 409
    error_code = "TASK_RUNNING"
    text = "任务尚未结束，不能删除，请先取消或等待结束"


class PayloadTooLarge(GatewayError):
    status = 413
    error_code = "PAYLOAD_TOO_LARGE"
    text = "请求内容过大"


class UnsupportedMedia(GatewayError):
    status = 415
    error_code = "UNSUPPORTED_MEDIA"
    text = "不支持的内容类型"


class RangeNotSatisfiable(GatewayError):
    status = 416
    error_code = "RANGE_NOT_SATISFIABLE"
    text = "请求的范围超出文件"


class RateLimited(GatewayError):
    status = 429
    error_code = "RATE_LIMITED"
    text = "请求过于频繁，请稍后再试"


class TooManyTasks(GatewayError):
    status = 429
    error_code = "TOO_MANY_TASKS"

    def __init__(self, max_tasks: int, owner: str = "") -> None:
        """`owner`: whose tasks are bounded, if not the user's."""
        super().__init__(f"{owner}进行中的任务过多，最多 {max_tasks} 个，请等待任务完成", retry_after_seconds=5)


class HeadersTooLarge(GatewayError):
    """The request line or the headers are too long, or too many. The connection is closed after the response."""

    status = 431
    error_code = "HEADERS_TOO_LARGE"
    text = "请求行或请求头过大"


class Internal(GatewayError):
    """A bug or failure of the gateway. The text gives no detail; the log does, under the request id."""


class Unavailable(GatewayError):
    status = 503
    error_code = "UNAVAILABLE"
    text = "服务暂时不可用，请稍后重试"

    def __init__(self, text: str | None = None, *, retry_after_seconds: int = 3) -> None:
        super().__init__(text, retry_after_seconds=retry_after_seconds)


class SettingsError(Exception):
    """The settings are invalid, and the process must not start. The text lists the problems, one per line."""


class TaskFailure(Enum):
    """The reason why a task failed. The name is the task's `errorCode`, the value its `errorMessage`."""

    UPSTREAM_REJECTED = "生成服务拒绝了该请求，请修改提示词或参数后重试，积分已退还"
    """SEE2AI refused the input (400, 422). The same input would fail again."""

    UPSTREAM_FAILED = "生成失败，请修改提示词后重试，积分已退还"
    """SEE2AI accepted the job and reported that it failed."""

    UPSTREAM_UNAVAILABLE = "生成服务暂时不可用，请稍后重试，积分已退还"
    """SEE2AI was unreachable, or its responses were server errors until the attempts ran out."""

    UPSTREAM_UNCERTAIN = "生成服务未确认该请求，任务已终止，积分已退还"
    """It is unknown whether SEE2AI accepted the job. The gateway never sends such a job again."""

    APPROVAL_EXPIRED = "该视频需要平台方授权，未在时限内获得授权，任务已终止，积分已退还"
    """SEE2AI waited for an approval that a user of the gateway cannot give."""

    TIMED_OUT = "生成超时，积分已退还"
    """The task's deadline passed, or SEE2AI reported a timeout."""

    RESULT_LOST = "生成结果保存失败，积分已退还"
    """SEE2AI finished, but the gateway could not download, read or store the result before the hosting deadline."""

    CANCELLED = "任务已取消，积分已退还"
    """The caller cancelled the task before it was sent to SEE2AI."""

    ENDED_BY_PLATFORM = "任务已由平台方终止，积分已退还"
    """An admin ended the task by hand."""

    INTERNAL = "服务器错误，积分已退还"
    """The gateway's own code failed three times on this task."""
