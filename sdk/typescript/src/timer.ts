/** Calls `run` after a delay. Returns a function that cancels it. */
export function foregroundTimer(run: () => void, delayMs: number): () => void {
  const timer = setTimeout(run, delayMs);
  return () => {
    clearTimeout(timer);
  };
}

/** Calls `run` after a delay, without keeping the process alive. Returns a function that cancels it. */
export function backgroundTimer(run: () => void, delayMs: number): () => void {
  const timer: unknown = setTimeout(run, delayMs);
  unref(timer);
  return () => {
    clearTimeout(timer as Parameters<typeof clearTimeout>[0]);
  };
}

/** In Node and Bun, timers are objects with unref(). In Deno, in browsers and on the edge, they are numbers. */
function unref(timer: unknown): void {
  if (typeof timer === 'object') {
    (timer as { unref?: () => void }).unref?.();
    return;
  }
  const { Deno } = globalThis as { Deno?: { unrefTimer?: (timer: unknown) => void } };
  Deno?.unrefTimer?.(timer);
}
