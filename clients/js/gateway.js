// A client of the points gateway for browsers and Node 18 or newer, without dependencies. All times are in seconds.

const ENDED = new Set(["completed", "failed"]);
const RANKS = ["created", "queued", "processing", "completed", "failed"];
const RETRYABLE = new Set([0, 429, 502, 503, 504]); // 0: no response
const MAX_PAUSE_SECONDS = 60; // a longer `Retry-After` throws the error; only `wait` waits longer
const REFRESH_EARLY_SECONDS = 60;
const REQUEST_SECONDS = 30;
const UPLOAD_SECONDS = 300;
const LONG_POLL_SECONDS = 30;
const PROGRESS_POLL_SECONDS = 5; // with `onProgress`
const CONNECT_SECONDS = 10;
const SILENCE_SECONDS = 75; // the gateway pings every 30 s, so a longer silence means a lost connection
const MAX_CONNECTIONS = 3; // WebSockets of one `wait`, which then polls
const TOLERANCE_SECONDS = 300;

/** Any failure except an abort, which throws the signal's reason. `code` is 0 where there was no response. */
export class GatewayError extends Error {
  constructor({ code = 0, errorCode, message, requestId = null, retryAfter = null }, cause) {
    super(message, cause === undefined ? undefined : { cause });
    Object.assign(this, { name: "GatewayError", code, errorCode, requestId, retryAfter });
  }
}

export class Gateway {
  #base;
  #credential;
  #login;
  #WebSocket;
  #byTicket;
  #tries;

