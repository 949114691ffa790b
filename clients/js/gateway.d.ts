/** Types of gateway.js. All times are in seconds; dates are local to the gateway, with whole seconds. */

export type Credential = string | Login | (() => string | Promise<string>);
export type Status = "created" | "queued" | "processing" | "completed" | "failed";
export type Params = Record<string, unknown>;

export interface Result {
  url: string;
  type: string;
  bytes: number;
  width: number;
  height: number;
  /** null for an image */
  durationSeconds: number | null;
}

export interface Task {
  taskNo: string;
  modelName: string;
  status: Status;
  taskType: string;
  /** 0 to 100, never falling, 100 only when completed */
  progress: number;
  /** null once it has ended */
  estimatedSecondsLeft: number | null;
  promptSnippet: string;
  prompt: string;
  imageUrl: string | string[] | null;
  params: Params;
  endUser: string | null;
  resultUrl: string | null;
  resultUrls: string[];
  thumbnailUrls: string[];
  results: Result[];
  pointsCost: number;
  pointsRefunded: number;
  createTime: string;
  updateTime: string;
  completeTime: string | null;
  errorCode: string | null;
  errorMessage: string | null;
}

export interface SubmittedTask extends Task {
  /** after the charge */
  balance: number;
}

export interface Quote {
  modelName: string;
  pointsCost: number;
  balance: number;
}

export interface Balance {
  userId: number;
  balance: number;
  /** points that running tasks hold */
  held: number;
  expireTime: string | null;
}

export interface Model {
  modelName: string;
  description: string;
  taskType: string;
  pointsCost: number;
  priceRules: Params[];
  aspectRatio: string | null;
  /** the JSON Schema of the parameters */
  params: Params;
}

export interface Upload {
  url: string;
  type: string;
  bytes: number;
  width: number | null;
  height: number | null;
  durationSeconds: number | null;
  kind: "image" | "video" | "audio";
}

export interface Webhook {
  type: "task.completed" | "task.failed";
  timestamp: string;
  data: Task;
}

export interface Abortable {
  signal?: AbortSignal;
}

export interface QuoteOptions extends Abortable {
  imageUrl?: string | string[];
  params?: Params;
}

export interface SubmitOptions extends QuoteOptions {
  callbackUrl?: string;
  /** by default a new one; with null a submit is never retried */
  idempotencyKey?: string | null;
}

export interface WaitOptions extends Abortable {
  /** by default an hour */
  timeout?: number;
  /** called at each change of status or progress; older states are dropped */
  onProgress?: (task: Task) => void;
}

export interface GatewayOptions {
  /** by default the global WebSocket; with undefined `wait` polls */
  WebSocket?: typeof WebSocket | undefined;
  /** authenticate the WebSocket by a one-use ticket instead of a first message; default: true in browsers */
  ticket?: boolean;
  /** attempts of one request; by default 5 */
  tries?: number;
}

export class GatewayError extends Error {
  constructor(
    details: { code?: number; errorCode: string; message: string; requestId?: string | null; retryAfter?: number | null },
    cause?: unknown,
  );
  /** the HTTP status; 0 where there was no response or the timeout expired */
  readonly code: number;
  /** the gateway's error code, such as INSUFFICIENT_POINTS; or NETWORK, TIMEOUT, WEBHOOK_INVALID, HTTP_502 */
  readonly errorCode: string;
  readonly requestId: string | null;
  readonly retryAfter: number | null;
}

export interface LoginOptions {
  /** without a name only a cookie of an earlier log-in is used */
  username?: string;
  password?: string;
  /** of the second factor; it works once */
  code?: string;
  /** keeps the refresh token in a cookie that pages cannot read */
  session?: "cookie";
}

export class Login {
  constructor(baseUrl: string | URL, options?: LoginOptions);
  token(): Promise<string>;
  forget(token: string): void;
  logOut(): Promise<void>;
}

/** null is no cap. Points a day, a month and in total; tasks at once. */
export interface Caps {
  daily?: number | null;
  monthly?: number | null;
  total?: number | null;
  maxTasks?: number | null;
}

export interface KeyFields {
  name?: string;
  scopes?: string[];
  models?: string[] | null;
  addresses?: string[] | null;
  expireTime?: string | null;
  caps?: Caps | null;
  /** for each end user of the key's tasks */
  endUserCaps?: Caps | null;
}

export interface Key extends Required<KeyFields> {
  id: number;
  prefix: string;
  status: "active" | "expired" | "revoked";
  /** points, without refunds */
  spent: { today: number; thisMonth: number; total: number };
  runningTasks: number;
  createTime: string;
  lastUseTime: string | null;
  revokeTime: string | null;
}

export interface NewKey extends Key {
  /** no other answer has it */
  apiKey: string;
}

export interface Page<T> {
  records: T[];
  total: number;
  page: number;
  size: number;
  pages: number;
}

export interface Keys {
  list(options?: Abortable & { page?: number; size?: number; withRevoked?: boolean }): Promise<Page<Key>>;
  create(fields?: KeyFields, options?: Abortable): Promise<NewKey>;
  change(keyId: number, fields: KeyFields, options?: Abortable): Promise<Key>;
  rotate(keyId: number, options?: Abortable & { overlapHours?: number }): Promise<NewKey & { previous: Key }>;
  revoke(keyId: number, options?: Abortable): Promise<Key>;
}

export class Gateway {
  readonly keys: Keys;
  constructor(baseUrl: string | URL, credential: Credential, options?: GatewayOptions);
  submit(modelName: string, prompt: string, options?: SubmitOptions): Promise<SubmittedTask>;
  wait(taskNo: string, options?: WaitOptions): Promise<Task>;
  run(modelName: string, prompt: string, options?: SubmitOptions & WaitOptions): Promise<Task>;
  task(taskNo: string, options?: Abortable & { wait?: number }): Promise<Task>;
  cancel(taskNo: string, options?: Abortable): Promise<Task>;
  quote(modelName: string, prompt: string, options?: QuoteOptions): Promise<Quote>;
  models(options?: Abortable): Promise<Model[]>;
  balance(options?: Abortable): Promise<Balance>;
  upload(file: Blob, options?: Abortable): Promise<Upload>;
}

export function verifyWebhook(
  secret: string,
  headers: Headers | Record<string, string | string[] | undefined>,
  body: string | Uint8Array | ArrayBuffer,
  options?: { now?: number },
): Promise<Webhook>;
