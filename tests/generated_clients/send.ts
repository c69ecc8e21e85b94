// Sends with openapi-fetch and the types that openapi-typescript generated: send.js URL API_KEY.
import assert from "node:assert/strict";
import { gzipSync } from "node:zlib";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

const [url, key] = process.argv.slice(2);
assert(url && key, "usage: send.js URL API_KEY");
const client = createClient<paths>({ baseUrl: url, headers: { Authorization: `Bearer ${key}` } });

type Event = components["schemas"]["Event"];

/** An event with properties and a member that the schema does not name. */
const event = (user: string): Event => ({
  external_user_id: user,
  name: "user_signed_up",
  properties: { plan: "trial" },
  source: "checkout",
});
const header = (idempotencyKey: string) => ({ "Idempotency-Key": idempotencyKey });

const batch = await client.POST("/api/v1/events/batch", {
  params: { header: header("typescript-batch") },
  body: { events: [event("batch-0"), event("batch-1")] },
});
assert.equal(batch.data?.data.accepted, true);

const compressed = await client.POST("/api/v1/events/batch", {
  params: { header: { ...header("typescript-gzip"), "Content-Encoding": "gzip" } },
  headers: { "Content-Type": "application/gzip" },
  body: { events: [event("gzip-0")] },
  bodySerializer: (body) => gzipSync(JSON.stringify(body)),
});
assert.equal(compressed.data?.data.accepted, true);

const single = await client.POST("/api/v1/events", {
  params: { header: header("typescript-single") },
  body: event("single-0"),
});
assert.equal(single.data?.data.accepted, true);

const bulk = await client.POST("/api/v1/events/bulk", {
  body: { events: [event("bulk-0"), { external_user_id: "", name: "user_signed_up" }] },
});
assert.deepEqual([bulk.data?.data.accepted, bulk.data?.data.rejected, bulk.data?.meta.received], [1, 1, 2]);
const [rejected] = bulk.data?.data.errors ?? [];
assert.deepEqual([rejected?.index, rejected?.code, rejected?.field], [1, "validation", "external_user_id"]);

const refused = await client.POST("/api/v1/events/batch", {
  params: { header: header("typescript-empty") },
  body: { events: [] },
});
assert.deepEqual([refused.error?.errors[0]?.code, refused.error?.errors[0]?.field], ["validation_failed", "events"]);

/** Mistakes that the types must refuse. */
export const mistakes = [
  // @ts-expect-error A body is not a number.
  () => client.POST("/api/v1/events/batch", { params: { header: header("") }, body: 42 }),
  // @ts-expect-error The idempotency key is required.
  () => client.POST("/api/v1/events/batch", { body: { events: [] } }),
  // @ts-expect-error An event needs a name.
  () => client.POST("/api/v1/events", { params: { header: header("") }, body: { external_user_id: "u" } }),
];
