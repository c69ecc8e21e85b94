// An ES module that uses the installed package.
import { ValidationError, VibeFollow, type FetchLike, type TrackedEvent } from '@vibefollow/sdk';

const bodies: string[] = [];
const fetchImpl: FetchLike = (_, { body }) => {
  bodies.push(new TextDecoder().decode(body));
  return Promise.resolve(new Response('{"data":{"accepted":true}}', { status: 202 }));
};
const vf = new VibeFollow({ apiKey: 'sk_test_x', fetchImpl });
// An interface can give events types.
interface MyEvents {
  signed_up: { plan: 'trial' | 'paid' };
}
const typed = new VibeFollow<MyEvents>({ apiKey: 'sk_test_x', fetchImpl }).events;
if (bodies.length > 99) {
  await typed.track('signed_up', 'usr_42', { plan: 'trial' }, { idempotencyKey: 'k' });
  await typed.bulk([{ name: 'signed_up', userId: 'usr_42', properties: { plan: 'paid' } }]);
  // @ts-expect-error another name
  typed.batch().track('signed_in', 'usr_42');
  // @ts-expect-error another value
  typed.batch().track('signed_up', 'usr_42', { plan: 'free' });
}
const handler = typed.batch().withFlush(async (event: { id: number }, context: { name: string }) =>
  Promise.resolve(`${event.id} ${context.name}`),
);
const result: string = await handler({ id: 1 }, { name: 'n' });
if (result !== '1 n') throw new Error(result);
// The platform's fetch is accepted as well.
new VibeFollow({ apiKey: 'sk_test_x', fetchImpl: fetch });
{
  await using batch = vf.events.batch({
    onRejected: (events: readonly TrackedEvent[], error) => {
      const field: string | undefined = error instanceof ValidationError ? error.field : undefined;
      console.error(events.length, field);
    },
  });
  interface Row {
    plan: string;
  }
  const row: Row = { plan: 'trial' };
  batch.track('signed_up', 'usr_42', row, { timestamp: new Date(0) });
  // @ts-expect-error the user id is required
  if (bodies.length > 99) batch.track('signed_up');
  if (bodies.length > 99) batch.track('signed_up', 'usr_42', null);
}
if (bodies.length !== 1) throw new Error('disposal did not flush');
// This batch is never flushed, and its timer must not keep the process alive.
vf.events.batch({ maxAgeMs: 3_600_000 }).track('left', 'usr_42');
console.log('esm', bodies[0]);
