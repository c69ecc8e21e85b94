// The adapter of this client for the conformance suite, which docs/conformance.md describes.
import { createInterface } from 'node:readline';
import { VibeFollow } from '../dist/esm/index.js';

let client;
let batch;
// Sent by `flush`, so that the requests of a case do not depend on the speed of this process.
let tracked = [];
const rejected = [];

const commands = {
  capabilities() {
    return { endpoint: 'batch', half_surrogates: 'replaced' };
  },
  start({ base_url: baseUrl, api_key: apiKey, max_events: maxSize, timeout_ms: timeoutMs }) {
    client = new VibeFollow({ baseUrl, apiKey, timeoutMs });
    batch = client.events.batch({
      maxSize,
      onRejected: (events) => rejected.push(...events.map(({ userId }) => userId)),
    });
  },
  track({ event }) {
    tracked.push(event);
  },
  async flush() {
    for (const { name, user_id: userId, properties, timestamp } of tracked) {
      batch.track(name, userId, properties, { timestamp });
    }
    tracked = [];
    await batch.flush();
  },
  set_api_key({ api_key: apiKey }) {
    client.setApiKey(apiKey);
  },
  rejected() {
    return { rejected };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...parameters } = JSON.parse(line);
  let reply;
  try {
    reply = (await commands[command](parameters)) ?? {};
  } catch (error) {
    reply = { error: String(error) };
  }
  console.log(JSON.stringify(reply));
}
