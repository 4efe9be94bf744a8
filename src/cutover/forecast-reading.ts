// Used by forecast.ts: what copying and comparing under the fence would take, by rates that a pair of modest servers reaches,
// measured on two cores that run both and us, and rounded down. Pure.
import type { ComparisonForecast, ForecastStep } from '../model/forecast.ts';

const KEYS_PER_SECOND = 20_000;
const ROWS_PER_SECOND = 500_000;
const UNLOGGED_BYTES_PER_SECOND = 40_000_000;
/** Each is made by itself, and there is one connection. */
const OBJECTS_COPIED_PER_SECOND = 5_000;
const OBJECT_BYTES_COPIED_PER_SECOND = 20_000_000;
const OBJECTS_COMPARED_PER_SECOND = 20_000;
const OBJECT_BYTES_COMPARED_PER_SECOND = 100_000_000;

/** `copy` only where there is something whose changes are not in the WAL. */
export function readingSteps(
  { keys, wholeTables, wholeRows, unlogged, largeObjects }: ComparisonForecast,
  roundTripMs: number,
): ForecastStep[] {
  const objectSeconds = (objectsPerSecond: number, bytesPerSecond: number): number =>
    largeObjects.objects / objectsPerSecond + largeObjects.bytes / bytesPerSecond;
  const copySeconds =
    unlogged.bytes / UNLOGGED_BYTES_PER_SECOND +
    objectSeconds(OBJECTS_COPIED_PER_SECOND, OBJECT_BYTES_COPIED_PER_SECOND);
  const compareSeconds =
    keys / KEYS_PER_SECOND +
    (wholeRows + unlogged.rows) / ROWS_PER_SECOND +
    objectSeconds(OBJECTS_COMPARED_PER_SECOND, OBJECT_BYTES_COMPARED_PER_SECOND);
  const tables = unlogged.tables === 0 ? [] : [`${unlogged.tables} unlogged tables of about`];
  const objects =
    largeObjects.objects === 0
      ? []
      : [`${largeObjects.objects} large objects of about ${largeObjects.bytes} bytes`];
  const copied = [...tables.map((some) => `${some} ${unlogged.bytes} bytes`), ...objects];
  const compared = [
    `${keys} changed keys`,
    `${wholeTables} whole tables of about ${wholeRows} rows`,
    ...tables.map((some) => `${some} ${unlogged.rows} rows`),
    ...objects,
  ];
  const copy: ForecastStep = {
    step: 'copy',
    ms: 6 * roundTripMs + copySeconds * 1_000,
    detail: copied.join(', '),
  };
  return [
    ...(copied.length === 0 ? [] : [copy]),
    { step: 'compare', ms: 6 * roundTripMs + compareSeconds * 1_000, detail: compared.join(', ') },
  ];
}