  /** `credential` is an API key, a JWT, a `Login`, or a function that returns one or its promise before each request. */
  constructor(baseUrl, credential, options = {}) {
    this.#base = String(baseUrl).replace(/\/+$/, "");
    this.#login = credential instanceof Login ? credential : null;
    this.#credential = typeof credential === "function" ? credential : () => this.#login?.token() ?? credential;
    this.#WebSocket = "WebSocket" in options ? options.WebSocket : globalThis.WebSocket;
    this.#byTicket = options.ticket ?? typeof document !== "undefined";
    this.#tries = options.tries ?? 5;
    this.keys = new Keys((...request) => this.#request(...request));
  }

  /** Submits a task. Retries use one Idempotency-Key, so the task is charged once. */
  async submit(modelName, prompt, { imageUrl, params, callbackUrl, idempotencyKey = newKey(), signal } = {}) {
    const body = { modelName, prompt, imageUrl, params, callbackUrl };
    const retry = idempotencyKey ? { headers: { "Idempotency-Key": idempotencyKey } } : { tries: 1 };
    return this.#request("POST", "/user/ai/tasks/submit", { json: body, signal, ...retry });
  }

  /** Submits a task and waits for its end. */
  async run(modelName, prompt, { timeout, onProgress, ...options } = {}) {
    const { taskNo } = await this.submit(modelName, prompt, options);
    return this.wait(taskNo, { timeout, onProgress, signal: options.signal });
  }

  /** The task once it has ended; its `status` is completed or failed. It survives a restart of the gateway. */
  async wait(taskNo, { timeout = 3600, onProgress, signal } = {}) {
    const limit = new Limit(timeout, signal);
    const progress = new Progress(onProgress);
    const pollSeconds = onProgress ? PROGRESS_POLL_SECONDS : LONG_POLL_SECONDS;
    try {
      for (let connections = 0; ; ) {
        const listens = this.#WebSocket && connections < MAX_CONNECTIONS;
        let pause = 0.5 + Math.random();
        try {
          progress.update(await this.task(taskNo, { wait: listens ? 0 : pollSeconds, signal: limit.signal }));
          if (listens && !progress.hasEnded) {
            connections += 1;
            await this.#listen(taskNo, progress, limit.signal);
          }
        } catch (error) {
          if (limit.signal.aborted) throw limit.signal.reason;
          if (!(error instanceof GatewayError && RETRYABLE.has(error.code))) throw error;
          pause = Math.max(pause, error.retryAfter ?? 0);
        }
        if (progress.hasEnded) return progress.task;
        await sleep(pause, limit.signal);
      }
    } finally {
      limit.end();
    }
  }

  /** The task as it is now. With `wait` (up to 60 seconds) the gateway answers when it ends, or after that time. */
  async task(taskNo, { wait = 0, signal } = {}) {
    const path = `/user/ai/tasks/${encodeURIComponent(taskNo)}${wait ? `?wait=${wait}` : ""}`;
    return this.#request("GET", path, { signal, timeout: REQUEST_SECONDS + wait });
  }

  /** Cancels a task whose generation has not started, and refunds it. Throws `NOT_CANCELLABLE` (409) otherwise. */
  async cancel(taskNo, { signal } = {}) {
    return this.#request("POST", `/user/ai/tasks/${encodeURIComponent(taskNo)}/cancel`, { signal });
  }

  /** The price of a submit. It charges nothing. */
  async quote(modelName, prompt, { imageUrl, params, signal } = {}) {
    return this.#request("POST", "/user/ai/tasks/quote", { json: { modelName, prompt, imageUrl, params }, signal });
  }

  async models({ signal } = {}) {
    return this.#request("GET", "/user/ai/models", { signal });
  }

  async balance({ signal } = {}) {
    return this.#request("GET", "/user/points/consumption/balance", { signal });
  }

  /** Uploads a Blob or File. Its `url` can be an `imageUrl` or another reference. */
  async upload(file, { signal } = {}) {
    const form = new FormData();
    form.append("file", file);
    return this.#request("POST", "/user/files/upload", { form, signal, timeout: UPLOAD_SECONDS });
  }

  /** Receives changes until the task or the connection ends. */
  async #listen(taskNo, progress, signal) {
    const url = new URL(`${this.#base}/user/ai/tasks/ws`, globalThis.location?.href);
    url.protocol = url.protocol.replace("http", "ws");
    const since = progress.since ? { since: progress.since } : {};
    const auth = this.#byTicket ? null : { type: "auth", token: await within(this.#credential(), signal), ...since };
    if (this.#byTicket) {
      const { ticket } = await this.#request("POST", "/user/ai/tasks/ws-ticket", { signal });
      url.search = new URLSearchParams({ ticket, ...since });
    }
    let socket;
    try {
      socket = new this.#WebSocket(url.href);
    } catch {
      return; // some pages may not open a WebSocket; `wait` then polls
    }
    const done = new AbortController();
    let timer;
    try {
      await new Promise((resolve, reject) => {
        const endAfter = (seconds) => {
          clearTimeout(timer);
          timer = setTimeout(resolve, seconds * 1000);
        };
        const update = (task) => {
          progress.update(task);
          if (progress.hasEnded) resolve();
        };
        const handle = (message) => {
          endAfter(SILENCE_SECONDS);
          if (message.type === "task") progress.since = message.id;
          if (message.type === "task" && message.data.taskNo === taskNo) update(message.data);
          // Without `since` the stream omits earlier changes, so the end may lie before it.
          if (message.type === "auth") this.task(taskNo, { signal }).then(update).catch(reject);
        };
        endAfter(CONNECT_SECONDS);
        signal.addEventListener("abort", resolve, { signal: done.signal });
        socket.onclose = socket.onerror = resolve;
        socket.onopen = () => auth && socket.send(JSON.stringify(auth));
        socket.onmessage = (event) => {
          try {
            handle(JSON.parse(event.data));
          } catch (error) {
            reject(error);
          }
        };
      });
    } finally {
      clearTimeout(timer);
      done.abort();
      socket.onmessage = socket.onopen = null;
      socket.close();
    }
    signal.throwIfAborted();
  }

  /** The response's `data`. It retries temporary errors, which is safe: a submit has its Idempotency-Key. */
  async #request(method, path, options = {}) {
    const { json, form, headers, signal, timeout = REQUEST_SECONDS, tries = this.#tries, once } = options;
    for (let attempt = 1; ; attempt += 1) {
      const sent = {};
      try {
        return await this.#send(method, path, { json, form, headers, signal, timeout, sent });
      } catch (error) {
        if (error.code === 401 && sent.token && attempt === 1 && tries > 1 && this.#login) {
          this.#login.forget(sent.token); // it was revoked before its end
          continue;
        }
        const pause = error.retryAfter ?? 2 ** (attempt - 2) * (0.5 + Math.random() / 2);
        if (once || !RETRYABLE.has(error.code) || attempt >= tries || pause > MAX_PAUSE_SECONDS) throw error;
        await sleep(pause, signal);
      }
    }
  }

  async #send(method, path, { json, form, headers, signal, timeout, sent }) {
    const all = json ? { ...headers, "Content-Type": "application/json" } : { ...headers };
    const body = json ? JSON.stringify(json) : form;
    const limit = new Limit(timeout, signal);
    try {
      sent.token = await within(this.#credential(), limit.signal);
      all.Authorization = `Bearer ${sent.token}`;
      const response = await send(this.#base + path, { method, headers: all, body, signal: limit.signal }, signal);
      return read(...response);
    } finally {
      limit.end();
    }
  }
}

/**
 * The API keys of the user, as `gateway.keys`. The credential must be a `Login` or a JWT: an API key cannot make keys.
 * What creates a key is never retried. After a lost response, look it up in `list`.
 */
class Keys {
  #request;

