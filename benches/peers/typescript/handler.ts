/**
 * A typical TypeScript implementation of the contract: Powertools for AWS Lambda, zod and the AWS SDK v3.
 *
 * zod validates, the idempotency utility keeps the records, and the calls to SQS run concurrently.
 * MAX_EVENTS_PER_MESSAGE is 1 in the idiomatic variant, and 50 in the variant that packs events into
 * messages as event-ingest does.
 */
import { createHash, randomBytes } from 'node:crypto';
import { gunzipSync } from 'node:zlib';
import {
  IdempotencyAlreadyInProgressError,
  IdempotencyConfig,
  IdempotencyValidationError,
  makeIdempotent,
} from '@aws-lambda-powertools/idempotency';
import { DynamoDBPersistenceLayer } from '@aws-lambda-powertools/idempotency/dynamodb';
import { Logger } from '@aws-lambda-powertools/logger';
import { DynamoDBClient, GetItemCommand } from '@aws-sdk/client-dynamodb';
import { SendMessageBatchCommand, type SendMessageBatchRequestEntry, SQSClient } from '@aws-sdk/client-sqs';
import type { APIGatewayProxyEventV2, APIGatewayProxyStructuredResultV2, Context } from 'aws-lambda';
import { z } from 'zod';

const MAX_BODY = 5 * 1024 * 1024;
const MAX_CALL_BYTES = 1_048_576;
const MAX_CALL_MESSAGES = 10;
const KEY_KNOWN_FOR_MS = 60_000;
const SCHEMA = 'event-batch/1';

const QUEUE_URL = process.env.EVENTS_QUEUE_URL ?? '';
const API_KEYS_TABLE = process.env.API_KEYS_TABLE ?? '';
const MAX_EVENTS_PER_MESSAGE = Number(process.env.MAX_EVENTS_PER_MESSAGE ?? '1');

const logger = new Logger({ serviceName: 'event-ingest' });
const dynamodb = new DynamoDBClient({});
const sqs = new SQSClient({});
const persistenceStore = new DynamoDBPersistenceLayer({
  tableName: process.env.STATE_TABLE ?? '',
  awsSdkV3Client: dynamodb,
});
const config = new IdempotencyConfig({
  eventKeyJmesPath: 'key',
  payloadValidationJmesPath: 'fingerprint',
  expiresAfterSeconds: 86_400,
});

const Text = z.string().min(1).max(1024);
const Event = z.looseObject({
  external_user_id: Text,
  name: Text,
  properties: z
    .record(z.string(), z.unknown())
    .refine((properties) => Object.keys(properties).length <= 100, 'must have at most 100 keys')
    .nullish(),
  timestamp: z.iso.datetime({ offset: true }).nullish(),
});
const Batch = z.object({ events: z.array(Event).min(1).max(500) });
type Event = z.infer<typeof Event>;

class Refused extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly field?: string,
  ) {
    super(message);
  }
}

type Caller = { project_id: string; mode: 'live' | 'test' };
const knownKeys = new Map<string, { until: number; projectId?: string }>();

async function authenticate(header: string): Promise<Caller> {
  const match = /^bearer (sk_(live|test)_[A-Za-z0-9_-]{32,128})$/i.exec(header);
  if (!match) throw new Refused(401, 'auth_required', 'a valid API key is required');
  const hash = createHash('sha256').update(match[1]).digest('hex');
  let known = knownKeys.get(hash);
  if (!known || Date.now() >= known.until) {
    const { Item } = await dynamodb.send(
      new GetItemCommand({ TableName: API_KEYS_TABLE, Key: { key_hash: { S: hash } } }),
    );
    const projectId = Item?.status?.S === 'active' ? Item.project_id?.S : undefined;
    known = { until: Date.now() + KEY_KNOWN_FOR_MS, projectId };
    knownKeys.set(hash, known);
  }
  if (!known.projectId) throw new Refused(401, 'auth_required', 'a valid API key is required');
  return { project_id: known.projectId, mode: match[2] === 'live' ? 'live' : 'test' };
}

function decodedBody(event: APIGatewayProxyEventV2): Buffer {
  let body = Buffer.from(event.body ?? '', event.isBase64Encoded ? 'base64' : 'utf8');
  if (event.headers['content-encoding'] === 'gzip') {
    body = gunzipSync(body, { maxOutputLength: MAX_BODY });
  }
  if (body.length > MAX_BODY) throw new Refused(413, 'payload_too_large', 'the body is larger than 5 MB');
  return body;
}

function parsed(body: Buffer): Event[] {
  let json: unknown;
  try {
    json = JSON.parse(body.toString('utf8'));
  } catch {
    throw new Refused(400, 'malformed_json', 'the body is not JSON');
  }
  const batch = Batch.safeParse(json);
  if (!batch.success) {
    const { message, path } = batch.error.issues[0];
    throw new Refused(422, 'validation_failed', message, path.join('.'));
  }
  return batch.data.events;
}

