// A file of ours for what does not fit into memory. It has no name once it is open: whatever ends the process, nothing of it
// stays. Rows of customers are in it, so only this user can open it meanwhile. Used by spilled-messages.ts.
import { randomUUID } from 'node:crypto';
import { readdirSync, rmSync } from 'node:fs';
import { mkdir, open, statfs, unlink, type FileHandle } from 'node:fs/promises';
import { join } from 'node:path';

/** Of the disk, which the store is on, too: it must not be us who fill it. */
const LEFT_FREE_BYTES = 1024 * 1024 * 1024;

/** A file could not be made, written or read. */
export class SpillFailed extends Error {
  constructor(folder: string, cause: unknown) {
    super(`${folder}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

export class SpillFile {
  readonly #folder: string;
  readonly #leftFreeBytes: number;
  #opened: Promise<FileHandle> | null = null;
  #isClosed = false;

  /** Made in `folder`, which is made when it is missing, with the first byte. */
  constructor(folder: string, leftFreeBytes = LEFT_FREE_BYTES) {
    this.#folder = folder;
    this.#leftFreeBytes = leftFreeBytes;
  }

  /** Errors, here and below: SpillFailed. */
  write(bytes: Buffer, at: number): Promise<void> {
    return this.#with(async (handle) => {
      const { bavail, bsize } = await statfs(this.#folder);
      if (bavail * bsize - bytes.length < this.#leftFreeBytes)
        throw new Error(`fewer than ${this.#leftFreeBytes} bytes of its disk would be left free`);
      for (let done = 0; done < bytes.length; )
        done += (await handle.write(bytes, done, bytes.length - done, at + done)).bytesWritten;
    });
  }

  /** Fills `bytes`. */
  read(bytes: Buffer, at: number): Promise<void> {
    return this.#with(async (handle) => {
      for (let done = 0; done < bytes.length; ) {
        const { bytesRead } = await handle.read(bytes, done, bytes.length - done, at + done);
        if (bytesRead === 0) throw new Error(`the file ends before ${at + bytes.length}`);
        done += bytesRead;
      }
    });
  }

  /** Idempotent; waits for what is under way. */
  async close(): Promise<void> {
    this.#isClosed = true;
    const opened = this.#opened;
    this.#opened = null;
    // whoever opened it has heard of it; what is written is for nobody any more
    await opened?.then((handle) => handle.close()).catch(() => undefined);
  }

  async #with(work: (handle: FileHandle) => Promise<void>): Promise<void> {
    try {
      if (this.#isClosed) throw new Error('it is closed');
      this.#opened ??= this.#open();
      await work(await this.#opened);
    } catch (error) {
      throw new SpillFailed(this.#folder, error);
    }
  }

  async #open(): Promise<FileHandle> {
    await mkdir(this.#folder, { recursive: true, mode: 0o700 });
    const path = join(this.#folder, randomUUID());
    const handle = await open(path, 'wx+', 0o600);
    try {
      await unlink(path);
    } catch (error) {
      await handle.close();
      throw error;
    }
    return handle;
  }
}

/** What a process that was killed may have left: a file whose name it was about to take away. It is in nobody's way. */
export function removeSpilled(folder: string): void {
  try {
    for (const name of readdirSync(folder)) rmSync(join(folder, name));
  } catch {
    // there is none, or it is somebody else's
  }
}
