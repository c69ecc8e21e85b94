// A worker for workerd. /send runs the scenario; /wait responds before its event is sent.
import * as sdk from './index.js';
import { send } from './scenario.mjs';

export default {
  async fetch(request, { BASE_URL: baseUrl, API_KEY: apiKey }, context) {
    if (new URL(request.url).pathname === '/send') {
      await send(sdk, { baseUrl, apiKey });
      return new Response('done');
    }
    const vf = new sdk.VibeFollow({ baseUrl, apiKey });
    const batch = vf.events.batch({ maxAgeMs: 200, waitUntil: (promise) => context.waitUntil(promise) });
    batch.track('after the response', 'usr_42');
    return new Response('done');
  },
};
