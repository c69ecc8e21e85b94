/** Anything that can be serialized to JSON. Members that JSON omits, such as `undefined`, are omitted. */
// eslint-disable-next-line @typescript-eslint/no-explicit-any -- `unknown` refuses interfaces and classes.
export type Properties = Readonly<Record<string, any>>;

/** The names of events, each with the type of its properties. */
export type Catalog = Record<string, Properties>;

/** The time of an event: a `Date`, or an RFC 3339 string such as `2026-11-23T09:14:03Z`. */
export type Timestamp = Date | string;

export interface TrackOptions {
  /** The time of the event. `null` leaves it to the service, which then uses the time of arrival. */
  readonly timestamp?: Timestamp | null | undefined;
}

/** An event to send. */
export interface EventInput<Name extends string = string, P = Properties> {
  readonly name: Name;
  readonly userId: string;
  readonly properties?: P | null | undefined;
  readonly timestamp?: Timestamp | null | undefined;
}

/** An event as it was tracked, with its properties as parsed from JSON. */
export interface TrackedEvent {
  readonly name: string;
  readonly userId: string;
  readonly properties?: Readonly<Record<string, unknown>> | null;
  readonly timestamp?: string;
}

/** Changes an event before it is queued, or drops it by returning `null`. It must not be asynchronous. */
export type BeforeSend = (event: TrackedEvent) => EventInput | null;

/** Serializes an event after `beforeSend`. Returns undefined if `beforeSend` drops the event. */
export function snapshot(event: EventInput, beforeSend: BeforeSend | undefined): string | undefined {
  const json = toJson(event);
  if (!beforeSend) return json;
  // A copy, so that `beforeSend` can change the event and not the objects of the caller.
  const kept: unknown = beforeSend(fromJson(json));
  if (kept === null) return undefined;
  if (typeof kept !== 'object' || !('name' in kept)) {
    throw new TypeError('beforeSend must return an event or null, and not a promise');
  }
  return toJson(kept as EventInput);
}

/** Serializes an event for the service. It leaves validation to the service, except for the time. */
function toJson({ name, userId, properties, timestamp }: EventInput): string {
  const time = timestampText(timestamp);
  try {
    return wellFormed(JSON.stringify({ external_user_id: userId, name, properties, timestamp: time }));
  } catch (cause) {
    throw new TypeError('the properties cannot be serialized to JSON', { cause });
  }
}

/** The inverse of `toJson`. */
export function fromJson(json: string): TrackedEvent {
  const { external_user_id: userId, ...rest } = JSON.parse(json) as Omit<TrackedEvent, 'userId'> & {
    external_user_id: string;
  };
  return { userId, ...rest };
}

/**
 * Replaces surrogates without their other half by U+FFFD, in keys and values. The service refuses
 * them, and a string that was cut in the middle of an emoji contains one.
 */
function wellFormed(json: string): string {
  // JSON.stringify writes an escape for such a surrogate, and for no other character above U+001F.
  if (!json.includes('\\ud')) return json;
  // The second alternative skips escaped backslashes.
  return json.replace(/\\(?:u(d[89a-f][0-9a-f]{2})|.)/g, (escape, half?: string) => (half ? '\ufffd' : escape));
}

const RFC_3339 =
  /^(\d{4})-(\d\d)-(\d\d)T([01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)$/i;

function timestampText(timestamp: unknown): string | undefined {
  if (timestamp === undefined || timestamp === null) return undefined;
  const isDate = timestamp instanceof Date;
  if (!isDate && typeof timestamp !== 'string') throw new TypeError('timestamp must be a Date or a string');
  const text = isDate ? (Number.isNaN(timestamp.getTime()) ? '' : timestamp.toISOString()) : timestamp;
  const [, year, month, day] = RFC_3339.exec(text) ?? [];
  // Date.UTC turns February 30 into March 1 or 2. It adds 1900 to the years before 100, so add 400 to all.
  const date = new Date(Date.UTC(Number(year) + 400, Number(month) - 1, Number(day)));
  if (!year || date.getUTCMonth() + 1 !== Number(month) || date.getUTCDate() !== Number(day)) {
    throw new RangeError('timestamp must be a valid Date or an RFC 3339 time such as 2026-11-23T09:14:03Z');
  }
  return text;
}