/** Groups events into messages and messages into calls, within the limits of SQS. */
function pack(caller: Caller, events: Event[]): SendMessageBatchRequestEntry[][] {
  const batchId = uuid7();
  const received_at = new Date().toISOString();
  const head = `${JSON.stringify({ schema: SCHEMA, batch_id: batchId, ...caller, received_at }).slice(0, -1)},"events":[`;
  const attributes = Object.fromEntries(
    Object.entries({ schema: SCHEMA, ...caller }).map(([name, value]) => [
      name,
      { DataType: 'String', StringValue: value },
    ]),
  );
  const attributeBytes = Object.entries(attributes).reduce(
    (sum, [name, value]) => sum + name.length + 6 + value.StringValue.length,
    0,
  );
  const overhead = head.length + attributeBytes + 2;
  const calls: SendMessageBatchRequestEntry[][] = [];
  let callBytes = 0;
  let texts: string[] = [];
  let textBytes = overhead;
  const closeMessage = () => {
    if (texts.length === 0) return;
    if (calls.length === 0 || calls[calls.length - 1].length === MAX_CALL_MESSAGES || callBytes + textBytes > MAX_CALL_BYTES) {
      calls.push([]);
      callBytes = 0;
    }
    const call = calls[calls.length - 1];
    call.push({
      Id: String(call.length),
      MessageBody: `${head}${texts.join(',')}]}`,
      MessageAttributes: attributes,
      MessageGroupId: caller.project_id,
    });
    callBytes += textBytes;
    texts = [];
    textBytes = overhead;
  };
  events.forEach((event, index) => {
    const text = JSON.stringify({ id: `${batchId}-${index}`, event });
    const bytes = Buffer.byteLength(text) + 1;
    if (texts.length === MAX_EVENTS_PER_MESSAGE || textBytes + bytes > MAX_CALL_BYTES) closeMessage();
    texts.push(text);
    textBytes += bytes;
  });
  closeMessage();
  return calls;
}

/** Node has no uuid7. */
function uuid7(): string {
  const bytes = randomBytes(16);
  bytes.writeUIntBE(Date.now(), 0, 6);
  bytes[6] = (bytes[6] & 0x0f) | 0x70;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = bytes.toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

const deliver = makeIdempotent(
  async (_request: { key: string; fingerprint: string }, caller: Caller, events: Event[]) => {
    const answers = await Promise.all(
      pack(caller, events).map((Entries) => sqs.send(new SendMessageBatchCommand({ QueueUrl: QUEUE_URL, Entries }))),
    );
    if (answers.some((answer) => answer.Failed?.length)) {
      throw new Refused(503, 'service_unavailable', 'SQS refused part of the batch');
    }
    return { data: { accepted: true } };
  },
  { persistenceStore, config, dataIndexArgument: 0 },
);

async function ingest(event: APIGatewayProxyEventV2): Promise<APIGatewayProxyStructuredResultV2> {
  if (event.rawPath !== '/api/v1/events/batch') throw new Refused(404, 'not_found', 'not found');
  if (event.requestContext.http.method !== 'POST') throw new Refused(405, 'method_not_allowed', 'use POST');
  const caller = await authenticate(event.headers.authorization ?? '');
  const key = event.headers['idempotency-key'];
  if (!key) throw new Refused(400, 'idempotency_key_required', 'the header Idempotency-Key is required');
  const body = decodedBody(event);
  const events = parsed(body);
  const request = {
    key: `${caller.project_id}#${caller.mode}#${key}`,
    fingerprint: createHash('sha256').update(body).digest('hex'),
  };
  return answer(202, await deliver(request, caller, events));
}

const answer = (statusCode: number, body: unknown): APIGatewayProxyStructuredResultV2 => ({
  statusCode,
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify(body),
});

function refusal(error: unknown): Refused {
  if (error instanceof Refused) return error;
  // Powertools wraps the errors of the function.
  if (error instanceof Error && error.cause instanceof Refused) return error.cause;
  if (error instanceof IdempotencyValidationError) {
    return new Refused(422, 'idempotency_key_reuse', 'the key was used with another body');
  }
  if (error instanceof IdempotencyAlreadyInProgressError) {
    return new Refused(503, 'request_in_progress', 'an identical request is in progress');
  }
  logger.error('request failed', error as Error);
  return new Refused(500, 'internal_error', 'internal error');
}

export async function handler(
  event: APIGatewayProxyEventV2,
  context: Context,
): Promise<APIGatewayProxyStructuredResultV2> {
  config.registerLambdaContext(context);
  let result: APIGatewayProxyStructuredResultV2;
  try {
    result = await ingest(event);
  } catch (error) {
    const { status, code, message, field } = refusal(error);
    result = answer(status, { errors: [{ code, message, field }] });
  }
  logger.info('request', { status: result.statusCode, requestId: context.awsRequestId });
  return result;
}
