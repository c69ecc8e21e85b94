/** Anything that can be serialized to JSON. Members that JSON omits, such as `undefined`, are omitted. */
// eslint-disable-next-line @typescript-eslint/no-explicit-any -- `unknown` refuses interfaces and classes.
export type Properties = Readonly<Record<string, any>>;

/** An event as it was tracked, with its properties as parsed from JSON. */
export interface TrackedEvent {
  readonly name: string;
  readonly userId: string;
  readonly properties?: Readonly<Record<string, unknown>> | null;
}

/** Serializes an event for the service. It leaves validation to the service. */
export function toJson(name: string, userId: string, properties?: Properties | null): string {
  try {
    return JSON.stringify({ external_user_id: userId, name, properties });
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
