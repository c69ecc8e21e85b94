export { VibeFollow, type Events, type VibeFollowOptions } from './client.js';
export { type BatchOptions, type EventBatch } from './batch.js';
export { type Properties, type TrackedEvent } from './event.js';
export {
  AuthError,
  NetworkError,
  RateLimitError,
  ServerError,
  ValidationError,
  VibeFollowError,
  type Fault,
} from './errors.js';
export { type FetchLike, type FetchRequest, type FetchResponse } from './transport.js';
