// Names in JSON: snake_case outside, camelCase inside. Called for every request body and every answer. Only names that
// are ours are changed: whatever lies inside `details` of an error, or the `key` of a row, is passed on as it is, because its keys may be data
// (column names, settings), and values are never touched.

/** Deeper bodies are refused: no request of ours nests further, and the mapping recurses. */
const MAX_DEPTH = 32;

/** What a client may write; one-to-one with the camelCase names, so an uppercase letter is never ours. */
const requestName = /^[a-z][a-z0-9]*(?:_[a-z][a-z0-9]*)*$/;
const ourName = /^[a-z][a-zA-Z0-9]*$/;

/** Maps whose keys are names of a user's objects (roles, extensions, tablespaces), in requests and in answers. */
const nameMaps: ReadonlySet<string> = new Set(['owners', 'extensions', 'tablespaces', 'table']);

/** Fields whose own names are ours and whose values are foreign. */
const openFields: ReadonlySet<string> = new Set(['details', 'key']);

export function camelName(name: string): string {
  return name.replaceAll(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

export function snakeName(name: string): string {
  return name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** `sourceDb.port` → `source_db.port`. */
export function snakePath(path: string): string {
  return path.split('.').map(snakeName).join('.');
}

/** An answer with snake_case names. */
export function toSnake(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(toSnake);
  if (!isRecord(value)) return value;
  return renameOwn(value, (name, inner) =>
    nameMaps.has(name)
      ? inner
      : openFields.has(name) && isRecord(inner)
        ? renameOwn(inner, (_, kept) => kept)
        : toSnake(inner),
  );
}

/** Of names that are ours: answers repeat some hundred of them, thousands of times. */
const snakeNames = new Map<string, string>();
const MAX_REMEMBERED = 2_000;

function answerName(name: string): string {
  const known = snakeNames.get(name);
  if (known !== undefined) return known;
  const snake = ourName.test(name) ? snakeName(name) : name;
  if (snakeNames.size < MAX_REMEMBERED) snakeNames.set(name, snake);
  return snake;
}

function renameOwn(
  record: Readonly<Record<string, unknown>>,
  mapValue: (name: string, value: unknown) => unknown,
): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(record).map(([name, value]) => [answerName(name), mapValue(name, value)]),
  );
}

/** A request body with camelCase names, and the paths of names that no field of ours can have. */
export function toCamel(body: unknown): {
  readonly value: unknown;
  readonly unknownFields: readonly string[];
} {
  const unknownFields: string[] = [];
  const walk = (value: unknown, path: readonly (string | number)[]): unknown => {
    if (typeof value === 'object' && value !== null && path.length >= MAX_DEPTH) {
      unknownFields.push(path.join('.'));
      return null;
    }
    if (Array.isArray(value)) return value.map((item, index) => walk(item, [...path, index]));
    if (!isRecord(value)) return value;
    const entries: [string, unknown][] = [];
    for (const [name, inner] of Object.entries(value)) {
      if (nameMaps.has(name)) entries.push([name, inner]);
      else if (requestName.test(name)) entries.push([camelName(name), walk(inner, [...path, name])]);
      else unknownFields.push([...path, name].join('.'));
    }
    return Object.fromEntries(entries);
  };
  return { value: walk(body, []), unknownFields };
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
