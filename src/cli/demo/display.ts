// What the demo prints: bars on a terminal, one plain line now and then elsewhere (CI logs, files).
import { SingleBar } from 'cli-progress';

const PLAIN_INTERVAL_MS = 1_000;

export interface Display {
  /** A numbered heading. */
  step(text: string): void;
  line(text: string): void;
  /** Shows how far something is, 0–100, with a few words; on the same line until `line` or `step` follows. */
  progress(percent: number, text: string): void;
  /** Ends a bar that is being drawn. Harmless when there is none. */
  end(): void;
}

/** Writes to a terminal or to a plain stream, as `out` is one. */
export function createDisplay(out: NodeJS.WriteStream): Display {
  const startedAt = performance.now();
  let steps = 0;
  let bar: SingleBar | null = null;
  let lastPlain = -Infinity;
  let lastText = '';

  const end = (): void => {
    bar?.stop();
    bar = null;
    lastPlain = -Infinity;
    lastText = '';
  };
  const line = (text: string): void => {
    end();
    out.write(`     ${text}\n`);
  };
  return {
    end,
    line,
    step(text) {
      end();
      const at = ((performance.now() - startedAt) / 1000).toFixed(1).padStart(6);
      out.write(`${at}s  ${++steps}. ${text}\n`);
    },
    progress(percent, text) {
      const value = Math.min(100, Math.max(0, Math.floor(percent)));
      if (out.isTTY) {
        if (bar === null) {
          bar = new SingleBar({
            stream: out,
            format: '     [{bar}] {percentage}% {text}',
            barsize: 30,
            hideCursor: true,
            clearOnComplete: false,
            noTTYOutput: false,
            linewrap: false,
          });
          bar.start(100, value, { text });
        } else bar.update(value, { text });
        return;
      }
      const now = performance.now();
      if (now - lastPlain < PLAIN_INTERVAL_MS || text === lastText) return;
      lastPlain = now;
      lastText = text;
      const filled = Math.round(value / 5);
      out.write(
        `     [${'#'.repeat(filled)}${'.'.repeat(20 - filled)}] ${String(value).padStart(3)} %  ${text}\n`,
      );
    },
  };
}

/** `1 234 567` with thin groups, for counts. */
export function count(value: number): string {
  return Math.round(value).toLocaleString('en-US');
}

export function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}

export function megabytes(bytes: number): string {
  return `${(bytes / 1024 / 1024).toFixed(bytes < 1024 * 1024 ? 2 : 0)} MB`;
}
