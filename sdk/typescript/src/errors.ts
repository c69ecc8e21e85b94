import type { TrackedEvent } from './event.js';

/** One element of `errors` in a response of the service. */
export interface Fault {
  readonly code: string;
  readonly message: string;
  /** The place of a violation, such as `events[3].external_user_id`. */
  readonly field?: string;
}

/** The details of a failure, apart from its message. */
export interface Failure {
  /** The HTTP status, or 0 without a response. */
  readonly status: number;
  readonly code: string;
  readonly errors?: readonly Fault[] | undefined;
  readonly requestId?: string | undefined;
  readonly retryAfterMs?: number | undefined;
}

/** The base class of all errors of this client. */
export class VibeFollowError extends Error {
  static {
    // A string, because minifiers change class names. On the prototype, so that it is not logged as a member.
    this.prototype.name = 'VibeFollowError';
  }

  /** The HTTP status, or 0 without a response. */
  readonly status: number;
  /** The first code of `errors`, or `http_<status>` if the response did not come from the service. */
  readonly code: string;
  /** All elements of `errors` in the response. */
  readonly errors: readonly Fault[];
  /** The id that the gateway assigned to the request, for support. */
  readonly requestId: string | undefined;
  /** The time to wait before a retry, if the response contained it (429 and 503). */
  readonly retryAfterMs: number | undefined;

  /** The events of the rejected buffer, in order. An index in `errors[n].field` refers to this array. */
  declare readonly events?: readonly TrackedEvent[];
  /** Further errors of the same `flush()`, in order of occurrence. */
  declare readonly suppressed?: readonly VibeFollowError[];

  constructor(message: string, failure: Failure) {
    super(message);
    this.status = failure.status;
    this.code = failure.code;
    this.errors = failure.errors ?? [];
    this.requestId = failure.requestId;
    this.retryAfterMs = failure.retryAfterMs;
  }
}

/** 401 or 403: the API key is missing, unknown or revoked, or may not send events. */
export class AuthError extends VibeFollowError {
  static {
    this.prototype.name = 'AuthError';
  }
}

/** 409 or 422: the events violate a rule. With `partial`, 200 with rejected events. */
export class ValidationError extends VibeFollowError {
  static {
    this.prototype.name = 'ValidationError';
  }

  /** The place of the first violation. */
  get field(): string | undefined {
    return this.errors[0]?.field;
  }
}

/** 429 after the last retry, or with a `Retry-After` that is too long to wait for. */
export class RateLimitError extends VibeFollowError {
  static {
    this.prototype.name = 'RateLimitError';
  }
}

/** 5xx after the last retry. */
export class ServerError extends VibeFollowError {
  static {
    this.prototype.name = 'ServerError';
  }
}

/** No response: no connection, a lost connection, or a timeout (`code` is `timeout`). */
export class NetworkError extends VibeFollowError {
  static {
    this.prototype.name = 'NetworkError';
  }

  constructor(message: string, code: 'network_error' | 'timeout') {
    super(message, { status: 0, code });
  }
}

/** Creates the error for a response. */
export function errorFor(message: string, failure: Failure): VibeFollowError {
  return new (classFor(failure.status))(message, failure);
}

function classFor(status: number): new (message: string, failure: Failure) => VibeFollowError {
  if (status === 401 || status === 403) return AuthError;
  if (status === 409 || status === 422) return ValidationError;
  if (status === 429) return RateLimitError;
  if (status >= 500) return ServerError;
  return VibeFollowError;
}

/**
 * Adds a member to an error. The member is not enumerable, so that logs that print or serialize
 * errors do not contain personal data from properties.
 */
export function attach(
  error: VibeFollowError,
  name: 'events' | 'suppressed' | 'cause',
  value: unknown,
): void {
  Object.defineProperty(error, name, { value, configurable: true });
}
