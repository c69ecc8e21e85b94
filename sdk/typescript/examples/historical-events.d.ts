/** The events that the example of the product page sends. */
declare const historicalEvents: readonly {
  name: string;
  userId: string;
  properties?: Record<string, unknown>;
}[];
