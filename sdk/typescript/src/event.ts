/** Anything that JSON can write. What JSON leaves out, such as `undefined`, is left out. */
// eslint-disable-next-line @typescript-eslint/no-explicit-any -- `unknown` refuses interfaces and classes.
export type Properties = Readonly<Record<string, any>>;

/** An event as it was tracked, its properties as JSON gives them back. */
export interface TrackedEvent {
  readonly name: string;
  readonly userId: string;
  readonly properties?: Readonly<Record<string, unknown>> | null;
}

/** Writes an event as the service reads it. What the service would refuse, the service judges. */
export function toJson(name: string, userId: string, properties?: Properties | null): string {
  try {
    return JSON.stringify({ external_user_id: userId, name, properties });
  } catch (cause) {
    throw new TypeError('the properties cannot be written as JSON', { cause });
  }
}

/** The inverse of `toJson`. */
export function fromJson(json: string): TrackedEvent {
  const { external_user_id: userId, ...rest } = JSON.parse(json) as Omit<TrackedEvent, 'userId'> & {
    external_user_id: string;
  };
  return { userId, ...rest };
}