  constructor(request) {
    this.#request = request;
  }

  /** One page of the keys, the newest first. */
  async list({ page = 1, size = 10, withRevoked = false, signal } = {}) {
    return this.#request("GET", `/user/keys?page=${page}&size=${size}&withRevoked=${withRevoked}`, { signal });
  }

  /** A new key. Only this answer has its text, in `apiKey`. Missing fields limit nothing. */
  async create(fields = {}, { signal } = {}) {
    return this.#request("POST", "/user/keys", { json: fields, signal, once: true });
  }

  /** Changes the given fields. null removes a limit. */
  async change(keyId, fields, { signal } = {}) {
    return this.#request("POST", `/user/keys/${keyId}`, { json: fields, signal });
  }

  /** A new key in place of this one, which stays valid for the overlap. Both share one budget. */
  async rotate(keyId, { overlapHours = 24, signal } = {}) {
    return this.#request("POST", `/user/keys/${keyId}/rotate`, { json: { overlapHours }, signal, once: true });
  }

  /** Ends the key at once. */
  async revoke(keyId, { signal } = {}) {
    return this.#request("POST", `/user/keys/${keyId}/revoke`, { signal });
  }
}

/**
 * A log-in by user name and password: the credential of a `Gateway`. It keeps its access token fresh. With
 * `session: "cookie"` the refresh token is a cookie that pages cannot read, so a reloaded page needs no password.
 */
export class Login {
  #base;
  #session;
  #names;
  #code;
  #refreshToken = null;
  #accessToken = null;
  #expires = 0;
  #renewal = null;

  constructor(baseUrl, { username, password, code, session } = {}) {
    this.#base = String(baseUrl).replace(/\/+$/, "");
    this.#session = session;
    this.#names = username === undefined ? null : { username, password };
    this.#code = code;
  }

  /** A valid access token. It logs in or refreshes where needed; requests at once share one renewal. */
  async token() {
    if (Date.now() >= this.#expires) await (this.#renewal ??= this.#renew().finally(() => (this.#renewal = null)));
    return this.#accessToken;
  }

  /** Drops an access token that the gateway refused, so that the next request gets a new one. */
  forget(token) {
    if (token === this.#accessToken) this.#expires = 0;
  }

  /** Ends the session at the gateway. */
  async logOut() {
    const refreshToken = this.#refreshToken;
    this.#refreshToken = null;
    this.#expires = 0;
    if (refreshToken || this.#session === "cookie") await this.#post("logout", refreshToken ? { refreshToken } : {});
  }

  async #renew() {
    if (this.#refreshToken || this.#session === "cookie") {
      try {
        const refreshToken = this.#refreshToken;
        return this.#take(await this.#post("refresh", refreshToken ? { refreshToken } : {}));
      } catch (error) {
        if (!this.#names || error.code !== 401) throw error;
        this.#refreshToken = null; // the session has ended
      }
    }
    const code = this.#code;
    this.#code = undefined; // a code works once
    this.#take(await this.#post("login", { ...this.#names, code, session: this.#session }));
  }

  #take({ accessToken, refreshToken, expiresIn }) {
    this.#accessToken = accessToken;
    this.#refreshToken = refreshToken ?? null;
    this.#expires = Date.now() + Math.max(expiresIn - REFRESH_EARLY_SECONDS, 1) * 1000;
  }

  async #post(name, json) {
    const limit = new Limit(REQUEST_SECONDS);
    const headers = { "Content-Type": "application/json" };
    const request = { method: "POST", headers, body: JSON.stringify(json), credentials: "include" };
    try {
      return read(...(await send(`${this.#base}/user/auth/${name}`, { ...request, signal: limit.signal })));
    } finally {
      limit.end();
    }
  }
}

/** Verifies a webhook and returns it, or throws GatewayError `WEBHOOK_INVALID`. `body` is the raw body. */
export async function verifyWebhook(secret, headers, body, { now = Date.now() / 1000 } = {}) {
  const invalid = (message) => new GatewayError({ code: 400, errorCode: "WEBHOOK_INVALID", message });
  const pairs = typeof headers.entries === "function" ? [...headers.entries()] : Object.entries(headers);
  const lowercase = Object.fromEntries(pairs.map(([name, value]) => [name.toLowerCase(), String(value)]));
  const [id, timestamp, signatures] = ["id", "timestamp", "signature"].map((name) => lowercase[`webhook-${name}`]);
  if (!id || !/^\d+$/.test(timestamp ?? "") || !signatures) throw invalid("a webhook header is missing");
  if (Math.abs(now - Number(timestamp)) > TOLERANCE_SECONDS) throw invalid("the timestamp is too far from now");
  const encoder = new TextEncoder();
  const raw = typeof body === "string" ? encoder.encode(body) : new Uint8Array(body);
  const head = encoder.encode(`${id}.${timestamp}.`);
  const signed = new Uint8Array(head.length + raw.length);
  signed.set(head);
  signed.set(raw, head.length);
  const { subtle } = globalThis.crypto ?? (await import("node:crypto")).webcrypto; // Node 18 has no global crypto
  const hmac = { name: "HMAC", hash: "SHA-256" };
  const key = await subtle.importKey("raw", bytesOf(secret.replace(/^whsec_/, "")), hmac, false, ["verify"]);
  for (const entry of signatures.split(" ")) {
    const [version, signature] = entry.split(",");
    if (version !== "v1" || !/^[A-Za-z0-9+/]{43}=$/.test(signature ?? "")) continue;
    if (await subtle.verify("HMAC", key, bytesOf(signature), signed)) return JSON.parse(new TextDecoder().decode(raw));
  }
  throw invalid("no signature matches");
}

/** The newest known state of a task. Responses and messages may overtake each other; older ones are dropped. */
class Progress {
  since = null;
  task = null;
  #onProgress;

