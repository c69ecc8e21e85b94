import type { TrackedEvent } from './event.js';

/** One fault as the service names it. */
export interface Fault {
  readonly code: string;
  readonly message: string;
  /** Where the fault lies, as in `events[3].external_user_id`. */
  readonly field?: string;
}

/** What is known of a failure beyond its message. */
export interface Failure {
  /** The HTTP status, or 0 where there was no answer. */
  readonly status: number;
  readonly code: string;
  readonly errors?: readonly Fault[] | undefined;
  readonly requestId?: string | undefined;
  readonly retryAfterMs?: number | undefined;
}

/** Every failure of this SDK, and the base of the more specific ones. */
export class VibeFollowError extends Error {
  static {
    // On the prototype, and spelt out: it survives a minifier and stays out of what is logged.
    this.prototype.name = 'VibeFollowError';
  }

  /** The HTTP status, or 0 where there was no answer. */
  readonly status: number;
  /** The first fault's code, or `http_<status>` where the answer was not the service's own. */
  readonly code: string;
  /** Every fault that the service named. */
  readonly errors: readonly Fault[];
  /** The gateway's id of the request, to give to support. */
  readonly requestId: string | undefined;
  /** How long the service asked to wait (429 and 503), where it did. */
  readonly retryAfterMs: number | undefined;

  /** The events of the rejected buffer, in order: `errors[n].field` counts from here. */
  declare readonly events?: readonly TrackedEvent[];
  /** What else the same `flush()` has to report, in the order it happened. */
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

/** 401 and 403: the key is missing, unknown, revoked, or may not send events. */
export class AuthError extends VibeFollowError {
  static {
    this.prototype.name = 'AuthError';
  }
}

/** 409 and 422: the events break a rule. */
export class ValidationError extends VibeFollowError {
  static {
    this.prototype.name = 'ValidationError';
  }

  /** Where the first fault lies. */
  get field(): string | undefined {
    return this.errors[0]?.field;
  }
}

/** 429, still after the last retry, or with a wait too long to sit out. */
export class RateLimitError extends VibeFollowError {
  static {
    this.prototype.name = 'RateLimitError';
  }
}

/** 5xx, still after the last retry. */
export class ServerError extends VibeFollowError {
  static {
    this.prototype.name = 'ServerError';
  }
}

/** No answer: no connection, a connection lost, or no answer in time (`code` is `timeout`). */
export class NetworkError extends VibeFollowError {
  static {
    this.prototype.name = 'NetworkError';
  }

  constructor(message: string, code: 'network_error' | 'timeout') {
    super(message, { status: 0, code });
  }
}

/** The error that stands for an answer. */
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

/** Whether the service has said no for good: sending the same again would get the same answer. */
export function isRejection(error: VibeFollowError): boolean {
  return error.status >= 400 && error.status < 500 && error.status !== 429;
}

/**
 * Adds to an error what only its reader should see: not enumerable, so that people's properties
 * stay out of logs that print or serialise errors.
 */
export function attach(
  error: VibeFollowError,
  name: 'events' | 'suppressed' | 'cause',
  value: unknown,
): void {
  Object.defineProperty(error, name, { value, configurable: true });
}
