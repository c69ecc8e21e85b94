/** What the page's example sends: its reader's own events. */
declare const historicalEvents: readonly {
  name: string;
  userId: string;
  properties?: Record<string, unknown>;
}[];
