// Runs the scenario in a process: process.mjs BASE_URL API_KEY SPOOL
import * as sdk from '../../dist/esm/index.js';
import { send } from './scenario.mjs';

const [baseUrl, apiKey, spool] = process.argv.slice(2);
await send(sdk, { baseUrl, apiKey });

const vf = new sdk.VibeFollow({ baseUrl, apiKey });
const spooled = vf.events.batch({ spool });
spooled.track('spooled', 'usr_42');
await spooled.close();

// Neither an unsent buffer nor the wait after a failed round keeps the process alive.
const down = new sdk.VibeFollow({ baseUrl: 'http://127.0.0.1:9', apiKey, maxRetries: 0 });
const failing = down.events.batch();
failing.track('lost', 'usr_42');
await failing.flush().catch(() => undefined);
vf.events.batch({ maxAgeMs: 3_600_000 }).track('lost', 'usr_42');
vf.events.batch({ maxAgeMs: 3_600_000, spool }).track('left in the spool', 'usr_42');
console.log('done');
