// The same work on every runtime. test/runtimes.test.ts checks what the service receives.

/** Sends events in every way, over a service that fails once. */
export async function send({ VibeFollow, ValidationError, chunk }, options) {
  const vf = new VibeFollow(options);
  const batch = vf.events.batch({ maxSize: 100 });
  // Buffers of more than 64 KB, which are compressed, with a character that was cut in half.
  for (let i = 0; i < 250; i++) batch.track(`batch ${i}`, 'usr_42', { note: `é😀\ud83d${'x'.repeat(1_000)}` });
  await batch.flush({ timeoutMs: 20_000 });
  await vf.events.track('single', 'usr_42', {}, { timestamp: new Date(0) });
  for (const part of chunk([{ name: 'bulk', userId: 'usr_42' }, { name: 'bad', userId: 'usr_42' }])) {
    const { accepted, rejected } = await vf.events.bulk(part);
    if (accepted !== 1 || rejected !== 1) throw new Error('bulk() returned other counts');
  }
  const handled = vf.events.batch();
  const handler = handled.withFlush(async (event, context) => {
    handled.track('handled', event.userId);
    return context.getRemainingTimeInMillis();
  });
  const left = await handler({ userId: 'usr_42' }, { getRemainingTimeInMillis: () => 5_000 });
  if (left !== 5_000) throw new Error('withFlush() changed the result');
  const promises = [];
  const waiting = vf.events.batch({ maxAgeMs: 0, waitUntil: (promise) => promises.push(promise) });
  waiting.track('waited', 'usr_42');
  await Promise.all(promises);
  const rejecting = vf.events.batch();
  rejecting.track('bad', 'usr_42');
  const error = await rejecting.flush().catch((thrown) => thrown);
  if (!(error instanceof ValidationError)) throw new Error(`expected a ValidationError, got ${String(error)}`);
}
