export {
  VibeFollow,
  type Events,
  type SendOptions,
  type VibeFollowOptions,
} from './client.js';
export { type BatchOptions, type EventBatch, type FlushOptions, type WithFlushOptions } from './batch.js';
export { chunk } from './bulk.js';
export { type BulkError, type BulkResult } from './endpoints.js';
export {
  type BeforeSend,
  type Catalog,
  type EventInput,
  type Properties,
  type Timestamp,
  type TrackedEvent,
  type TrackOptions,
} from './event.js';
export {
  AuthError,
  NetworkError,
  RateLimitError,
  ServerError,
  ValidationError,
  VibeFollowError,
  type Fault,
} from './errors.js';
export { type FetchLike, type FetchRequest, type FetchResponse, type TransportOptions } from './transport.js';
