/** The longest delay of a timer. A longer one would fire at once. */
export const MAX_TIMER_MS = 2 ** 31 - 1;

/** Returns the value of an option, or throws if it is not a whole number within the bounds. */
export function wholeNumber(name: string, value: number, min: number, max: number): number {
  if (!Number.isInteger(value) || value < min || value > max) {
    throw new RangeError(`${name} must be a whole number from ${min} to ${max}`);
  }
  return value;
}

/** Returns an idempotency key, or throws if the service would refuse it. */
export function checkedIdempotencyKey(key: string): string {
  if (typeof key !== 'string' || !/^[!-~]{1,255}$/.test(key)) {
    throw new TypeError('idempotencyKey must be 1 to 255 visible ASCII characters, without spaces');
  }
  return key;
}
