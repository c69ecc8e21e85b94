// A CommonJS module that uses the installed package.
import sdk = require('@vibefollow/sdk');

const vf = new sdk.VibeFollow({
  apiKey: 'sk_test_x',
  fetchImpl: () => Promise.resolve(new Response('{"errors":[{"code":"validation_failed","message":"m"}]}', { status: 422 })),
});
const batch: sdk.EventBatch = vf.events.batch();
batch.track('signed_up', 'usr_42');
batch.flush().catch((error: unknown) => {
  if (!(error instanceof sdk.ValidationError)) throw error;
  console.log('cjs', error.name, error.code, error.events?.[0]?.userId);
});