  constructor(onProgress) {
    this.#onProgress = onProgress;
  }

  get hasEnded() {
    return this.task !== null && ENDED.has(this.task.status);
  }

  update(task) {
    const rank = ({ status, progress }) => RANKS.indexOf(status) * 1000 + progress;
    if (this.hasEnded || (this.task && rank(task) <= rank(this.task))) return;
    this.task = task;
    this.#onProgress?.(task);
  }
}

/** A signal that aborts with another signal or after a time. (Node 18 has no `AbortSignal.any`.) */
class Limit extends AbortController {
  constructor(seconds, outer) {
    super();
    const message = `not within ${seconds} s`;
    const expire = () => this.abort(new GatewayError({ errorCode: "TIMEOUT", message }));
    // setTimeout takes at most 2^31 - 1 milliseconds.
    this.timer = seconds < 2e6 ? setTimeout(expire, seconds * 1000) : undefined;
    this.outer = outer;
    this.pass = () => this.abort(outer.reason);
    if (outer?.aborted) this.pass();
    outer?.addEventListener("abort", this.pass);
  }

  end() {
    clearTimeout(this.timer);
    this.outer?.removeEventListener("abort", this.pass);
  }
}

/** The response and its text. It throws the reason of an aborted `signal`, and a GatewayError for other failures. */
async function send(url, request, signal) {
  try {
    const response = await fetch(url, request);
    return [response, await response.text()];
  } catch (error) {
    signal?.throwIfAborted();
    throw new GatewayError({ errorCode: "NETWORK", message: `no response from the gateway: ${error.message}` }, error);
  }
}

function read(response, text) {
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {}
  body ??= {}; // a proxy before the gateway answered
  if (response.ok && body.code === 200) return body.data;
  const seconds = parseFloat(response.headers.get("Retry-After"));
  throw new GatewayError({
    code: response.status,
    errorCode: body.errorCode ?? `HTTP_${response.status}`,
    message: body.message ?? (text.slice(0, 200) || response.statusText),
    requestId: body.requestId ?? response.headers.get("X-Request-Id"),
    retryAfter: Number.isFinite(seconds) ? seconds : null,
  });
}

async function sleep(seconds, signal) {
  let timer;
  const elapsed = new Promise((resolve) => (timer = setTimeout(resolve, seconds * 1000)));
  await within(elapsed, signal).finally(() => clearTimeout(timer));
}

/** The promise's value. It throws the signal's reason where the signal aborts first. */
async function within(promise, signal) {
  if (!signal) return promise;
  let stop;
  const aborted = new Promise((_, reject) => (stop = () => reject(signal.reason)));
  signal.addEventListener("abort", stop);
  if (signal.aborted) stop();
  return Promise.race([promise, aborted]).finally(() => signal.removeEventListener("abort", stop));
}

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
// Pages of plain HTTP have no randomUUID. A key must be unique, not secret.
const newKey = () => globalThis.crypto?.randomUUID?.() ?? [1, 2, 3].map(() => Math.random().toString(36)).join("-");
